"""The header of a qcow2 image: fixed fields, extensions, backing file name (cluster 0).

::

    0          72 / header_length      end of extensions        cluster_size
    +----------+----------------------+------------------------+
    | fields   | extension, extension | backing file name      |
    +----------+----------------------+------------------------+

Parsing is pure: any bytes give a :class:`Header` or a declared error.  Fields and extensions
that this library does not know survive being rewritten.

Rewriting moves nothing that need not move, because a cut may keep some of the header's sectors
and not others: the feature name table stays as it was found, the backing file name stays where
it was, and a new image leaves room before the name for the bitmaps extension, the one that comes
and goes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vdisk.errors import (
    CorruptImageError,
    FormatError,
    InvalidRequestError,
    UnsupportedFeatureError,
)
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.text import decoded, encoded
from vdisk.units import round_up

if TYPE_CHECKING:
    from typing import NoReturn

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_CRYPTO = struct.Struct(">QQ")
_BITMAPS = struct.Struct(">IIQQ")
_FEATURE_NAME = struct.Struct(">BB46s")
_BITMAPS_ROOM = _EXTENSION.size + _BITMAPS.size
"""Bytes of the bitmaps extension."""


class Header:
    """The header's fields by the names of the specification.

    ``extensions``: (type, data) in file order, without those that have attributes here.
    ``additional``: the fields behind ``header_length``, as many bytes as the file has of them.
    """

    def __init__(self) -> None:
        self.version = 3
        self.backing_file: str | None = None
        self.name_offset = 0
        """Where the backing file name stands in the file; 0: not there yet."""
        self.cluster_bits = 16
        self.size = 0
        self.crypt_method = layout.CRYPT_NONE
        self.l1_size = 0
        self.l1_table_offset = 0
        self.refcount_table_offset = 0
        self.refcount_table_clusters = 0
        self.nb_snapshots = 0
        self.snapshots_offset = 0
        self.incompatible_features = 0
        self.compatible_features = 0
        self.autoclear_features = 0
        self.refcount_order = 4
        self.additional = bytes(8)
        self.backing_format: str | None = None
        self.data_file_name: str | None = None
        self.crypto: tuple[int, int] | None = None
        """Full disk encryption header: (offset, length)."""
        self.bitmaps: tuple[int, int, int] | None = None
        """Bitmaps extension: (nb_bitmaps, directory size, directory offset)."""
        self.feature_names = known_feature_names()
        self.extensions: list[tuple[int, bytes]] = []

    # -- what follows from the fields ----------------------------------------------------------

    @property
    def compression_type(self) -> int:
        """The first additional field; 0 (deflate) where the header ends before it."""
        return self.additional[0] if self.additional else layout.COMPRESSION_ZLIB

    @compression_type.setter
    def compression_type(self, value: int) -> None:
        self.additional = bytes([value]).ljust(8, b"\0") + self.additional[8:]

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @property
    def extended_l2(self) -> bool:
        return bool(self.incompatible_features & layout.EXTENDED_L2)

    @property
    def external_data(self) -> bool:
        return bool(self.incompatible_features & layout.EXTERNAL_DATA)

    @property
    def data_file_raw(self) -> bool:
        return bool(self.autoclear_features & layout.RAW_EXTERNAL_DATA)

    @property
    def lazy_refcounts(self) -> bool:
        return bool(self.compatible_features & layout.LAZY_REFCOUNTS)

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_coverage(self) -> int:
        """Bytes of the guest disk that one L2 table describes."""
        return (self.cluster_size // self.l2_entry_size) << self.cluster_bits

    def l1_clusters(self, entries: int) -> int:
        """What an L1 table takes: nothing, and no offset, where the disk has no bytes."""
        return -(-entries * 8 // self.cluster_size)

    def l1_entries_for(self, size: int) -> int:
        """Entries of an L1 table for a disk of ``size`` bytes."""
        return -(-size // self.l2_coverage)

    # -- writing -------------------------------------------------------------------------------

    def to_bytes(self, *, names: bool = True) -> bytes:
        """The header as it stands in the first cluster (zero-padded to a full cluster).

        ``names``: with the feature names, which are left out where they do not fit, too.
        Raises :class:`InvalidRequestError` when names and extensions do not fit.
        """
        name = encoded(self.backing_file or "")
        if len(name) > layout.MAX_BACKING_NAME:
            raise InvalidRequestError(
                f"the backing file name is {len(name)} bytes long; "
                f"qcow2 allows {layout.MAX_BACKING_NAME}"
            )
        body = self._v3_bytes() if self.version >= 3 else b""
        names = names and self.version >= 3 and bool(self.feature_names)
        extensions = self._extensions_bytes(names=names)
        if layout.V2_HEADER_LENGTH + len(body + extensions + name) > self.cluster_size:
            extensions = self._extensions_bytes(names=False)  # the one that is optional
        name_offset = self._place_for_name(layout.V2_HEADER_LENGTH + len(body + extensions), name)
        fixed = _V2.pack(
            layout.MAGIC,
            self.version,
            name_offset if name else 0,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        before = (fixed + body + extensions).ljust(name_offset, b"\0")
        return (before + name).ljust(self.cluster_size, b"\0")

    def _place_for_name(self, end: int, name: bytes) -> int:
        """Where the name goes if extensions end at ``end``: where it is, or with room before it."""
        room = _BITMAPS_ROOM if self.version >= 3 and self.bitmaps is None else 0
        for place in (self.name_offset, end + room, end):
            if end <= place <= self.cluster_size - len(name):
                return place
        raise InvalidRequestError(
            f"header extensions and backing file name need {end + len(name)} bytes, "
            f"more than the first cluster ({self.cluster_size} bytes) has"
        )

    def _v3_bytes(self) -> bytes:
        return (
            _V3.pack(
                self.incompatible_features,
                self.compatible_features,
                self.autoclear_features,
                self.refcount_order,
                layout.V3_HEADER_LENGTH + len(self.additional),
            )
            + self.additional
        )

    def _extensions_bytes(self, *, names: bool) -> bytes:
        parts: list[tuple[int, bytes]] = []
        if self.backing_format is not None:
            parts.append((layout.EXT_BACKING_FORMAT, encoded(self.backing_format)))
        if self.data_file_name is not None:
            parts.append((layout.EXT_DATA_FILE, encoded(self.data_file_name)))
        if self.crypto is not None:
            parts.append((layout.EXT_CRYPTO, _CRYPTO.pack(*self.crypto)))
        if names:
            parts.append((layout.EXT_FEATURE_NAMES, self._feature_table()))
        if self.bitmaps is not None:
            count, size, offset = self.bitmaps
            parts.append((layout.EXT_BITMAPS, _BITMAPS.pack(count, 0, size, offset)))
        parts += self.extensions
        parts.append((layout.EXT_END, b""))
        return b"".join(
            _EXTENSION.pack(kind, len(data)) + data.ljust(round_up(len(data), 8), b"\0")
            for kind, data in parts
        )

    def _feature_table(self) -> bytes:
        return b"".join(
            _FEATURE_NAME.pack(kind, bit, encoded(name))
            for (kind, bit), name in sorted(self.feature_names.items())
        )


def known_feature_names() -> dict[tuple[int, int], str]:
    """A feature name table, by (type, bit), of every feature this library knows."""
    return {(kind, bit): name for kind, bit, name in layout.FEATURE_NAMES}


def parse(cluster: bytes, *, path: str) -> Header:
    """The header in ``cluster``, the first bytes of the image (up to one cluster of them).

    Raises :class:`FormatError` (not qcow2), :class:`UnsupportedFeatureError` (an unknown
    version or incompatible feature), :class:`CorruptImageError` (a broken rule).
    """
    header = Header()
    header.feature_names = {}
    name_offset, name_size, length = _parse_fixed(header, cluster, path)
    end = min(name_offset or header.cluster_size, header.cluster_size, len(cluster))
    _parse_extensions(header, cluster, length, end, path)
    _check_features(header, path)
    if name_offset:
        header.name_offset = name_offset
        header.backing_file = _parse_name(header, cluster, name_offset, name_size, length, path)
    return header


def _corrupt(message: str, path: str, offset: int | None = None) -> NoReturn:
    raise CorruptImageError(message, path=path, offset=offset, operation="open")


def cluster_bits_of(head: bytes, *, path: str) -> int:
    """``cluster_bits`` from the first bytes of the file: how much of it is the header's."""
    if len(head) < layout.V2_HEADER_LENGTH or head[:4] != layout.MAGIC:
        raise FormatError("not a qcow2 image (no QFI\\xfb magic)", path=path, operation="open")
    version, bits = struct.unpack_from(">I12xI", head, 4)
    if version not in (2, 3):
        raise UnsupportedFeatureError(
            f"qcow2 version {version} (known: 2, 3)", path=path, operation="open"
        )
    if not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise UnsupportedFeatureError(
            f"cluster_bits is {bits}; clusters are 512 bytes (9) to 2 MiB (21)",
            path=path,
            offset=20,
            operation="open",
        )
    return int(bits)


def _parse_fixed(header: Header, cluster: bytes, path: str) -> tuple[int, int, int]:
    """Fill in the fixed fields; backing name offset and size, and the header's length."""
    cluster_bits_of(cluster, path=path)
    (
        _magic,
        header.version,
        name_offset,
        name_size,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    ) = _V2.unpack_from(cluster)
    if header.version == 2:
        return name_offset, name_size, layout.V2_HEADER_LENGTH
    if len(cluster) < layout.V3_HEADER_LENGTH:
        _corrupt("the file ends inside the header", path, len(cluster))
    (
        header.incompatible_features,
        header.compatible_features,
        header.autoclear_features,
        header.refcount_order,
        length,
    ) = _V3.unpack_from(cluster, layout.V2_HEADER_LENGTH)
    if not layout.V3_HEADER_LENGTH <= length <= min(header.cluster_size, len(cluster)):
        _corrupt(f"header_length {length} is not between 104 and the cluster size", path, 100)
    if header.refcount_order > 6:
        _corrupt(f"refcount_order {header.refcount_order} is larger than 6", path, 96)
    header.additional = bytes(cluster[layout.V3_HEADER_LENGTH : length])
    return name_offset, name_size, length


def _parse_extensions(header: Header, cluster: bytes, start: int, end: int, path: str) -> None:
    position = start
    while position + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(cluster, position)
        if kind == layout.EXT_END:
            return
        position += _EXTENSION.size
        if length > end - position:
            _corrupt(
                f"header extension {kind:#010x} of {length} bytes reaches past the header area",
                path,
                position,
            )
        _take_extension(header, kind, bytes(cluster[position : position + length]), position, path)
        position += round_up(length, 8)


def _take_extension(header: Header, kind: int, data: bytes, offset: int, path: str) -> None:
    if kind == layout.EXT_BACKING_FORMAT:
        header.backing_format = decoded(data.rstrip(b"\0"))
    elif kind == layout.EXT_DATA_FILE:
        header.data_file_name = decoded(data.rstrip(b"\0"))
    elif kind == layout.EXT_FEATURE_NAMES:
        whole = data.ljust(round_up(len(data), _FEATURE_NAME.size), b"\0")
        for number, bit, name in _FEATURE_NAME.iter_unpack(whole):
            header.feature_names[number, bit] = decoded(name.partition(b"\0")[0])
    elif kind == layout.EXT_CRYPTO:
        if len(data) != _CRYPTO.size:
            _corrupt("the full disk encryption extension is not 16 bytes long", path, offset)
        header.crypto = _CRYPTO.unpack(data)
    elif kind == layout.EXT_BITMAPS:
        if len(data) != _BITMAPS.size:
            _corrupt("the bitmaps extension is not 24 bytes long", path, offset)
        count, _reserved, size, directory = _BITMAPS.unpack(data)
        header.bitmaps = (count, size, directory)
    else:
        header.extensions.append((kind, data))


def _check_features(header: Header, path: str) -> None:
    unknown = header.incompatible_features & ~layout.KNOWN_INCOMPATIBLE
    if unknown:
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        names = [header.feature_names[0, bit] for bit in bits if (0, bit) in header.feature_names]
        nameless = sum(1 << bit for bit in bits if (0, bit) not in header.feature_names)
        if nameless:
            names.append(f"Unknown incompatible feature: {nameless:x}")
        raise UnsupportedFeatureError(
            f"Unsupported qcow2 feature(s): {', '.join(names)}", path=path, operation="open"
        )
    typed = bool(header.incompatible_features & layout.COMPRESSION_TYPE)
    if header.compression_type > layout.COMPRESSION_ZSTD:
        raise UnsupportedFeatureError(
            f"unknown compression type {header.compression_type}", path=path, operation="open"
        )
    if typed != (header.compression_type != layout.COMPRESSION_ZLIB):
        _corrupt("compression_type and its incompatible feature bit contradict each other", path)
    if header.extended_l2 and header.cluster_bits < layout.MIN_EXTENDED_L2_CLUSTER_BITS:
        _corrupt("extended L2 entries need clusters of 16 KiB or more", path, 20)
    if header.crypt_method > layout.CRYPT_LUKS:
        raise UnsupportedFeatureError(
            f"unknown encryption method {header.crypt_method}", path=path, operation="open"
        )
    if (header.crypt_method == layout.CRYPT_LUKS) != (header.crypto is not None):
        _corrupt("the encryption method and the encryption header extension disagree", path, 32)


def _parse_name(
    header: Header, cluster: bytes, offset: int, size: int, length: int, path: str
) -> str | None:
    if size > layout.MAX_BACKING_NAME:
        _corrupt(f"the backing file name is {size} bytes long (at most 1023)", path, 16)
    if offset < length or offset + size > min(header.cluster_size, len(cluster)):
        _corrupt("the backing file name does not lie inside the first cluster", path, 8)
    if size and header.data_file_raw:
        _corrupt("a raw external data file and a backing file exclude each other", path, 8)
    return decoded(cluster[offset : offset + size]) or None
