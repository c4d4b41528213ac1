/* What a processor is measured with: a freestanding 64-bit program.
 *
 * On the debug port: "<name" newline, then "S" and "E" around each run of the work (the host takes
 * the time), then "=" and a checksum, which is the same on every processor.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

struct assembly {
    void (*syscalls)(u64 count);
    void (*faults)(u64 count);
};
static const struct assembly *assembly;

static void put(char c) { __asm__ volatile("outb %0, $0xe9" : : "a"(c) : "memory"); }
static void text(const char *s) { while (*s) put(*s++); }
static void hex(u64 value)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static u64 seed = 88172645463325252;
static u64 next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

#define MIB (1 << 20)
static u8 *const arena = (u8 *)0x1000000; /* 16 MiB: RAM from here on is free */

static u64 integer_loop(void)
{
    u64 a = 1, b = 0x9e3779b97f4a7c15, c = 7;
    for (u32 i = 0; i < 30000000; i++) {
        a += b ^ i;
        b = (b << 5 | b >> 59) + a;
        c = c * 31 + (a >> 7);
    }
    return a ^ b ^ c;
}

static u64 memory_copy(void)
{
    u64 *from = (u64 *)arena, *to = (u64 *)(arena + 256 * 1024);
    for (u32 i = 0; i < 32 * 1024; i++)
        from[i] = (u64)i * 0x0101010101010101;
    for (u32 turn = 0; turn < 300; turn++) {
        u64 *source = from, *target = to, words = 16 * 1024;
        for (u32 i = 0; i < words; i++)
            target[i] = source[i];
        __asm__ volatile("rep movsq" : "+S"(source), "+D"(target), "+c"(words) : : "memory");
    }
    return to[12345] + to[777];
}

static u64 pointer_chase(void)
{
    u32 *cycle = (u32 *)arena;
    const u32 count = MIB;
    for (u32 i = 0; i < count; i++)
        cycle[i] = i;
    seed = 1234567;
    for (u32 i = count - 1; i > 0; i--) { /* Sattolo: one cycle through all */
        u32 j = next() % i, t = cycle[i];
        cycle[i] = cycle[j];
        cycle[j] = t;
    }
    u32 at = 0;
    for (u32 i = 0; i < 4000000; i++)
        at = cycle[at];
    return at;
}

static __attribute__((noinline)) u64 fibonacci(u32 n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
static u64 calls(void)
{
    volatile u32 n = 31;
    return fibonacci(n);
}

static u64 indirect_branches(void)
{
    static u8 code[4096];
    seed = 99;
    for (u32 i = 0; i < sizeof code; i++)
        code[i] = next() >> 20 & 7;
    static const void *const labels[8] = {&&l0, &&l1, &&l2, &&l3, &&l4, &&l5, &&l6, &&l7};
    u64 acc = 1;
    u32 at = 0, left = 12000000;
#define NEXT                                                                                       \
    if (!--left)                                                                                   \
        return acc;                                                                                \
    at = (at + 1) & 4095;                                                                          \
    goto *labels[code[at]]
    NEXT;
l0: acc += 3; NEXT;
l1: acc ^= at; NEXT;
l2: acc <<= 1; NEXT;
l3: acc -= 7; NEXT;
l4: acc = acc >> 3 | acc << 61; NEXT;
l5: acc += acc << 2; NEXT;
l6: acc = ~acc; NEXT;
l7: acc ^= acc >> 9; NEXT;
}

static u64 sieve(void)
{
    const u32 limit = 4 * MIB;
    u64 count = 0;
    for (u32 i = 0; i < limit; i++)
        arena[i] = 1;
    for (u32 i = 2; i < limit; i++) {
        if (!arena[i])
            continue;
        count++;
        for (u32 j = 2 * i; j < limit; j += i)
            arena[j] = 0;
    }
    return count;
}

static const u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
static u32 rotate(u32 x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(u32 h[8], const u8 *p)
{
    u32 w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (u32)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    for (int i = 0; i < 8; i++)
        s[i] = h[i];
    for (int i = 0; i < 64; i++) {
        u32 t1 = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                 ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
        u32 t2 = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                 ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int j = 7; j > 0; j--)
            s[j] = s[j - 1];
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        h[i] += s[i];
}
static u64 sha256(void)
{
    u32 h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (u32 i = 0; i < 4096; i++)
        arena[i] = i * 7;
    for (u32 turn = 0; turn < 60000; turn++)
        sha256_block(h, arena + 64 * (turn & 63));
    return (u64)h[0] << 32 | h[1];
}

static u64 compressor(void) /* LZ77 with a hash table of last places, on words made of chance */
{
    static const char *const words[8] = {"disk ", "image ", "cluster ", "extent ",
                                         "block ", "map ", "\n", "refcount "};
    u8 *in = arena, *out = arena + MIB;
    u32 *table = (u32 *)(arena + 3 * MIB);
    u32 size = 0, total = 0;
    seed = 4711;
    while (size < 512 * 1024)
        for (const char *w = words[next() >> 11 & 7]; *w; w++)
            in[size++] = *w;
    for (u32 turn = 0; turn < 6; turn++) {
        u32 o = 0, i = 0;
        for (u32 k = 0; k < 1 << 14; k++)
            table[k] = 0;
        while (i + 4 < size) {
            u32 four = *(u32 *)(in + i), slot = four * 2654435761u >> 18, last = table[slot];
            table[slot] = i;
            u32 length = 0;
            if (last < i && i - last < 65536 && *(u32 *)(in + last) == four)
                for (length = 4; i + length < size && length < 255; length++)
                    if (in[last + length] != in[i + length])
                        break;
            if (length) {
                out[o++] = 255;
                out[o++] = length;
                out[o++] = (i - last) >> 8;
                out[o++] = i - last;
                i += length;
            } else {
                out[o++] = in[i++];
            }
        }
        total += o;
    }
    u64 sum = total;
    for (u32 i = 0; i < 65536; i++)
        sum = sum * 31 + out[i];
    return sum;
}

static u64 x87_loop(void)
{
    u64 inside = 0;
    for (int y = 0; y < 90; y++)
        for (int x = 0; x < 120; x++) {
            long double cr = x * (3.0L / 120) - 2.2L, ci = y * (2.4L / 90) - 1.2L, r = 0, i = 0;
            int n = 0;
            for (; n < 100 && r * r + i * i < 4; n++) {
                long double t = r * r - i * i + cr;
                i = 2 * r * i + ci;
                r = t;
            }
            inside += n;
        }
    return inside;
}

typedef float v4 __attribute__((vector_size(16)));
static u64 sse_loop(void)
{
    u64 inside = 0;
    double energy = 0;
    for (int y = 0; y < 120; y++)
        for (int x = 0; x < 160; x++) {
            double cr = x * (3.0 / 160) - 2.2, ci = y * (2.4 / 120) - 1.2, r = 0, i = 0;
            int n = 0;
            for (; n < 100 && r * r + i * i < 4; n++) {
                double t = r * r - i * i + cr;
                i = 2 * r * i + ci;
                r = t;
            }
            inside += n;
            energy += r;
        }
    v4 *a = (v4 *)arena, sum = {0, 0, 0, 0};
    for (u32 i = 0; i < 4096; i++)
        a[i] = (v4){i, i * 0.5f, i * 0.25f, 1};
    for (u32 turn = 0; turn < 400; turn++)
        for (u32 i = 0; i < 4096; i++)
            sum = sum * (v4){0.5f, 0.25f, 0.75f, 0.5f} + a[i];
    return inside + (u64)(long)sum[0] + (u64)(long)(energy * 1000);
}

static u64 page_faults(void)
{
    assembly->faults(60000);
    return *(u32 *)0x800000;
}

static u64 syscalls(void)
{
    assembly->syscalls(400000);
    return 400000;
}

static u64 self_modifying(void) /* mov eax, N; ret, with a new N each 64 calls */
{
    u8 *code = arena + 64;
    u64 sum = 0;
    code[0] = 0xb8;
    code[5] = 0xc3;
    for (u32 turn = 0; turn < 3000; turn++) {
        *(u32 *)(code + 1) = turn;
        for (u32 i = 0; i < 64; i++)
            sum += ((u32(*)(void))code)();
    }
    return sum;
}

static const struct {
    const char *name;
    u64 (*work)(void);
} workloads[] = {
    {"integer loop", integer_loop},
    {"memory copy", memory_copy},
    {"pointer chase", pointer_chase},
    {"call and return", calls},
    {"indirect branches", indirect_branches},
    {"sieve", sieve},
    {"SHA-256", sha256},
    {"compressor", compressor},
    {"x87 loop", x87_loop},
    {"SSE loop", sse_loop},
    {"page faults", page_faults},
    {"system calls", syscalls},
    {"self-modifying", self_modifying},
};

#ifndef RUNS
#define RUNS 4
#endif
#ifndef CHOSEN /* a bit for each workload */
#define CHOSEN -1
#endif

__attribute__((section(".start"))) void start(const struct assembly *given)
{
    assembly = given;
    for (u32 i = 0; i < sizeof workloads / sizeof *workloads; i++) {
        u64 sum = 0;
        if (!(CHOSEN >> i & 1))
            continue;
        put('<');
        text(workloads[i].name);
        put('\n');
        for (u32 run = 0; run < RUNS; run++) {
            u64 (*volatile work)(void) = workloads[i].work; /* nobody may know what it comes to */
            put('S');
            sum = work();
            put('E');
        }
        put('=');
        hex(sum);
        put('\n');
    }
}
