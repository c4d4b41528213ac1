"""Compressed clusters: one guest cluster each, deflate without header or zstd.

QEMU's decoder gives deflate a window of 4 KiB (``wbits`` -12), so whoever writes must stay
inside one; isal and zlib can be told to.  Decoding stops at one cluster, whatever the data
say: a compressed bomb costs one cluster of memory.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from vdisk.block import BlockDevice, Kind
from vdisk.errors import CorruptImageError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.allocation import compressed_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.formats._qcow2.mapping import Mapping

_WINDOW_BITS = 12
_ISAL_LEVEL = 2  # of 0 to 3: 10 times less CPU than zlib's level 6 for files 9 % larger
_ZLIB_LEVEL = 6
_ZSTD_LEVEL = 3
_CACHE_BYTES = 4 << 20
"""Decompressed clusters kept: small reads of one cluster in a row decompress it once."""

_per_thread = threading.local()


def compress(compression_type: int, data: bytes | bytearray | memoryview) -> bytes | None:
    """One cluster compressed; None where that does not make it smaller.  Thread-safe."""
    packer = _zstd_compress if compression_type == layout.COMPRESSION_ZSTD else _deflate
    packed = packer(data)
    return packed if len(packed) < len(data) else None


def _deflate(data: bytes | bytearray | memoryview) -> bytes:
    deflate: Callable[[bytes | bytearray | memoryview], bytes] | None
    deflate = getattr(_per_thread, "deflate", None)
    if deflate is None:
        deflate = _per_thread.deflate = _find_deflate()
    return deflate(data)


def _find_deflate() -> Callable[[bytes | bytearray | memoryview], bytes]:
    """isal's where the extra ``fast`` is installed, else zlib's."""
    try:
        from isal import igzip_lib
    except ImportError:
        return _zlib_deflate

    def isal_deflate(data: bytes | bytearray | memoryview) -> bytes:
        packed: bytes = igzip_lib.compress(
            data, _ISAL_LEVEL, igzip_lib.COMP_DEFLATE, hist_bits=_WINDOW_BITS
        )
        return packed

    return isal_deflate


def _zlib_deflate(data: bytes | bytearray | memoryview) -> bytes:
    packer = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, -_WINDOW_BITS)
    return packer.compress(data) + packer.flush()


def _zstd_compress(data: bytes | bytearray | memoryview) -> bytes:
    packer = getattr(_per_thread, "zstd", None)
    if packer is None:
        import zstandard

        packer = _per_thread.zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    packed: bytes = packer.compress(data)
    return packed


def decompress(compression_type: int, data: bytes, size: int) -> bytes:
    """The ``size`` bytes of a cluster from its compressed form and whatever follows it.

    Raises :class:`CorruptImageError` where the data yield fewer bytes or are not decodable.
    """
    unpacker = _zstd_decompress if compression_type == layout.COMPRESSION_ZSTD else _inflate
    content = unpacker(data, size)
    if len(content) != size:
        raise CorruptImageError(f"a compressed cluster holds {len(content)} bytes, not {size}")
    return content


def _inflate(data: bytes, size: int) -> bytes:
    inflate: Callable[[bytes, int], bytes] | None = getattr(_per_thread, "inflate", None)
    if inflate is None:
        inflate = _per_thread.inflate = _find_inflate()
    return inflate(data, size)


def _find_inflate() -> Callable[[bytes, int], bytes]:
    """isal's where the extra ``fast`` is installed (1.7 times as fast), else zlib's."""
    library: Any = zlib
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        library = isal_zlib

    def inflate(data: bytes, size: int) -> bytes:
        try:
            content: bytes = library.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
        except library.error as error:
            raise _undecodable(error) from error
        return content

    return inflate


def _undecodable(error: Exception) -> CorruptImageError:
    return CorruptImageError(f"a compressed cluster cannot be decoded ({error})")


def _zstd_decompress(data: bytes, size: int) -> bytes:
    """Frames one after another until the cluster is full, as QEMU reads them."""
    import zstandard

    unpacker = getattr(_per_thread, "zstd_unpacker", None)
    if unpacker is None:
        unpacker = _per_thread.zstd_unpacker = zstandard.ZstdDecompressor()
    content = bytearray()
    try:
        if zstandard.frame_content_size(data) == size:  # nearly always: one frame, no surprises
            return bytes(unpacker.decompress(data))
        with unpacker.stream_reader(data, read_across_frames=True) as reader:
            while len(content) < size:
                part = reader.read(size - len(content))
                if not part:
                    break
                content += part
    except zstandard.ZstdError as error:
        if len(content) < size:
            raise _undecodable(error) from error
    return bytes(content)


class CompressedClusters(BlockDevice):
    """The guest disk of a mapping, as the source of its COMPRESSED extents.

    Offsets are guest offsets.  A cluster that was overwritten since the plan was made is read
    where it is now.
    """

    readonly = True
    growable = True  # no end of its own: VM state lies behind the disk's, as does a resize's room

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._core = mapping.core
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._capacity = max(_CACHE_BYTES // self._core.cluster_size, 1)
        self.name = self._core.file.name

    @property
    def size(self) -> int:
        return self._core.header.size

    def _read_into(self, offset: int, view: memoryview) -> None:
        for run in self._mapping.runs(offset, len(view)):
            part = view[run.start - offset : run.start - offset + run.length]
            if run.kind is Kind.COMPRESSED and run.host is not None:
                within = run.start & (self._core.cluster_size - 1)
                part[:] = memoryview(self._cluster(run.host))[within : within + run.length]
            else:
                for extent in self._mapping.extents(run.start, run.length):
                    piece = part[extent.start - run.start :][: extent.length]
                    if extent.source is None or extent.reads_zero:
                        piece[:] = bytes(extent.length)
                    else:
                        extent.source.read_into(extent.source_offset or 0, piece)

    def forget(self) -> None:
        """Host clusters were freed: what is cached may be another cluster's soon."""
        self._cache.clear()

    def _cluster(self, entry: int) -> bytes:
        content = self._cache.get(entry)
        if content is None:
            core = self._core
            offset, size = compressed_range(entry, core.cluster_bits)
            data = core.file.read(offset, min(size, max(core.file.size - offset, 0)))
            try:
                content = decompress(core.header.compression_type, data, core.cluster_size)
            except CorruptImageError as error:
                error.path, error.offset = core.file.name, offset
                raise
            self._remember(entry, content)
        return content

    def _remember(self, entry: int, content: bytes) -> None:
        with self._core.lock:
            while len(self._cache) >= self._capacity:
                self._cache.popitem(last=False)
            self._cache[entry] = content
