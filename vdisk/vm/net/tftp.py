"""TFTP: files of one folder, for a guest that boots from the network (RFC 1350; options 2347-2349).

::

    1 RRQ    name 0 mode 0 (option 0 value 0)*          4 ACK    block (16)
    3 DATA   block (16)  data                           5 ERROR  code (16)  text 0
    6 OACK   (option 0 value 0)*    block 0 of what an option was asked for

Each transfer has a port of ours.  A block is sent again when its ACK does not come, but not for an
ACK that comes twice (RFC 1123, 4.2.3.1).  Nothing is written; nothing outside the folder is read,
through links neither.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from vdisk.errors import InvalidRequestError
from vdisk.vm.clock import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.clock import Clock
    from vdisk.vm.net.udp import Address, Deliver

PORT: Final = 69
RRQ, WRQ, DATA, ACK, ERROR, OACK = range(1, 7)
UNDEFINED, NOT_FOUND, ACCESS_VIOLATION, ILLEGAL, UNKNOWN_TRANSFER = 0, 1, 2, 4, 5

MAX_TRANSFERS: Final = 32
"""At once; the one that was quiet longest makes room for another."""
PORTS: Final = range(60000, 60000 + 2 * MAX_TRANSFERS)
"""Of the gateway, which transfers come from in turn."""
BLOCK_SIZE: Final = 512
SMALLEST_BLOCK, LARGEST_BLOCK = 8, 65464  # RFC 2348
LARGEST_IPV4: Final = 1500 - 20 - 8 - 4
LARGEST_IPV6: Final = LARGEST_IPV4 - 20
"""Bytes of a block that still fit in one packet: the drivers in ROMs put no fragments together."""
LONGEST_REQUEST: Final = 1024
LONGEST_TIMEOUT: Final = 255  # seconds; RFC 2349
USUAL_TIMEOUT: Final = 1
ATTEMPTS: Final = 6
CHUNK: Final = 64 << 10


class RefusedError(Exception):
    """An answer of the kind ERROR; never leaves this module."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.message = b"\0\5" + code.to_bytes(2) + text.encode() + b"\0"


class Transfer:
    """One file on its way.  ``ours``: address and port that it comes from."""

    def __init__(self, descriptor: int, ours: Address, guest: Address, *, netascii: bool) -> None:
        self.descriptor, self.ours, self.guest = descriptor, ours, guest
        self.netascii = netascii
        self.block_size = BLOCK_SIZE
        self.timeout = USUAL_TIMEOUT * SECOND
        self.deadline = 0
        self.attempts = 0
        self.block = 0
        """Number of the last message: 0 is the OACK."""
        self.message = b""
        """To be sent again where no ACK comes."""
        self.last = False
        self._offset = 0
        self._unsent = b""

    def next_block(self) -> None:
        """Let the next block be the message."""
        while len(self._unsent) < self.block_size:
            chunk = os.pread(self.descriptor, CHUNK, self._offset)
            self._offset += len(chunk)
            if not chunk:
                break
            if self.netascii:  # RFC 764: the end of a line is CR LF, a CR by itself CR NUL
                chunk = chunk.replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")
            self._unsent += chunk
        data, self._unsent = self._unsent[: self.block_size], self._unsent[self.block_size :]
        self.block += 1
        self.last = len(data) < self.block_size
        self.message = b"\0\3" + (self.block & 0xFFFF).to_bytes(2) + data

    def negotiate(self, options: dict[str, str]) -> None:
        """Take the options that are known; the message is then an OACK (RFC 2347)."""
        taken = {}
        for name, value in options.items():
            number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
            if name == "blksize" and SMALLEST_BLOCK <= number <= LARGEST_BLOCK:
                most = LARGEST_IPV4 if len(self.guest[0]) == 4 else LARGEST_IPV6
                taken[name] = self.block_size = min(number, most)
            elif name == "timeout" and 1 <= number <= LONGEST_TIMEOUT:
                taken[name] = number
                self.timeout = number * SECOND
            elif name == "tsize" and not self.netascii:  # its size is not known before
                taken[name] = os.fstat(self.descriptor).st_size
        if taken:
            words = (f"{name}\0{value}\0" for name, value in taken.items())
            self.message = b"\0\6" + "".join(words).encode()
        else:
            self.next_block()


class TftpServer:
    """Serves the files under ``folder``; ``send(source, target, data)`` is how it speaks.

    Everything is called with the bus lock held.  Raises :class:`InvalidRequestError` for a folder
    that is none.
    """

    def __init__(self, folder: str, clock: Clock, send: Deliver) -> None:
        if not os.path.isdir(folder):
            raise InvalidRequestError(f"tftp={folder}: there is no such folder")
        self._root = os.path.realpath(folder)
        self._clock, self._send = clock, send
        self._transfers: dict[int, Transfer] = {}
        self._next_port = 0
        self._timer = clock.timer(self._tick)

    def datagram(self, guest: Address, server: Address, data: bytes) -> bool:
        """A datagram of the guest to the gateway; False if it is not for this server's ports."""
        if server[1] == PORT:
            self._guarded(guest, server, lambda: self._request(guest, server[0], data))
        elif server[1] in PORTS:
            self._guarded(guest, server, lambda: self._answer(guest, server, data))
        else:
            return False
        return True

    def _guarded(self, guest: Address, server: Address, work: Callable[[], None]) -> None:
        """Say what went wrong; a transfer is then over."""
        try:
            work()
        except RefusedError as error:
            self._send(server, guest, error.message)
        except OSError as error:
            self._end(server[1])
            message = RefusedError(UNDEFINED, f"cannot read: {error.strerror}").message
            self._send(server, guest, message)
        self._schedule()

    # -- beginning ---------------------------------------------------------------------------

    def _request(self, guest: Address, address: bytes, data: bytes) -> None:
        kind = int.from_bytes(data[:2])
        if kind == WRQ:
            raise RefusedError(ACCESS_VIOLATION, "files are only read here")
        words = data[2:].split(b"\0")
        if kind != RRQ or len(words) < 3 or words.pop() or len(data) > LONGEST_REQUEST:
            raise RefusedError(ILLEGAL, "a request is a name and a mode")
        name, mode = words[0], words[1].lower()
        if mode not in {b"octet", b"netascii"}:
            raise RefusedError(ILLEGAL, "a mode is octet or netascii")
        descriptor = self._open(name)
        self._forget_request(guest)
        ours = address, self._free_port()
        transfer = Transfer(descriptor, ours, guest, netascii=mode == b"netascii")
        self._transfers[ours[1]] = transfer
        try:
            transfer.negotiate(_options(words[2:]))
        except OSError:
            self._end(ours[1])
            raise
        self._say(transfer)

    def _open(self, name: bytes) -> int:
        path = os.path.join(self._root, os.fsdecode(name.lstrip(b"/")))
        real = os.path.realpath(path)
        if b".." in name.split(b"/") or os.path.commonpath([self._root, real]) != self._root:
            raise RefusedError(ACCESS_VIOLATION, "that is outside of the folder")
        try:
            descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else ACCESS_VIOLATION
            raise RefusedError(code, error.strerror or "cannot open") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedError(ACCESS_VIOLATION, "that is no file")
        return descriptor

    def _forget_request(self, guest: Address) -> None:
        """The same port asks again: it did not hear, or it gave the former transfer up."""
        for port, transfer in list(self._transfers.items()):
            if transfer.guest == guest:
                self._end(port)

    def _free_port(self) -> int:
        if len(self._transfers) >= MAX_TRANSFERS:
            self._end(min(self._transfers, key=lambda port: self._transfers[port].deadline))
        while True:
            self._next_port = (self._next_port + 1) % len(PORTS)
            if PORTS[self._next_port] not in self._transfers:
                return PORTS[self._next_port]

    # -- going on ----------------------------------------------------------------------------

    def _answer(self, guest: Address, server: Address, data: bytes) -> None:
        transfer = self._transfers.get(server[1])
        kind, block = int.from_bytes(data[:2]), int.from_bytes(data[2:4])
        if transfer is None or transfer.guest != guest or transfer.ours != server:
            if kind != ERROR:
                raise RefusedError(UNKNOWN_TRANSFER, "there is no such transfer")
        elif kind != ACK or len(data) < 4:
            self._end(transfer.ours[1])  # an ERROR, which is not answered, or nonsense
        elif block == transfer.block & 0xFFFF:
            if transfer.last:
                self._end(transfer.ours[1])
                return
            transfer.attempts = 0
            transfer.next_block()
            self._say(transfer)

    def _say(self, transfer: Transfer) -> None:
        transfer.deadline = self._clock.now() + transfer.timeout
        self._send(transfer.ours, transfer.guest, transfer.message)

    def _schedule(self) -> None:
        deadlines = [transfer.deadline for transfer in self._transfers.values()]
        if not deadlines:
            self._timer.cancel()
        elif self._timer.deadline is None or min(deadlines) < self._timer.deadline:
            self._timer.arm(min(deadlines))

    def _tick(self) -> None:
        """Say again what was not answered in time, or give it up."""
        now = self._clock.now()
        for port, transfer in list(self._transfers.items()):
            if transfer.deadline <= now:
                transfer.attempts += 1
                if transfer.attempts < ATTEMPTS:
                    self._say(transfer)
                else:
                    self._end(port)
        self._schedule()

    def _end(self, port: int) -> None:
        transfer = self._transfers.pop(port, None)
        if transfer is not None:
            os.close(transfer.descriptor)

    def reset(self) -> None:
        """Nobody is there any more who could be waiting."""
        for port in list(self._transfers):
            self._end(port)
        self._timer.cancel()


def _options(words: list[bytes]) -> dict[str, str]:
    """Pairs of words, the first of each name; what is not ASCII means nothing to us."""
    found: dict[str, str] = {}
    for name, value in zip(words[::2], words[1::2], strict=False):
        with suppress(UnicodeDecodeError):
            found.setdefault(name.decode("ascii").lower(), value.decode("ascii"))
    return found
