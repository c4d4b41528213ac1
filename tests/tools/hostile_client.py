"""A client that means harm: every field wrong in turn, floods, silence, half-closed sockets.

Speaks bytes, not the project's machines, so that it can say what those never would.
:data:`HANDSHAKE_FAULTS` and :data:`REQUEST_FAULTS` name each fault; a server may answer it with
an error or end the connection, and must go on serving others.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from tests.tools.patience import PATIENCE
from vdisk.nbd.wire import (
    IHAVEOPT,
    NBD_REP_FLAG_ERROR,
    NBD_REQUEST_MAGIC,
    OPTION_REPLY_HEADER,
    Command,
    Option,
    OptionReply,
)

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

GREETING_LENGTH: Final = 18


def option(number: int, data: bytes = b"", *, magic: int = IHAVEOPT, length: int = -1) -> bytes:
    """An option; ``length`` says something else than how long its data is."""
    return struct.pack(">QII", magic, number, len(data) if length < 0 else length) + data


def go(name: bytes = b"", *, name_length: int = -1, requests: int = 0, tail: bytes = b"") -> bytes:
    """NBD_OPT_GO whose data may contradict itself."""
    length = len(name) if name_length < 0 else name_length
    data = struct.pack(">I", length) + name + struct.pack(">H", requests) + tail
    return option(Option.NBD_OPT_GO, data)


def contexts(name: bytes, queries: list[bytes], *, count: int = -1) -> bytes:
    data = struct.pack(">I", len(name)) + name
    data += struct.pack(">I", len(queries) if count < 0 else count)
    for query in queries:
        data += struct.pack(">I", len(query)) + query
    return option(Option.NBD_OPT_SET_META_CONTEXT, data)


def request(
    command: int = Command.NBD_CMD_READ,
    offset: int = 0,
    length: int = 4096,
    *,
    flags: int = 0,
    cookie: int = 1,
    magic: int = NBD_REQUEST_MAGIC,
    payload: bytes = b"",
) -> bytes:
    """A request in the compact form, with any field whatever it likes."""
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload


FLAGS: Final = struct.pack(">I", 3)
STRUCTURED: Final = option(Option.NBD_OPT_STRUCTURED_REPLY)

HANDSHAKE_FAULTS: Final = {
    "unknown client flags": struct.pack(">I", 0xFFFF_FFFF),
    "no fixed newstyle, then an option": struct.pack(">I", 0) + option(Option.NBD_OPT_LIST),
    "wrong option magic": FLAGS + option(Option.NBD_OPT_LIST, magic=0x1234),
    "old magic": FLAGS + option(Option.NBD_OPT_LIST, magic=0x00420281861253),
    "unknown option": FLAGS + option(0xDEAD, b"x" * 100),
    "withdrawn option": FLAGS + option(Option.NBD_OPT_PEEK_EXPORT),
    "enormous option": FLAGS + option(Option.NBD_OPT_LIST, length=0xFFFF_FFFF),
    "large option": FLAGS + option(Option.NBD_OPT_GO, bytes(200_000)),
    "data in LIST": FLAGS + option(Option.NBD_OPT_LIST, b"surprise"),
    "STARTTLS without TLS": FLAGS + option(Option.NBD_OPT_STARTTLS),
    "unknown export": FLAGS + go(b"no such export"),
    "unknown export by EXPORT_NAME": FLAGS + option(Option.NBD_OPT_EXPORT_NAME, b"nope"),
    "name longer than the data": FLAGS + go(b"abc", name_length=1000),
    "name of 4 GiB": FLAGS + go(b"abc", name_length=0xFFFF_FFFF),
    "name of 5000 bytes": FLAGS + go(b"n" * 5000),
    "name with a NUL": FLAGS + go(b"a\0b"),
    "name that is no UTF-8": FLAGS + go(b"\xff\xfe"),
    "more information requests than data": FLAGS + go(requests=65535),
    "bytes after the requests": FLAGS + go(tail=b"more"),
    "contexts before structured replies": FLAGS + contexts(b"", [b"base:allocation"]),
    "context without namespace": FLAGS + STRUCTURED + contexts(b"", [b"allocation"]),
    "more queries than data": FLAGS + STRUCTURED + contexts(b"", [b"base:"], count=0xFFFF_FFFF),
    "extended headers, then EXPORT_NAME": FLAGS
    + option(Option.NBD_OPT_EXTENDED_HEADERS)
    + option(Option.NBD_OPT_EXPORT_NAME),
    "a request instead of an option": FLAGS + request(),
    "HTTP": b"GET / HTTP/1.1\r\nHost: nbd\r\n\r\n",
    "TLS without asking": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}

REQUEST_FAULTS: Final = {
    "wrong magic": request(magic=0x12345678),
    "reply magic": request(magic=0x67446698),
    "unknown command": request(99),
    "unknown flags": request(flags=0xFF00),
    "FUA on a read of nothing": request(flags=1, length=0),
    "read past the end": request(offset=1 << 40),
    "read at the last offset": request(offset=(1 << 64) - 1),
    "read that wraps around": request(offset=(1 << 64) - 4096, length=8192),
    "read of 4 GiB": request(length=0xFFFF_FFFF),
    "write past the end": request(1, 1 << 40, 4096, payload=bytes(4096)),
    "write that announces 4 GiB": request(1, 0, 0xFFFF_FFFF),
    "write of more than is allowed": request(1, 0, 33 << 20) + bytes(33 << 20),
    "write of nothing": request(1, 0, 0),
    "trim past the end": request(Command.NBD_CMD_TRIM, 1 << 40),
    "zeroing past the end": request(Command.NBD_CMD_WRITE_ZEROES, (1 << 64) - 1, 0xFFFF_FFFF),
    "flush with a range": request(Command.NBD_CMD_FLUSH, 4096, 4096),
    "status without contexts": request(Command.NBD_CMD_BLOCK_STATUS),
    "extended header unasked": struct.pack(">IHHQQQ", 0x21E41C71, 0, 0, 1, 0, 4096),
    "same cookie twice": request(cookie=7) + request(cookie=7),
    "cookie of all ones": request(cookie=(1 << 64) - 1),
    "an option again": option(Option.NBD_OPT_LIST),
}


class HostileClient:
    """A raw connection to the server at a unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of ``data``; False if the server closed the connection meanwhile."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, length: int) -> bytes:
        """So many bytes, or fewer if the server closed the connection."""
        data = bytearray()
        while len(data) < length:
            try:
                part = self.socket.recv(length - len(data))
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        return bytes(data)

    def closed(self) -> bool:
        """Whether the server closes the connection, whatever it says before."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def begin(self, export: bytes = b"") -> int:
        """A handshake as it should be, by simple replies; the export's size."""
        assert len(self.receive(GREETING_LENGTH)) == GREETING_LENGTH
        self.send(FLAGS + go(export))
        size = 0
        while True:
            header = self.receive(OPTION_REPLY_HEADER.size)
            _magic, _option, reply, length = OPTION_REPLY_HEADER.unpack(header)
            data = self.receive(length)
            assert not reply & NBD_REP_FLAG_ERROR, data
            if reply == OptionReply.NBD_REP_ACK:
                return size
            if reply == OptionReply.NBD_REP_INFO and data[:2] == b"\0\0":
                (size,) = struct.unpack_from(">Q", data, 2)
