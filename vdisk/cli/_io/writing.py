"""write, writev, aio_write and discard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.cli._io.arguments import Arguments, CommandFailed, parse_number, parse_pattern
from vdisk.cli._io.requests import (
    attempt,
    offset_and_length,
    offset_and_lengths,
    print_statistics,
    split,
    target,
    timed,
)
from vdisk.errors import InvalidRequestError, OutOfRangeError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice
    from vdisk.cli._io.session import Session

DEFAULT_PATTERN = 0xCD
"""What write fills its buffer with unless told otherwise."""


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


def _settle(session: Session, arguments: Arguments) -> None:
    """Make what was written stable, where the command or the cache mode asks for that."""
    if arguments.has("f") or session.settings.write_through:
        session.device.flush()


def write(session: Session, arguments: Arguments) -> None:
    """write off len"""
    _check_write_options(arguments)
    if arguments.has("z") and arguments.has("n") and len(arguments.operands) == 2:
        offset, length = map(parse_number, arguments.operands)
    else:
        offset, length = offset_and_length(arguments, hint=" without -n")
    device = target(session, arguments, "write", offset, length)
    data = b"" if arguments.has("z") else _content(arguments, length)

    def action() -> None:
        if arguments.has("z"):
            _write_zeroes(session, arguments, offset, length)
        elif arguments.has("c") and not arguments.has("b"):
            _write_compressed(session.image, offset, data)
        else:
            device.write(offset, data)
        _settle(session, arguments)

    seconds = timed("write", action)
    print_statistics(arguments, "wrote", offset, length, seconds)


def writev(session: Session, arguments: Arguments) -> None:
    """writev off len [len..]"""
    offset, lengths = offset_and_lengths(arguments)
    views = split(_content(arguments, sum(lengths)), lengths)

    def action() -> None:
        session.device.writev(offset, views)
        _settle(session, arguments)

    seconds = timed("writev", action)
    print_statistics(arguments, "wrote", offset, sum(lengths), seconds)


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
        offset, lengths = offset_and_lengths(arguments)
        length = sum(lengths)
        views = split(_content(arguments, length), lengths)
    device = session.device

    def action() -> None:
        if arguments.has("z"):
            _write_zeroes(session, arguments, offset, length)
        else:
            device.writev(offset, views)
        _settle(session, arguments)

    def request() -> Callable[[], None]:
        result = attempt("aio_write", action)
        return lambda: print_statistics(arguments, "wrote", offset, length, result())

    session.submit(request)


def discard(session: Session, arguments: Arguments) -> None:
    """discard off len"""
    offset, length = offset_and_length(arguments)
    device = session.device

    def action() -> None:
        if session.settings.discard:
            device.discard(offset, length)

    seconds = timed("discard", action)
    print_statistics(arguments, "discard", offset, length, seconds)
