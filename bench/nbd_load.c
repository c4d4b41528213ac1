/* An NBD client that does nothing but load: a fixed number of requests in flight on each of some
 * connections, offsets random or sequential, replies counted and thrown away.
 *
 *     nbd_load SOCKET read|write BLOCK DEPTH CONNECTIONS SECONDS random|sequential
 *
 * One thread a connection: receive what there is, count the replies in it, send as many new
 * requests with one call.  Simple replies, so that a reply is 16 bytes and its data.  Prints
 * "requests seconds own-CPU-seconds".
 */
#include <arpa/inet.h>
#include <endian.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEPTH 256
#define RECEIVE_BUFFER (4 << 20)

static const char *path;
static int writing, depth, sequential;
static uint32_t block;
static double seconds;
static volatile int stop;

struct __attribute__((packed)) request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
};

struct connection {
    int fd, number;
    uint64_t size, random, next, done;
    char *payload;
    struct request requests[MAX_DEPTH];
};

static void die(const char *what) { perror(what); exit(1); }

static void get(int fd, void *buffer, size_t length) {
    for (char *p = buffer; length;) {
        ssize_t n = recv(fd, p, length, 0);
        if (n <= 0) die("recv");
        p += n, length -= n;
    }
}

static void put(int fd, struct iovec *parts, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count > 512 ? 512 : count};
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (n < 0) die("send");
        while (count && (size_t)n >= parts->iov_len) n -= parts->iov_len, parts++, count--;
        if (count) parts->iov_base = (char *)parts->iov_base + n, parts->iov_len -= n;
    }
}

static void shake_hands(struct connection *c) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die(path);
    char greeting[18], reply[10];
    get(c->fd, greeting, sizeof greeting);
    struct __attribute__((packed)) {
        uint32_t flags;
        uint64_t magic;
        uint32_t option, length;
    } export_name = {htonl(3), htobe64(0x49484156454F5054ull), htonl(1), 0};
    struct iovec part = {&export_name, sizeof export_name};
    put(c->fd, &part, 1);
    get(c->fd, reply, sizeof reply);
    memcpy(&c->size, reply, 8);
    c->size = be64toh(c->size);
    int buffer = RECEIVE_BUFFER;
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
}

static uint64_t offset_of_next(struct connection *c) {
    uint64_t blocks = c->size / block;
    if (sequential) return c->next++ % blocks * block;
    c->random ^= c->random << 13, c->random ^= c->random >> 7, c->random ^= c->random << 17;
    return c->random % blocks * block;
}

static void ask(struct connection *c, int count) {
    struct iovec parts[2 * MAX_DEPTH];
    int used = 0;
    for (int i = 0; i < count; i++) {
        struct request *r = &c->requests[i];
        *r = (struct request){htonl(0x25609513), 0, htons(writing), i,
                              htobe64(offset_of_next(c)), htonl(block)};
        if (writing) {
            parts[used++] = (struct iovec){r, sizeof *r};
            parts[used++] = (struct iovec){c->payload, block};
        }
    }
    if (!writing) parts[used++] = (struct iovec){c->requests, count * sizeof *c->requests};
    put(c->fd, parts, used);
}

static void *load(void *argument) {
    struct connection *c = argument;
    char *buffer = malloc(RECEIVE_BUFFER);
    size_t reply = 16 + (writing ? 0 : (size_t)block), have = 0;
    int in_flight = depth;
    ask(c, depth);
    while (in_flight) {
        ssize_t n = recv(c->fd, buffer, RECEIVE_BUFFER, 0);
        if (n <= 0) die("recv");
        have += n;
        int replies = have / reply;
        have %= reply;
        if (!replies) continue;
        c->done += replies;
        in_flight -= replies;
        if (!stop) ask(c, replies), in_flight += replies;
    }
    free(buffer);
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int count, char **words) {
    if (count != 8) return fprintf(stderr, "seven arguments, see the source\n"), 1;
    path = words[1], writing = !strcmp(words[2], "write"), block = atoi(words[3]);
    depth = atoi(words[4]), seconds = atof(words[6]), sequential = *words[7] == 's';
    int connections = atoi(words[5]);
    if (depth > MAX_DEPTH || depth < 1 || connections > 64) return 1;
    struct connection *all = calloc(connections, sizeof *all);
    pthread_t threads[64];
    for (int i = 0; i < connections; i++) {
        all[i].number = i, all[i].random = 88172645463325252ull + i * 7919;
        all[i].payload = malloc(block);
        memset(all[i].payload, 0x5a + i, block);
        shake_hands(&all[i]);
        all[i].next = all[i].size / block / connections * i;
    }
    double began = now();
    for (int i = 0; i < connections; i++) pthread_create(&threads[i], NULL, load, &all[i]);
    usleep(seconds * 1e6);
    stop = 1;
    uint64_t done = 0;
    for (int i = 0; i < connections; i++) pthread_join(threads[i], NULL), done += all[i].done;
    double took = now() - began;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%llu %.6f %.6f\n", (unsigned long long)done, took,
           usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
               (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}
