"""What reading and writing commands share: operands, timing, failures, statistics."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from vdisk.cli._io.arguments import (
    Arguments,
    CommandFailed,
    UsageError,
    parse_length,
    parse_lengths,
    parse_number,
)
from vdisk.cli._io.report import statistics
from vdisk.cli._io.session import complain
from vdisk.errors import DeviceError, OutOfRangeError, VdiskError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice
    from vdisk.cli._io.session import Session

_SECTOR = 512


def failure(operation: str, error: VdiskError) -> CommandFailed:
    """What a script reads when a request fails; where that is too terse, stderr says more."""
    plain = isinstance(error, DeviceError | OutOfRangeError)
    if not plain:
        complain(f"vdisk io: {error}")
    number = errno.EIO if isinstance(error, OutOfRangeError) else error.errno
    return CommandFailed(f"{operation} failed: {os.strerror(number)}")


def attempt(operation: str, action: Callable[[], None]) -> Callable[[], float]:
    """Run ``action`` now; the function that is returned gives its seconds or raises its failure.

    What is done in a thread is so reported in another.
    """
    began = time.perf_counter()
    try:
        action()
    except VdiskError as error:
        caught = error

        def fail() -> float:
            raise failure(operation, caught) from caught

        return fail
    seconds = time.perf_counter() - began
    return lambda: seconds


def timed(operation: str, action: Callable[[], None]) -> float:
    """Run ``action``; the seconds it took.  Raises :class:`CommandFailed`."""
    return attempt(operation, action)()


def print_statistics(
    arguments: Arguments, verb: str, offset: int, length: int, seconds: float
) -> None:
    """The report on a finished request, unless -q forbids it."""
    if not arguments.has("q"):
        print(statistics(verb, offset, length, seconds, machine=arguments.has("C")))


def offset_and_length(arguments: Arguments, *, hint: str = "") -> tuple[int, int]:
    """The operands of a plain request; ``hint``: what a length that is too large may need."""
    if len(arguments.operands) != 2:
        raise UsageError
    offset = parse_number(arguments.operands[0])
    return offset, parse_length(arguments.operands[1], hint=hint)


def offset_and_lengths(arguments: Arguments) -> tuple[int, list[int]]:
    """The operands of a vectored request."""
    if len(arguments.operands) < 2:
        raise UsageError
    return parse_number(arguments.operands[0]), parse_lengths(arguments.operands[1:])


def split(content: bytes | bytearray, lengths: list[int]) -> list[memoryview]:
    """Consecutive parts of ``content``."""
    views, position, whole = [], 0, memoryview(content)
    for length in lengths:
        views.append(whole[position : position + length])
        position += length
    return views


def target(
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

    if not isinstance(session.image, Qcow2Image):
        raise CommandFailed(f"{operation} failed: {os.strerror(errno.ENOTSUP)}")
    return session.image.vm_state()
