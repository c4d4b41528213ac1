"""TFTP as a client sees it: RFC 1350, and the options of RFC 2347 to 2349."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.vm._machine.networks import parse_network
from vdisk.vm.clock import SECOND, VirtualClock
from vdisk.vm.net import tftp
from vdisk.vm.net.tftp import TftpServer

GUEST, GUEST6 = (bytes([10, 0, 2, 15]), 4000), (bytes(15) + b"\1", 4000)
GATEWAY, GATEWAY6 = bytes([10, 0, 2, 2]), bytes(15) + b"\2"
CONTENT = random.Random(3).randbytes(100_000)


class Client:
    """Sends datagrams and keeps the answers."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.heard: list[tuple[tuple[bytes, int], tuple[bytes, int], bytes]] = []
        self.server = TftpServer(str(folder), self.clock, lambda *words: self.heard.append(words))

    def say(
        self, data: bytes, port: int = tftp.PORT, *, guest: tuple[bytes, int] = GUEST
    ) -> list[bytes]:
        """The answers to a datagram."""
        self.heard.clear()
        gateway = GATEWAY if len(guest[0]) == 4 else GATEWAY6
        assert self.server.datagram(guest, (gateway, port), data)
        return [data for _, _, data in self.heard]

    def ask(
        self, name: str, *options: str, mode: str = "octet", guest: tuple[bytes, int] = GUEST
    ) -> bytes:
        """The answer to a request."""
        words = (name, mode, *options)
        request = b"\0\1" + b"".join(os.fsencode(word) + b"\0" for word in words)
        (answer,) = self.say(request, guest=guest)
        return answer

    @property
    def port(self) -> int:
        """Where the last answer came from."""
        return self.heard[-1][0][1]

    def fetch(self, name: str, *options: str, **more: str) -> bytes:
        """A whole file."""
        answer, found = self.ask(name, *options, **more), b""  # type: ignore[arg-type]
        port, size = self.port, 512
        if answer[1] == tftp.OACK:
            taken = dict(zip(*[iter(answer[2:-1].split(b"\0"))] * 2, strict=True))
            size = int(taken.get(b"blksize", 512))
            (answer,) = self.say(b"\0\4\0\0", port)
        for block in range(1, 1 << 20):
            assert answer[:4] == b"\0\3" + (block & 0xFFFF).to_bytes(2)
            found += answer[4:]
            replies = self.say(b"\0\4" + answer[2:4], port)
            if len(answer) - 4 < size:
                assert replies == []
                return found
            (answer,) = replies
        raise AssertionError("endless")


@pytest.fixture
def client(tmp_path: Path) -> Client:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(CONTENT)
    return Client(tmp_path / "served")


def error(answer: bytes) -> int:
    assert answer[:2] == b"\0\5" and answer.endswith(b"\0") and len(answer) > 5
    return int.from_bytes(answer[2:4])


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 100_000])
def test_files_of_any_size(client: Client, tmp_path: Path, size: int) -> None:
    (tmp_path / "served" / "other").write_bytes(CONTENT[:size])
    assert client.fetch("other") == CONTENT[:size]
    assert client.fetch("/other", "blksize", "1468") == CONTENT[:size]
    assert not client.server._transfers


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (["tsize", "0", "blksize", "1024"], b"tsize\x00100000\0blksize\x001024\0"),
        (["BLKSIZE", "65464", "novel", "1"], b"blksize\x001468\0"),
        (["timeout", "7"], b"timeout\x007\0"),
    ],
    ids=str,
)
def test_options(client: Client, options: list[str], taken: bytes) -> None:
    assert client.ask("file", *options) == b"\0\6" + taken
    assert client.fetch("file", *options) == CONTENT


@pytest.mark.parametrize(
    "options", [["blksize", "7"], ["blksize", "65465"], ["timeout", "0"], ["timeout", "x"], ["x"]]
)
def test_options_that_are_not_taken(client: Client, options: list[str]) -> None:
    assert client.ask("file", *options) == b"\0\3\0\1" + CONTENT[:512]


def test_over_ipv6_blocks_are_smaller(client: Client) -> None:
    answer = client.ask("file", "blksize", "1468", guest=GUEST6)
    assert answer == b"\0\6blksize\x001448\0" and client.heard[0][0][0] == GATEWAY6


def test_netascii(client: Client, tmp_path: Path) -> None:
    (tmp_path / "served" / "text").write_bytes(b"a\nb\rc\r\n" * 300)
    assert client.fetch("text", "tsize", "0", mode="NetASCII") == b"a\r\nb\r\0c\r\0\r\n" * 300


def test_block_numbers_begin_again(client: Client, tmp_path: Path) -> None:
    content = CONTENT * 6  # 75000 blocks
    (tmp_path / "served" / "large").write_bytes(content)
    assert client.fetch("large", "blksize", "8") == content


def test_what_is_lost_is_sent_again(client: Client) -> None:
    first = client.ask("file")
    client.clock.advance(client.clock.now() + SECOND)
    assert [data for _, _, data in client.heard] == [first, first]
    port = client.port
    (second,) = client.say(b"\0\4\0\1", port)
    assert client.say(b"\0\4\0\1", port) == []  # heard twice, answered once
    for _ in range(10):
        client.clock.advance(client.clock.now() + SECOND)
    assert len(client.heard) == tftp.ATTEMPTS - 1
    assert client.heard[-1][2] == second and not client.server._transfers
    assert error(*client.say(b"\0\4\0\2", port)) == tftp.UNKNOWN_TRANSFER


def test_the_timeout_that_was_asked_for(client: Client) -> None:
    client.ask("file", "timeout", "9")
    client.clock.advance(8 * SECOND)
    assert len(client.heard) == 1
    client.clock.advance(9 * SECOND)
    assert len(client.heard) == 2


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing", tftp.NOT_FOUND),
        ("", tftp.ACCESS_VIOLATION),
        ("folder", tftp.ACCESS_VIOLATION),
        ("pipe", tftp.ACCESS_VIOLATION),
        ("../secret", tftp.ACCESS_VIOLATION),
        ("folder/../../secret", tftp.ACCESS_VIOLATION),
        ("folder/../file", tftp.ACCESS_VIOLATION),
        ("//../secret", tftp.ACCESS_VIOLATION),
        ("link", tftp.ACCESS_VIOLATION),
        ("links/secret", tftp.ACCESS_VIOLATION),
        ("file/more", tftp.ACCESS_VIOLATION),
        ("x" * 500, tftp.ACCESS_VIOLATION),
        ("loop", tftp.ACCESS_VIOLATION),
    ],
)
def test_nothing_outside_of_the_folder(
    client: Client, tmp_path: Path, name: str, code: int
) -> None:
    served = tmp_path / "served"
    (tmp_path / "secret").write_bytes(b"secret")
    (served / "folder").mkdir()
    os.mkfifo(served / "pipe")
    (served / "link").symlink_to(tmp_path / "secret")
    (served / "links").symlink_to(tmp_path)
    (served / "loop").symlink_to(served / "loop")
    assert error(client.ask(name)) == code and not client.server._transfers


def test_links_inside_of_the_folder(client: Client, tmp_path: Path) -> None:
    (tmp_path / "served" / "link").symlink_to("file")
    assert client.fetch("link") == CONTENT


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\0\2file\0octet\0", tftp.ACCESS_VIOLATION),
        (b"\0\1file\0mail\0", tftp.ILLEGAL),
        (b"\0\1file\0octet", tftp.ILLEGAL),
        (b"\0\1file\0", tftp.ILLEGAL),
        (b"\0\1", tftp.ILLEGAL),
        (b"", tftp.ILLEGAL),
        (b"\0\4\0\1", tftp.ILLEGAL),
        (b"\0\1" + b"x" * 2000 + b"\0octet\0", tftp.ILLEGAL),
    ],
)
def test_requests_that_are_none(client: Client, request_: bytes, code: int) -> None:
    assert error(*client.say(request_)) == code


def test_ends_by_the_client(client: Client) -> None:
    client.ask("file")
    assert client.say(b"\0\5\0\0stop\0", client.port) == [] and not client.server._transfers
    client.ask("file")
    first = client.port
    client.ask("file")  # again, from the same port
    assert len(client.server._transfers) == 1 and client.port != first
    assert error(*client.say(b"\0\4\0\1", client.port, guest=(GUEST[0], 9))) == 5
    assert len(client.server._transfers) == 1


def test_transfers_are_bounded(client: Client) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for port in range(500):
        client.ask("file", guest=(GUEST[0], port))
    assert len(client.server._transfers) == tftp.MAX_TRANSFERS
    client.server.reset()
    assert not client.server._transfers and client.clock.next_deadline() is None
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_other_ports_are_not_the_servers(client: Client) -> None:
    assert not client.server.datagram(GUEST, (GATEWAY, 70), b"")


def test_how_it_is_asked_for(tmp_path: Path) -> None:
    spec = parse_network(f"user,tftp={tmp_path},bootfile=pxelinux.0,restrict=on")
    assert (spec.tftp, spec.bootfile, spec.restrict) == (str(tmp_path), "pxelinux.0", True)
    with pytest.raises(InvalidRequestError, match="127 bytes"):
        parse_network("user,bootfile=" + "x" * 128)
    with pytest.raises(InvalidRequestError, match="no such folder"):
        TftpServer("/nowhere", VirtualClock(), lambda *_: None)
