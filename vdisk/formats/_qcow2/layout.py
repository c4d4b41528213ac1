"""The numbers of the qcow2 format ("Qcow2 Image File Format", QEMU docs/interop/qcow2).

All integers of the file are big-endian; all offsets are bytes::

    header     cluster 0: fixed fields, header extensions, backing file name
    refcounts  refcount table -> refcount blocks -> one count a host cluster
    mapping    L1 table -> L2 tables -> one descriptor a guest cluster
    snapshots  snapshot table -> an L1 table each
    bitmaps    bitmap directory -> a bitmap table each -> bitmap data

An L2 entry of a standard cluster, and of a compressed one (x = 62 - (cluster_bits - 8))::

    63      62  61..56    55 ...... 9      8..1      0
    COPIED  0   reserved  host offset      reserved  ZERO

    63  62  61 ........ x                x-1 ........ 0
    0   1   additional 512-byte sectors  host offset, any alignment
"""

from __future__ import annotations

MAGIC = b"QFI\xfb"

V2_HEADER_LENGTH = 72
V3_HEADER_LENGTH = 104

MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
MIN_EXTENDED_L2_CLUSTER_BITS = 14

# -- table entries ---------------------------------------------------------------------------

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1 << 0
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED = 0x7F00_0000_0000_01FF
L2_STANDARD_RESERVED = 0x3F00_0000_0000_01FE
REFCOUNT_TABLE_RESERVED = 0x1FF

SECTOR = 512
SUBCLUSTERS = 32
ALL_ALLOCATED = 0xFFFF_FFFF
"""Subcluster bitmap: every subcluster allocated."""
ALL_ZERO = 0xFFFF_FFFF << 32
"""Subcluster bitmap: every subcluster reads as zeroes."""

# -- feature bits ----------------------------------------------------------------------------

DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2

LAZY_REFCOUNTS = 1 << 0

BITMAPS = 1 << 0
RAW_EXTERNAL_DATA = 1 << 1
KNOWN_AUTOCLEAR = BITMAPS | RAW_EXTERNAL_DATA

FEATURE_NAMES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
"""(type, bit, name): what the feature name table says of every bit this library knows."""

# -- bitmaps ---------------------------------------------------------------------------------

BITMAP_IN_USE = 1 << 0
BITMAP_AUTO = 1 << 1
BITMAP_EXTRA_DATA_COMPATIBLE = 1 << 2
KNOWN_BITMAP_FLAGS = BITMAP_IN_USE | BITMAP_AUTO | BITMAP_EXTRA_DATA_COMPATIBLE

DIRTY_TRACKING_BITMAP = 1
LARGEST_GRANULARITY_BITS = 63
BITMAP_ALL_ONES = 1 << 0
BITMAP_TABLE_RESERVED = 0xFF00_0000_0000_01FE

# -- header extensions -----------------------------------------------------------------------

EXT_END = 0x0000_0000
EXT_BACKING_FORMAT = 0xE279_2ACA
EXT_FEATURE_NAMES = 0x6803_F857
EXT_BITMAPS = 0x2385_2875
EXT_CRYPTO = 0x0537_BE77
EXT_DATA_FILE = 0x4441_5441

CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1

# -- limits: QEMU's own, so that every image QEMU opens is opened and memory stays bounded ------

MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_BACKING_NAME = 1023
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MAX_SNAPSHOT_EXTRA = 1024
MAX_BITMAPS = 65535
MAX_BITMAP_NAME = 1023
MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * (24 + MAX_BITMAP_NAME + 1)
MAX_BITMAP_DATA_BYTES = 512 << 20
"""Of one bitmap, as its table has room for."""
MAX_BITMAP_BITS = MAX_BITMAP_DATA_BYTES * 8
"""Of a bitmap that is used.  Of the memory in which is recorded what is written, as much is taken
as was written to: a page for 128 MiB of a disk where a bit stands for 4 KiB of it."""
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31

TABLE_SLICE = 64 << 10
"""L2 tables are cached in slices of at most this many bytes, so that one lookup in an image of
2 MiB clusters does not read and swap 2 MiB."""

DEFAULT_L2_CACHE = 32 << 20
DEFAULT_REFCOUNT_CACHE = 16 << 20
"""Bytes of metadata kept in memory by default: together they stay under 64 MiB."""
