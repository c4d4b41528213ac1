"""How large a new image will be: the arithmetic of its metadata.

A fully allocated image is made of::

    header | L1 table | L2 tables | refcount table | refcount blocks | the disk's clusters

where the reference counts count themselves too.  An image that holds less is measured with the
same metadata: what is answered is large enough in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.formats._qcow2.create import asks_for_encryption, header_from_options
from vdisk.formats._qcow2.text import encoded
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vdisk.formats._qcow2.header import Header

_ENTRY = 8
_BITMAP_DIRECTORY_ENTRY = 24


def measure(size: int, options: Mapping[str, Any], allocated: int | None = None) -> tuple[int, int]:
    """Bytes of a new image's file: (holding ``allocated`` bytes of data, holding everything).

    ``allocated``: the whole clusters that a source fills, in bytes; None: there is no source.
    Raises :class:`InvalidRequestError` for options that cannot work.
    """
    header = header_from_options(size, options)
    cluster_size = header.cluster_size
    data = round_up(header.size, cluster_size)
    metadata = _metadata_clusters(header) * cluster_size
    metadata += round_up(_encryption_header_size(options), cluster_size)
    if options.get("preallocation") in ("falloc", "full"):
        allocated = data
    if allocated is not None and header.backing_file is not None:
        allocated = data  # how much of it the backing file will show is not known
    return metadata + (allocated or 0), metadata + data


def _metadata_clusters(header: Header) -> int:
    """Clusters beside those of the disk, if all of the disk is allocated."""
    data = -(-header.size // header.cluster_size)
    l2_tables = header.l1_size
    l1_clusters = -(-l2_tables * _ENTRY // header.cluster_size)
    others = 1 + l1_clusters + l2_tables
    return others + _refcount_clusters(header, others + data)


def _refcount_clusters(header: Header, counted: int) -> int:
    """Clusters of the refcount table and blocks that count ``counted`` others and themselves."""
    per_block = header.cluster_size * 8 // header.refcount_bits
    per_table = header.cluster_size // _ENTRY
    own = 0
    while True:
        blocks = -(-(counted + own) // per_block)
        needed = blocks + -(-blocks // per_table)
        if needed == own:
            return own
        own = needed


def _encryption_header_size(options: Mapping[str, Any]) -> int:
    """Bytes of the LUKS header inside the image, if it is to be encrypted."""
    if not asks_for_encryption(options):
        return 0
    from vdisk.formats._qcow2.crypto import choose_encryption

    chosen = choose_encryption(options)
    return 0 if chosen is None else chosen.header_size


def measure_bitmaps(bitmaps: Iterable[tuple[str, int]], size: int, cluster_size: int) -> int:
    """Bytes that bitmaps of a disk of ``size`` bytes take: (name, granularity) of each."""
    total = directory = 0
    for name, granularity in bitmaps:
        clusters = -(-(-(-size // granularity) // 8) // cluster_size)
        total += clusters * cluster_size + round_up(clusters * _ENTRY, cluster_size)
        directory += round_up(_BITMAP_DIRECTORY_ENTRY + len(encoded(name)), 8)
    return total + round_up(directory, cluster_size)
