"""The user-mode network with this machine's kernel as its guest (see tests/tools/tap_guest)."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.peers import requires_peer
from tests.tools.tap_guest import TapGuest, check_possible
from vdisk.vm.net.forwards import Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[..., int]

pytestmark = requires_peer("ip", "unshare")

DATA = random.Random(9).randbytes(3 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _possible() -> None:
    check_possible()


@pytest.fixture
def server() -> Iterator[Serve]:
    """Starts a server of the host's loopback that serves one connection; its port."""
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> int:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=kind)
        listener.settimeout(60)
        listeners.append(listener)

        def run() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(60)
                serve(sock)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(60)
    for listener in listeners:
        listener.close()


UPLOAD = """
import socket, random
data = random.Random(9).randbytes(3 << 20)
with socket.create_connection(("10.0.2.2", {port}), 60) as sock:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    result = sock.recv(100)
"""
CONNECT = """
import socket
socket.create_connection(("10.0.2.2", {port}), 30)
"""
DOWNLOAD = """
import socket, hashlib
with socket.create_connection(("10.0.2.2", {port}), 60) as sock:
    data = b""
    while part := sock.recv(65536):
        data += part
result = len(data), hashlib.sha256(data).hexdigest()
"""

KINDS = [{"offload": True}, {"offload": False}, {"offload": True, "drop_every": 37}]


IPV6_GATEWAY = "fec0::2"
SETTLED = """
import subprocess, time
for _ in range(300):
    told = subprocess.run(["ip", "-6", "addr", "show"], capture_output=True, text=True).stdout
    if "fec0::" in told and "tentative" not in told:
        break
    time.sleep(0.1)
result = told
"""
"""Waits until the kernel has made an address of the prefix, which nobody else has."""


def received(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_tcp_to_the_host(server: Serve, options: dict[str, int]) -> None:
    def take(sock: socket.socket) -> None:
        sock.sendall(hashlib.sha256(received(sock)).hexdigest().encode())

    with TapGuest(**options) as guest:
        assert guest.run(UPLOAD.format(port=server(take))) == DIGEST.encode()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_tcp_from_the_host(server: Serve, options: dict[str, int]) -> None:
    with TapGuest(**options) as guest:
        port = server(lambda sock: sock.sendall(DATA))
        assert guest.run(DOWNLOAD.format(port=port)) == (len(DATA), DIGEST)


def test_a_slow_reader_holds_the_host_back(
    server: Serve,
) -> None:
    code = DOWNLOAD.replace("    data = b", "    import time; time.sleep(1)\n    data = b")
    with TapGuest() as guest:
        port = server(lambda sock: sock.sendall(DATA))
        assert guest.run(code.format(port=port)) == (len(DATA), DIGEST)


def test_nobody_listens() -> None:
    with TapGuest() as guest:
        assert "refused" in guest.run(
            "import socket\nsocket.create_connection(('10.0.2.2', 1), 30)"
        )


def test_a_forward_to_the_guest() -> None:
    code = """
import socket, threading
listener = socket.create_server(("0.0.0.0", 2222))
def serve():
    sock, peer = listener.accept()
    data = b""
    while part := sock.recv(65536):
        data += part
    sock.sendall(data[::-1])
    sock.close()
threading.Thread(target=serve, daemon=True).start()
"""
    with TapGuest(forwards=[Forward.parse("tcp:127.0.0.1:0-:2222")]) as guest:
        guest.run(code)
        (forward,) = guest.network.forwards
        port = forward.host_port
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(DATA[:300000])
            sock.shutdown(socket.SHUT_WR)
            assert received(sock) == DATA[:300000][::-1]


@pytest.mark.parametrize("size", [1, 1400, 5000])
def test_datagrams_both_ways(size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, TapGuest() as guest:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)
        port = server.getsockname()[1]

        def serve() -> None:
            data, peer = server.recvfrom(65536)
            server.sendto(data * (size // 1000 + 1), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        code = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(30)
sock.sendto(b"x" * {min(size, 1400)}, ("10.0.2.2", {port}))
data, peer = sock.recvfrom(65536)
result = len(data), peer
"""
        expected = min(size, 1400) * (size // 1000 + 1)
        assert guest.run(code) == (expected, ("10.0.2.2", port))
        thread.join()


def test_names_by_the_hosts_resolver() -> None:
    code = """
import socket
query = bytes.fromhex("123401000001000000000000096c6f63616c686f73740000010001")
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(30)
sock.sendto(query, ("10.0.2.3", 53))
result = sock.recv(512)
"""
    with TapGuest(server="") as guest:
        answer = guest.run(code)
    assert answer[:2] == b"\x12\x34" and answer[3] & 0xF == 0
    assert answer.endswith(socket.inet_aton("127.0.0.1"))


def test_the_gateway_answers_to_ping() -> None:
    code = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.settimeout(30)
body = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"ping"
total = sum(struct.unpack("!6H", body))
total = (total & 0xFFFF) + (total >> 16)
sock.sendto(body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:], ("10.0.2.2", 0))
data = sock.recv(100)
result = data[20], data[24:]
"""
    with TapGuest() as guest:
        assert guest.run(code) == (0, b"\0\7\0\1ping")


def test_a_restricted_guest_reaches_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, TapGuest(restrict=True) as guest:
        port = listener.getsockname()[1]
        assert "refused" in guest.run(CONNECT.format(port=port))


def test_many_connections_at_once() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    port = listener.getsockname()[1]

    def serve() -> None:
        for _ in range(100):
            sock, _ = listener.accept()
            sock.sendall(sock.recv(100).upper())
            sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    code = f"""
import socket
socks = [socket.create_connection(("10.0.2.2", {port}), 30) for _ in range(100)]
for number, sock in enumerate(socks):
    sock.sendall(b"n%d" % number)
result = [sock.recv(100) for sock in socks] == [b"N%d" % number for number in range(100)]
"""
    with TapGuest() as guest:
        assert guest.run(code) is True
    thread.join()
    listener.close()


@pytest.fixture
def ipv6_here() -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("needs a kernel with IPv6")


@pytest.mark.usefixtures("ipv6_here")
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_ipv6_to_the_host_and_back(server: Serve, options: dict[str, int]) -> None:
    def echo(sock: socket.socket) -> None:
        data = received(sock)
        sock.sendall(hashlib.sha256(data).hexdigest().encode())
        sock.sendall(data)

    code = UPLOAD.replace("10.0.2.2", IPV6_GATEWAY).replace(
        "result = sock.recv(100)", "result = b''.join(iter(lambda: sock.recv(65536), b''))"
    )
    with TapGuest(**options) as guest:
        guest.run(SETTLED)
        data = guest.run(
            code.format(port=server(echo, "::1")) + "result = result[:64], len(result)"
        )
    assert data == (DIGEST.encode(), 64 + len(DATA))


@pytest.mark.usefixtures("ipv6_here")
def test_what_an_ipv6_router_tells() -> None:
    with TapGuest() as guest:
        assert "inet6 fec0::" in guest.run(SETTLED)
        routes = guest.run(
            "import subprocess\n"
            "words = ['ip', '-6', 'route', 'show', 'default']\n"
            "result = subprocess.run(words, capture_output=True, text=True).stdout"
        )
        assert "via fe80::2 dev guest0" in routes
        nobody = "import socket\nsocket.create_connection(('fec0::2', 1), 30)"
        assert "refused" in guest.run(nobody)
    with TapGuest(restrict=True) as guest:
        guest.run(SETTLED)
        assert "refused" in guest.run(nobody.replace("fec0::2", "2001:db8::1"))
