"""Reading and writing: read, write, readv, writev, aio_read, aio_write, discard."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from vdisk.block import Kind
from vdisk.cli._io.arguments import (
    Arguments,
    CommandFailed,
    UsageError,
    parse_length,
    parse_lengths,
    parse_number,
    parse_pattern,
)
from vdisk.cli._io.report import hex_dump, statistics
from vdisk.cli._io.session import complain
from vdisk.errors import (
    DeviceError,
    InvalidRequestError,
    OutOfRangeError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.units import round_down, round_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice, Extent
    from vdisk.cli._io.session import Session

DEFAULT_PATTERN = 0xCD
"""What write fills its buffer with unless told otherwise."""

_COMPARED_AT_ONCE = 1 << 20
_COPIED_AT_ONCE = 1 << 24
_SECTOR = 512


def failure(operation: str, error: VdiskError) -> CommandFailed:
    """What a script reads when a request fails; where that is too terse, stderr says more."""
    plain = isinstance(error, DeviceError | OutOfRangeError)
    if not plain:
        complain(f"vdisk io: {error}")
    number = errno.EIO if isinstance(error, OutOfRangeError) else error.errno
    return CommandFailed(f"{operation} failed: {os.strerror(number)}")


def _timed(operation: str, action: Callable[[], None]) -> float:
    """Run ``action``; the seconds it took.  Raises :class:`CommandFailed`."""
    began = time.perf_counter()
    try:
        action()
    except VdiskError as error:
        raise failure(operation, error) from error
    return time.perf_counter() - began


def _print_statistics(
    arguments: Arguments, verb: str, offset: int, length: int, seconds: float
) -> None:
    if not arguments.has("q"):
        print(statistics(verb, offset, length, seconds, machine=arguments.has("C")))


def _offset_and_length(arguments: Arguments, *, hint: str = "") -> tuple[int, int]:
    if len(arguments.operands) != 2:
        raise UsageError
    offset = parse_number(arguments.operands[0])
    return offset, parse_length(arguments.operands[1], hint=hint)


def _offset_and_lengths(arguments: Arguments) -> tuple[int, list[int]]:
    if len(arguments.operands) < 2:
        raise UsageError
    return parse_number(arguments.operands[0]), parse_lengths(arguments.operands[1:])


# -- reading -------------------------------------------------------------------------------------


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
    _print_statistics(arguments, "read", offset, len(content), seconds)


def read(session: Session, arguments: Arguments) -> None:
    """read off len"""
    check = PatternCheck(arguments)
    offset, length = _offset_and_length(arguments)
    check.resolve(length)
    device = _target(session, arguments, "read", offset, length)
    if not arguments.has("b"):
        _populate(session, offset, length)
    content = bytearray(length)
    seconds = _timed("read", lambda: device.read_into(offset, content))
    mismatch = check.failed(content, offset)
    _show(arguments, content, offset, seconds)
    if mismatch:
        raise CommandFailed


def readv(session: Session, arguments: Arguments) -> None:
    """readv off len [len..]"""
    check = PatternCheck(arguments)
    offset, lengths = _offset_and_lengths(arguments)
    _populate(session, offset, sum(lengths))
    content = bytearray(sum(lengths))
    views = _split(content, lengths)
    seconds = _timed("readv", lambda: session.device.readv(offset, views))
    mismatch = check.failed(content, offset)
    _show(arguments, content, offset, seconds)
    if mismatch:
        raise CommandFailed


def _populate(session: Session, offset: int, length: int) -> None:
    """Copy on read: before clusters of backing files are read, the image gets them itself."""
    device = session.device
    if not session.settings.copy_on_read or offset + length > device.size:
        return
    session.finish_pending()  # what they write must not be overwritten with what was there before
    unit = getattr(device, "cluster_size", 1)
    start, end = round_down(offset, unit), min(round_up(offset + length, unit), device.size)
    for extent in list(device.map(start, end - start)):
        if is_allocated(extent):
            continue
        if extent.reads_zero:
            device.write_zeroes(extent.start, extent.length, unmap=False)
        else:
            for position in range(extent.start, extent.end, _COPIED_AT_ONCE):
                step = min(_COPIED_AT_ONCE, extent.end - position)
                device.write(position, device.read(position, step))


def is_allocated(extent: Extent) -> bool:
    """True if the top image itself says what the bytes are; its backing file does not count."""
    return extent.depth == 0 and extent.kind is not Kind.HOLE


def _split(content: bytes | bytearray, lengths: list[int]) -> list[memoryview]:
    views, position, whole = [], 0, memoryview(content)
    for length in lengths:
        views.append(whole[position : position + length])
        position += length
    return views


# -- writing -------------------------------------------------------------------------------------


def _content(arguments: Arguments, length: int) -> bytes:
    """What is to be written: a pattern byte, or a file (-s) again and again."""
    if "s" not in arguments.options:
        pattern = arguments.options.get("P")
        return bytes([DEFAULT_PATTERN if pattern is None else parse_pattern(pattern)]) * length
    path = arguments.options["s"]
    try:
        with open(path, "rb") as file:
            content = file.read(length)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", to_stderr=True) from error
    if not content:
        raise CommandFailed(f"{path}: file is empty", to_stderr=True)
    return (content * (length // len(content) + 1))[:length]


def _check_write_options(arguments: Arguments) -> None:
    has = arguments.has
    if has("b") and has("z"):
        raise CommandFailed("-b and -z cannot be specified at the same time")
    if has("f") and (has("b") or has("c")):
        raise CommandFailed("-f and -b or -c cannot be specified at the same time")
    _check_zero_options(arguments)
    if has("z") + has("P") + has("s") > 1:
        raise CommandFailed("Only one of -z, -P, and -s can be specified at the same time")
    if "P" in arguments.options:
        parse_pattern(arguments.options["P"])


def _check_zero_options(arguments: Arguments) -> None:
    for letter in "nu":
        if arguments.has(letter) and not arguments.has("z"):
            raise CommandFailed(f"-{letter} requires -z to be specified")


def _write_zeroes(session: Session, arguments: Arguments, offset: int, length: int) -> None:
    device = session.device
    if arguments.has("n") and not device.zeroes_fast:
        raise UnsupportedFeatureError("zeroing would be writing zeroes", path=device.name)
    unmap = arguments.has("u") and session.settings.discard
    device.write_zeroes(offset, length, unmap=unmap)


def write(session: Session, arguments: Arguments) -> None:
    """write off len"""
    _check_write_options(arguments)
    if arguments.has("z") and arguments.has("n") and len(arguments.operands) == 2:
        offset, length = map(parse_number, arguments.operands)
    else:
        offset, length = _offset_and_length(arguments, hint=" without -n")
    device = _target(session, arguments, "write", offset, length)
    data = b"" if arguments.has("z") else _content(arguments, length)

    def action() -> None:
        if arguments.has("z"):
            _write_zeroes(session, arguments, offset, length)
        elif arguments.has("c") and not arguments.has("b"):
            _write_compressed(device, offset, data)
        else:
            device.write(offset, data)
        if arguments.has("f"):
            device.flush()

    seconds = _timed("write", action)
    _print_statistics(arguments, "wrote", offset, length, seconds)


def writev(session: Session, arguments: Arguments) -> None:
    """writev off len [len..]"""
    offset, lengths = _offset_and_lengths(arguments)
    views = _split(_content(arguments, sum(lengths)), lengths)

    def action() -> None:
        session.device.writev(offset, views)
        if arguments.has("f"):
            session.device.flush()

    seconds = _timed("writev", action)
    _print_statistics(arguments, "wrote", offset, sum(lengths), seconds)


def _write_compressed(device: BlockDevice, offset: int, data: bytes) -> None:
    """``data`` as compressed clusters; one that does not shrink is stored as it is."""
    from vdisk.formats.qcow2 import Qcow2Image

    if not isinstance(device, Qcow2Image):
        raise UnsupportedFeatureError("the format has no compressed clusters", path=device.name)
    size = device.cluster_size
    end = offset + len(data)
    if end > device.size:
        raise OutOfRangeError("the write reaches past the end", path=device.name, offset=offset)
    if offset % size or (end % size and end != device.size):
        raise InvalidRequestError("compressed writes are whole clusters", path=device.name)
    for position in range(0, len(data), size):
        cluster = data[position : position + size]
        compressed = device.compress_cluster(cluster.ljust(size, b"\0"))
        if compressed is None:
            device.write(offset + position, cluster)
        else:
            device.write_compressed(offset + position, compressed)


def _target(
    session: Session, arguments: Arguments, operation: str, offset: int, length: int
) -> BlockDevice:
    """The device to use: the image, or with -b the area for the state of a machine."""
    if not arguments.has("b"):
        return session.device
    for value, name, text in zip(
        (offset, length), ("offset", "count"), arguments.operands, strict=True
    ):
        if value % _SECTOR:
            raise CommandFailed(f"{text} is not a sector-aligned value for '{name}'")
    from vdisk.formats.qcow2 import Qcow2Image

    if not isinstance(session.device, Qcow2Image):
        raise CommandFailed(f"{operation} failed: {os.strerror(errno.ENOTSUP)}")
    return session.device.vm_state()


# -- asynchronous ----------------------------------------------------------------------------------


def aio_read(session: Session, arguments: Arguments) -> None:
    """aio_read off len [len..]: a readv that reports when it is done."""
    if arguments.has("i"):
        print("injecting invalid read request")
        return
    check = PatternCheck(arguments)
    offset, lengths = _offset_and_lengths(arguments)
    _populate(session, offset, sum(lengths))
    device = session.device

    def request() -> Callable[[], None]:
        content = bytearray(sum(lengths))
        result = _attempt("readv", lambda: device.readv(offset, _split(content, lengths)))

        def report() -> None:
            seconds = result()
            check.failed(content, offset)
            _show(arguments, content, offset, seconds)

        return report

    session.submit(request)


def aio_write(session: Session, arguments: Arguments) -> None:
    """aio_write off len [len..]: a writev that reports when it is done."""
    _check_zero_options(arguments)
    if arguments.has("z") and len(arguments.operands) > 2:
        raise CommandFailed("-z supports only a single length parameter")
    if arguments.has("i"):
        print("injecting invalid write request")
        return
    if arguments.has("z") and len(arguments.operands) == 2:
        offset, length = map(parse_number, arguments.operands)
        views: list[memoryview] = []
    else:
        offset, lengths = _offset_and_lengths(arguments)
        length = sum(lengths)
        views = _split(_content(arguments, length), lengths)
    device = session.device

    def action() -> None:
        if arguments.has("z"):
            _write_zeroes(session, arguments, offset, length)
        else:
            device.writev(offset, views)
        if arguments.has("f"):
            device.flush()

    def request() -> Callable[[], None]:
        result = _attempt("aio_write", action)
        return lambda: _print_statistics(arguments, "wrote", offset, length, result())

    session.submit(request)


def _attempt(operation: str, action: Callable[[], None]) -> Callable[[], float]:
    """Run ``action`` now; the function that is returned gives its time or raises its failure."""
    began = time.perf_counter()
    try:
        action()
    except VdiskError as error:
        caught = error

        def fail() -> float:
            raise failure(operation, caught)

        return fail
    seconds = time.perf_counter() - began
    return lambda: seconds


def discard(session: Session, arguments: Arguments) -> None:
    """discard off len"""
    offset, length = _offset_and_length(arguments)
    device = session.device

    def action() -> None:
        if session.settings.discard:
            device.discard(offset, length)

    seconds = _timed("discard", action)
    _print_statistics(arguments, "discard", offset, length, seconds)
