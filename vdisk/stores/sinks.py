"""Places that can only be written: a pipe, and nowhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vdisk.block import BlockDevice
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import Extent


class Sink(BlockDevice):
    """Takes everything, and gives nothing back."""

    growable = True

    @property
    def size(self) -> int:
        return 0

    def _read_into(self, offset: int, view: memoryview) -> None:
        raise UnsupportedFeatureError("can only be written", path=self.name, operation="read")

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        raise UnsupportedFeatureError("can only be written", path=self.name, operation="map")

    def _truncate(self, size: int) -> None:
        """It has the size of what is written."""


class NullSink(Sink):
    """Forgets what is written."""

    name = "null:"
    zeroes_fast = True

    def _write(self, offset: int, view: memoryview) -> None:
        pass

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        pass


class PipeSink(Sink):
    """A pipe, a terminal or a socket: bytes leave in the order they are written, from 0 on.

    ``close``: the descriptor is closed with it.
    """

    def __init__(self, descriptor: int, name: str, *, close: bool = False) -> None:
        self.name = name
        self._descriptor = descriptor
        self._closes = close
        self._position = 0

    def _write(self, offset: int, view: memoryview) -> None:
        if offset != self._position:
            raise InvalidRequestError(
                f"{self.name} is at byte {self._position}, and cannot go to {offset}"
            )
        try:
            while len(view):
                count = os.write(self._descriptor, view)
                self._position += count
                view = view[count:]
        except BrokenPipeError:
            raise  # the reader has seen enough, which is no error of ours
        except OSError as error:
            raise from_os_error(error, path=self.name, operation="write") from error

    def _close(self) -> None:
        if self._closes:
            os.close(self._descriptor)
