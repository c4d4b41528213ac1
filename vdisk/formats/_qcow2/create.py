"""Writing a new, empty image.

::

    cluster 0     1                    1 + t              …
    +--------+--------------------+----------------+-----------+------
    | header | refcount table (t) | refcount block | L1 table  | …
    +--------+--------------------+----------------+-----------+------

The first refcount table is made large enough that an image which fills up, metadata included,
never has to move it; the rest (L1 table, encryption header, preallocation) is allocated by the
image's own allocator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.formats import CreateOption
from vdisk.formats._luks import options as luks
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.header import Header
from vdisk.formats._qcow2.refcounts import pack_counts
from vdisk.units import round_up

if TYPE_CHECKING:
    from array import array as Array
    from collections.abc import Mapping

    from vdisk.block import BlockDevice

DEFAULT_CLUSTER_SIZE = 65536
DEFAULT_REFCOUNT_BITS = 16
PREALLOCATION = ("off", "metadata", "falloc", "full")

OPTIONS = (
    CreateOption("size", "size", "virtual disk size"),
    CreateOption("compat", "enum", "version", "1.1", ("0.10", "v2", "1.1", "v3")),
    CreateOption("backing_file", "string", "file that shows through where nothing is allocated"),
    CreateOption("backing_fmt", "string", "format of the backing file"),
    CreateOption("data_file", "string", "external file that holds the guest data"),
    CreateOption("data_file_raw", "bool", "keep the external data file readable as raw", "off"),
    CreateOption("cluster_size", "size", "bytes of a cluster, 512 to 2M", "65536"),
    CreateOption("preallocation", "enum", "what to allocate now", "off", PREALLOCATION),
    CreateOption("lazy_refcounts", "bool", "postpone refcount updates", "off"),
    CreateOption("refcount_bits", "number", "width of a reference count, 1 to 64", "16"),
    CreateOption("compression_type", "enum", "of compressed clusters", "zlib", ("zlib", "zstd")),
    CreateOption("extended_l2", "bool", "subclusters, 32 a cluster", "off"),
    CreateOption("encryption", "bool", "the old name of encrypt.format=aes", "off"),
    CreateOption("encrypt.format", "enum", "encrypt the guest data", choices=("luks", "aes")),
    *luks.prefixed(luks.CREATE_OPTIONS, "encrypt."),
)

_AMENDABLE = {
    *("size", "compat", "backing_file", "backing_fmt", "data_file", "data_file_raw"),
    *("lazy_refcounts", "refcount_bits"),
}
AMEND_OPTIONS = (
    *(option for option in OPTIONS if option.name in _AMENDABLE),
    *luks.prefixed(luks.AMEND_OPTIONS, "encrypt."),
)


def header_from_options(size: int, options: Mapping[str, Any]) -> Header:
    """A header with the features and names that ``options`` ask for, no tables yet.

    Raises :class:`InvalidRequestError` for values and combinations that the format forbids.
    """
    if not 0 <= size < 1 << 63:
        raise InvalidRequestError(f"a virtual size of {size} bytes is not possible")
    header = Header()
    header.size = round_up(size, layout.SECTOR)
    header.version = 2 if is_version_2(options.get("compat", "1.1")) else 3
    header.cluster_bits = _cluster_bits(options.get("cluster_size", DEFAULT_CLUSTER_SIZE))
    header.refcount_order = refcount_order(options.get("refcount_bits", DEFAULT_REFCOUNT_BITS))
    if options.get("lazy_refcounts"):
        header.compatible_features |= layout.LAZY_REFCOUNTS
    if options.get("extended_l2"):
        header.incompatible_features |= layout.EXTENDED_L2
        if header.cluster_bits < layout.MIN_EXTENDED_L2_CLUSTER_BITS:
            raise InvalidRequestError("extended_l2 needs a cluster_size of 16k or more")
    if options.get("compression_type", "zlib") == "zstd":
        header.compression_type = layout.COMPRESSION_ZSTD
        header.incompatible_features |= layout.COMPRESSION_TYPE
    _name_files(header, options)
    header.l1_size = header.l1_entries_for(header.size)
    _check_version_and_size(header)
    return header


def asks_for_encryption(options: Mapping[str, Any]) -> bool:
    """Whether creation options have anything to do with encryption."""
    return bool(options.get("encryption")) or any(name.startswith("encrypt.") for name in options)


def is_version_2(compat: str) -> bool:
    """Whether a value of the option ``compat`` means version 2."""
    return compat in ("0.10", "v2")


def _cluster_bits(size: int) -> int:
    bits = size.bit_length() - 1
    if size != 1 << bits or not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise InvalidRequestError(
            f"Cluster size must be a power of two between 512 and 2048k: cluster_size={size}"
        )
    return bits


def refcount_order(bits: int) -> int:
    """log2 of a refcount width; raises :class:`InvalidRequestError`."""
    order = bits.bit_length() - 1
    if bits < 1 or bits != 1 << order or order > 6:
        raise InvalidRequestError(f"refcount_bits {bits} is not a power of two between 1 and 64")
    return order


def _name_files(header: Header, options: Mapping[str, Any]) -> None:
    header.backing_file = options.get("backing_file") or None
    header.backing_format = options.get("backing_fmt")
    header.data_file_name = options.get("data_file")
    if header.data_file_name is not None:
        header.incompatible_features |= layout.EXTERNAL_DATA
    if options.get("data_file_raw"):
        if header.data_file_name is None:
            raise InvalidRequestError("data_file_raw needs a data_file")
        if header.backing_file is not None:
            raise InvalidRequestError("data_file_raw and a backing file exclude each other")
        header.autoclear_features |= layout.RAW_EXTERNAL_DATA


def _check_version_and_size(header: Header) -> None:
    if header.version == 2:
        features = header.incompatible_features | header.compatible_features
        if features or header.autoclear_features or header.refcount_order != 4:
            raise InvalidRequestError(
                "lazy_refcounts, extended_l2, data_file, zstd and refcount_bits other than 16 "
                "need compat=1.1 (version 3)"
            )
    if header.l1_size * 8 > layout.MAX_L1_BYTES:
        raise InvalidRequestError(
            "The image size is too large for file format 'qcow2' (try using a larger cluster "
            f"size): {header.size} bytes with clusters of {header.cluster_size}"
        )


def write_empty_image(file: BlockDevice, header: Header) -> None:
    """Lay out header, refcounts and L1 table in ``file``, which is emptied first."""
    size = header.cluster_size
    table_clusters = _refcount_table_clusters(header)
    header.refcount_table_offset = size
    header.refcount_table_clusters = table_clusters
    l1_clusters = header.l1_clusters(header.l1_size)
    blocks = _blocks_for(header, 1 + table_clusters + l1_clusters)
    first_block = (1 + table_clusters) * size
    header.l1_table_offset = first_block + blocks * size if l1_clusters else 0
    used = 1 + table_clusters + blocks + l1_clusters
    file.truncate(0)
    if file.growable:
        file.truncate(used * size)
    else:  # a block device keeps what it held
        file.write_zeroes(0, used * size, unmap=False)
    for number, block in enumerate(_initial_blocks(header, used, blocks)):
        file.write(first_block + number * size, block)
    offsets = b"".join((first_block + n * size).to_bytes(8, "big") for n in range(blocks))
    file.write(size, offsets)
    file.write(0, header.to_bytes())


def _entries_per_block(header: Header) -> int:
    return header.cluster_size * 8 // header.refcount_bits


def _blocks_for(header: Header, clusters: int) -> int:
    """Refcount blocks that count ``clusters`` clusters and themselves."""
    blocks = 0
    while blocks * _entries_per_block(header) < clusters + blocks:
        blocks += 1
    return blocks


def _refcount_table_clusters(header: Header) -> int:
    """Clusters of a refcount table for the image when it is full."""
    data = -(-header.size // header.cluster_size)
    entries = _entries_per_block(header)
    l2 = header.l1_size
    total = data + l2 + header.l1_size * 8 // header.cluster_size + 2
    blocks = total // (entries - 1) + 1 if entries > 1 else total
    clusters = -(-blocks * 8 // header.cluster_size)
    limit = layout.MAX_REFCOUNT_TABLE_BYTES // header.cluster_size
    return max(min(clusters, limit), 1)


def _initial_blocks(header: Header, used: int, blocks: int) -> list[bytes]:
    from array import array

    codes = {8: "B", 16: "H", 32: "I", 64: "Q"}
    code = codes[max(header.refcount_bits, 8)]
    entries = _entries_per_block(header)
    counts: Array[int] = array(code, [1]) * used
    counts.extend(array(code, [0]) * (blocks * entries - used))
    return [
        pack_counts(counts[n * entries : (n + 1) * entries], header.refcount_bits)
        for n in range(blocks)
    ]
