"""What is written is compressed: over an image whose format has compressed clusters.

::

    write     |..dd|dddd|dddd|d...|
    clusters   read   each       read
               first  compressed first

A cluster that does not shrink is stored as it is.  Clusters that are written in part are read,
changed and compressed anew, so writes should be large: a copy to a server, say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vdisk.errors import UnsupportedFeatureError
from vdisk.filters.passing import Passing
from vdisk.stores.alignment import SharedLock, parts
from vdisk.units import round_down

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from vdisk.block import BlockDevice
    from vdisk.options import OptionBag

    class CompressingImage(Protocol):
        """An image that holds compressed clusters."""

        cluster_size: int

        def compress_cluster(self, data: bytes) -> bytes | None:
            """The payload for a cluster; None if it does not shrink."""

        def write_compressed(self, offset: int, compressed: bytes) -> None:
            """Write the cluster at ``offset`` as this payload."""


class Compress(Passing):
    """``inner``, an image with compressed clusters, to which all is written in that form."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        if not hasattr(inner, "write_compressed"):
            name = getattr(inner, "format_name", type(inner).__name__)
            raise UnsupportedFeatureError(
                f"the format {name} does not hold compressed clusters (qcow2 does)",
                path=inner.name,
            )
        self._image = cast("CompressingImage", inner)
        self._unit = self._image.cluster_size
        self._clusters = SharedLock()

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self._write(offset, views[0] if len(views) == 1 else memoryview(b"".join(views)))

    def _write(self, offset: int, view: memoryview) -> None:
        unit = self._unit
        for part in parts(offset, len(view), unit):
            data = view[part.start - offset : part.end - offset]
            if part.whole or (part.start == part.block and part.end == self.size):
                with self._clusters.shared():
                    for start in range(part.start, part.end, unit):
                        self._store(start, data[start - part.start :][:unit])
            else:
                with self._clusters.alone():
                    self._change(part.start, data)

    def _change(self, offset: int, data: memoryview) -> None:
        """Write to a part of one cluster; nobody else writes meanwhile."""
        start = round_down(offset, self._unit)
        cluster = bytearray(self.inner.read(start, min(self._unit, self.size - start)))
        cluster[offset - start : offset - start + len(data)] = data
        self._store(start, memoryview(cluster))

    def _store(self, offset: int, cluster: memoryview) -> None:
        payload = self._image.compress_cluster(cluster.tobytes().ljust(self._unit, b"\0"))
        if payload is None:
            self.inner.write(offset, cluster)
        else:
            self._image.write_compressed(offset, payload)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        with self._clusters.shared():
            self.inner.write_zeroes(offset, length, unmap=unmap)

    def _discard(self, offset: int, length: int) -> None:
        with self._clusters.shared():
            self.inner.discard(offset, length)


class CompressDriver:
    """``{"driver": "compress", "file": …}``."""

    children = ("file",)
    images: frozenset[str] = frozenset()

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> Compress:
        image = children["file"]
        try:
            options.finish()
            return Compress(image)
        except BaseException:
            image.close()
            raise


FILTER = CompressDriver()
