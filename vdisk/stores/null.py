"""A device that keeps nothing: what is written is gone, what is read is zeroes.

``null-co://``, as in QEMU: to measure what everything but a disk costs, or to read something to
its end.  ``latency-ns`` makes each request take that long; ``read-zeroes`` says whether the map
may tell that all is zero, or a reader has to find out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from vdisk.block import BlockDevice, Extent, Kind, fill_zeroes
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vdisk.options import OptionBag
    from vdisk.stores import StoreSettings

DEFAULT_SIZE: Final = 1 << 30
MAX_SIZE: Final = (1 << 63) - 1
"""An off_t: no file has more."""
MAX_LATENCY_NS: Final = 3600 * 1_000_000_000
"""An hour a request: longer than anybody waits, short enough for every clock."""


class NullStore(BlockDevice):
    """``size`` bytes of nothing.  ``latency``: seconds a request takes; ``sleep``: how."""

    zeroes_fast = True
    name = "null-co://"

    def __init__(
        self,
        size: int = DEFAULT_SIZE,
        *,
        read_zeroes: bool = False,
        latency: float = 0,
        readonly: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._size = size
        self._kind = Kind.ZERO if read_zeroes else Kind.DATA
        self._latency = latency
        self._sleep = sleep
        self.readonly = readonly

    @property
    def size(self) -> int:
        return self._size

    def _wait(self) -> None:
        if self._latency:
            self._sleep(self._latency)

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._wait()
        fill_zeroes(view)

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        yield Extent(start, length, self._kind, self, start)

    def _write(self, offset: int, view: memoryview) -> None:
        self._wait()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._wait()

    def _discard(self, offset: int, length: int) -> None:
        self._wait()

    def _flush(self) -> None:
        self._wait()


def seconds_from_ns(options: OptionBag, key: str) -> float:
    """An option in nanoseconds, by default 0, in seconds."""
    value = options.size(key, 0) or 0
    if value > MAX_LATENCY_NS:
        raise InvalidRequestError(f"{options.owner}: option {key!r} is at most {MAX_LATENCY_NS}")
    return value / 1_000_000_000


class NullProtocol:
    """Options: ``size``, ``latency-ns``, ``read-zeroes``."""

    def parse_name(self, name: str) -> dict[str, Any]:
        driver, _colon, rest = name.partition(":")
        if rest != "//":
            raise InvalidRequestError(f"the name is {driver}://, and its size is an option")
        return {"driver": driver}

    def open(self, options: OptionBag, settings: StoreSettings) -> NullStore:
        size = options.size("size", DEFAULT_SIZE)
        latency = seconds_from_ns(options, "latency-ns")
        read_zeroes = options.boolean("read-zeroes")
        options.finish()
        assert size is not None
        if size > MAX_SIZE:
            raise InvalidRequestError(f"{options.owner}: at most {MAX_SIZE} bytes")
        return NullStore(
            size,
            read_zeroes=read_zeroes,
            latency=latency,
            readonly=settings.readonly,
        )


PROTOCOL = NullProtocol()
