"""What is written to a target for the bytes that were read from a source.

An encoder looks at a step's bytes and gives the writes they take: all of them, those that are
not zero, those that differ from what is there, or compressed clusters.  Encoders run in several
threads at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.jobs.zeroes import is_zero, zero_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from typing_extensions import Buffer

    from vdisk.block import BlockDevice, Extent

    class CompressingDevice(Protocol):
        """An image that holds compressed clusters."""

        @property
        def cluster_size(self) -> int: ...

        def compress_cluster(self, data: Buffer) -> bytes | None:
            """The payload for a cluster; None if it does not shrink. Any thread may call it."""

        def write_compressed(self, offset: int, compressed: Buffer) -> None:
            """Write the cluster at ``offset`` as this payload."""

    class Encoder(Protocol):
        """The writes for ``length`` bytes at ``position`` of ``buffer``, meant for ``offset``."""

        def __call__(
            self, buffer: bytearray, position: int, offset: int, length: int
        ) -> Iterator[Write]: ...


class Write(NamedTuple):
    """One request to the target.

    ``data``: the bytes; None for zeroes.  ``compressed``: ``data`` is the payload of a compressed
    cluster.  ``offload``: the extent that the system is to copy, instead of ``data``.
    """

    offset: int
    length: int
    data: memoryview | bytes | None = None
    compressed: bool = False
    offload: Extent | None = None

    @property
    def zeroes(self) -> bool:
        return self.data is None and self.offload is None


def verbatim(buffer: bytearray, position: int, offset: int, length: int) -> Iterator[Write]:
    """Everything, zeroes too."""
    yield Write(offset, length, memoryview(buffer)[position : position + length])


class Sparse:
    """Blocks of zeroes are left out, or zeroed where the target is not zero by itself."""

    def __init__(self, block: int, *, target_is_zero: bool) -> None:
        self._block = block
        self._target_is_zero = target_is_zero

    def __call__(
        self, buffer: bytearray, position: int, offset: int, length: int
    ) -> Iterator[Write]:
        view = memoryview(buffer)
        for start, size, zero in zero_runs(buffer, position, length, self._block):
            where = offset + start - position
            if not zero:
                yield Write(where, size, view[start : start + size])
            elif not self._target_is_zero:
                yield Write(where, size)


class Compressed:
    """Compressed clusters; plain ones where compression does not help, nothing for zeroes.

    ``keep_zeroes``: they are compressed like any other bytes.
    """

    def __init__(
        self,
        device: CompressingDevice,
        cluster_size: int,
        *,
        target_is_zero: bool,
        keep_zeroes: bool = False,
    ) -> None:
        self._device = device
        self._cluster_size = cluster_size
        self._target_is_zero = target_is_zero
        self._keep_zeroes = keep_zeroes

    def __call__(
        self, buffer: bytearray, position: int, offset: int, length: int
    ) -> Iterator[Write]:
        view = memoryview(buffer)
        for start in range(position, position + length, self._cluster_size):
            size = min(self._cluster_size, position + length - start)
            where = offset + start - position
            if not self._keep_zeroes and is_zero(buffer, start, size):
                if not self._target_is_zero:
                    yield Write(where, size)
                continue
            data = view[start : start + size]
            padding = bytes(self._cluster_size - size)  # the disk may end inside its last cluster
            payload = self._device.compress_cluster(bytes(data) + padding if padding else data)
            if payload is None:
                yield Write(where, size, data)
            else:
                yield Write(where, size, payload, compressed=True)


class Different:
    """Blocks that differ from ``other``, a device that reads as zeroes past its end."""

    def __init__(self, other: BlockDevice | None, block: int) -> None:
        self._other = other
        self._block = block

    def __call__(
        self, buffer: bytearray, position: int, offset: int, length: int
    ) -> Iterator[Write]:
        view = memoryview(buffer)
        there = bytearray(length)
        if self._other is not None and offset < self._other.size:
            inside = min(length, self._other.size - offset)
            self._other.read_into(offset, memoryview(there)[:inside])
        if buffer[position : position + length] == there:
            return
        for start in range(0, length, self._block):
            size = min(self._block, length - start)
            first = position + start
            if buffer[first : first + size] == there[start : start + size]:
                continue
            if is_zero(buffer, first, size):
                yield Write(offset + start, size)
            else:
                yield Write(offset + start, size, view[first : first + size])
