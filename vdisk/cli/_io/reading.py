"""read, readv and aio_read: pattern checks and dumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli._io.arguments import (
    Arguments,
    CommandFailed,
    UsageError,
    parse_number,
    parse_pattern,
)
from vdisk.cli._io.report import hex_dump
from vdisk.cli._io.requests import (
    attempt,
    offset_and_length,
    offset_and_lengths,
    print_statistics,
    split,
    target,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.cli._io.session import Session

_COMPARED_AT_ONCE = 1 << 20


def matches(content: bytearray, pattern: int, start: int, length: int) -> bool:
    """True if ``length`` bytes from ``start`` on are all ``pattern``."""
    block, end = bytes([pattern]) * _COMPARED_AT_ONCE, start + length
    return all(
        content.startswith(block[: end - position], position)  # much faster than comparing views
        for position in range(start, end, _COMPARED_AT_ONCE)
    )


class PatternCheck:
    """``-P pattern [-s start] [-l length]``: what the bytes that were read should be."""

    def __init__(self, arguments: Arguments) -> None:
        options = arguments.options
        self._pattern = parse_pattern(options["P"]) if "P" in options else None
        if self._pattern is None and ("s" in options or "l" in options):
            raise UsageError
        self._start = parse_number(options.get("s", "0"))
        self._length = parse_number(options["l"]) if "l" in options else None

    def resolve(self, length: int) -> tuple[int, int]:
        """The range to check of ``length`` bytes read: where it starts, how long it is."""
        checked = length - self._start if self._length is None else self._length
        if checked < 0 or self._start + checked > length:
            raise CommandFailed("pattern verification range exceeds end of read data")
        return self._start, checked

    def failed(self, content: bytearray, offset: int) -> bool:
        """Check ``content``, read from ``offset``; a mismatch is printed."""
        if self._pattern is None:
            return False
        start, length = self.resolve(len(content))
        if matches(content, self._pattern, start, length):
            return False
        print(f"Pattern verification failed at offset {offset + start}, {length} bytes")
        return True


def _show(arguments: Arguments, content: bytearray, offset: int, seconds: float) -> None:
    """The dump and the statistics of a read."""
    if arguments.has("v") and not arguments.has("q"):
        for line in hex_dump(content, offset):
            print(line)
    print_statistics(arguments, "read", offset, len(content), seconds)


def read(session: Session, arguments: Arguments) -> None:
    """read off len"""
    check = PatternCheck(arguments)
    offset, length = offset_and_length(arguments)
    check.resolve(length)
    device = target(session, arguments, "read", offset, length)
    content = bytearray(length)
    seconds = timed("read", lambda: device.read_into(offset, content))
    mismatch = check.failed(content, offset)
    _show(arguments, content, offset, seconds)
    if mismatch:
        raise CommandFailed


def readv(session: Session, arguments: Arguments) -> None:
    """readv off len [len..]"""
    check = PatternCheck(arguments)
    offset, lengths = offset_and_lengths(arguments)
    content = bytearray(sum(lengths))
    views = split(content, lengths)
    seconds = timed("readv", lambda: session.device.readv(offset, views))
    mismatch = check.failed(content, offset)
    _show(arguments, content, offset, seconds)
    if mismatch:
        raise CommandFailed


def aio_read(session: Session, arguments: Arguments) -> None:
    """aio_read off len [len..]: a readv that reports when it is done."""
    if arguments.has("i"):
        print("injecting invalid read request")
        return
    check = PatternCheck(arguments)
    offset, lengths = offset_and_lengths(arguments)
    device = session.device

    def request() -> Callable[[], None]:
        content = bytearray(sum(lengths))
        result = attempt("readv", lambda: device.readv(offset, split(content, lengths)))

        def report() -> None:
            seconds = result()
            check.failed(content, offset)
            _show(arguments, content, offset, seconds)

        return report

    session.submit(request)
