"""Changing what an image was created with: version, features, names, refcount width.

Each change is made true by one write of the header; what it needs (new reference counts, zero
clusters written out) is on the disk before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.create import DEFAULT_REFCOUNT_BITS, is_version_2, refcount_order
from vdisk.formats._qcow2.header import known_feature_names

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping

    from vdisk.formats._qcow2.header import Header
    from vdisk.formats._qcow2.snapshots import SnapshotInfo
    from vdisk.formats.qcow2 import Qcow2Image

_CREATION_ONLY: dict[str, Callable[[Header], Any]] = {
    "cluster_size": lambda header: header.cluster_size,
    "compression_type": lambda header: ("zlib", "zstd")[header.compression_type],
    "extended_l2": lambda header: header.extended_l2,
}
"""Options that can be named only with the value they have."""


def amend(
    image: Qcow2Image,
    options: Mapping[str, Any],
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Apply creation options to an existing image, and those of its passphrases (encrypt.*).

    Everything that can be refused is refused before anything is changed.
    ``force``: erase passphrases even where all data is lost with them.
    Raises :class:`InvalidRequestError`, :class:`UnsupportedFeatureError`.
    """
    header = image.header
    report = progress or (lambda _done, _total: None)
    for name, current in _CREATION_ONLY.items():
        if name in options and options[name] != current(header):
            raise InvalidRequestError(
                f"{name} cannot be changed; convert the image", path=image.name
            )
    version = header.version
    if "compat" in options:
        version = 2 if is_version_2(options["compat"]) else 3
    order = refcount_order(options.get("refcount_bits", header.refcount_bits))
    _check_features(image, options, version, order)
    _amend_encryption(image, options, force)
    if version > header.version:
        _upgrade(image)
    if order != header.refcount_order:
        _change_refcounts(image, order)
    if "size" in options:
        image.resize(options["size"])
    _set_features(image, options)
    if "backing_file" in options or "backing_fmt" in options:
        backing = options.get("backing_file", header.backing_file) or None
        image.change_backing(backing, options.get("backing_fmt", header.backing_format))
    if version < header.version:
        _downgrade(image, report)
    report(1, 1)


def _amend_encryption(image: Qcow2Image, options: Mapping[str, Any], force: bool) -> None:
    """Passphrases: the options that begin with "encrypt."."""
    prefix = "encrypt."
    given = {
        name.removeprefix(prefix): value
        for name, value in options.items()
        if name.startswith(prefix)
    }
    if not given:
        return
    if image.encryption is None:
        raise InvalidRequestError(
            "the image is not encrypted, so no passphrase can be changed", path=image.name
        )
    image.encryption.amend(given, force=force)


def _check_features(
    image: Qcow2Image, options: Mapping[str, Any], version: int, order: int
) -> None:
    header = image.header
    if version == 2:
        _check_version_2(image, options, order)
    if options.get("data_file") is not None and not header.external_data:
        raise InvalidRequestError(
            "data_file can only be changed where there is an external data file", path=image.name
        )
    if options.get("data_file_raw", False) and not header.data_file_raw:
        raise InvalidRequestError(
            "data_file_raw can only be set when the image is created", path=image.name
        )


def _check_version_2(image: Qcow2Image, options: Mapping[str, Any], order: int) -> None:
    header = image.header
    if options.get("lazy_refcounts", False) or 1 << order != DEFAULT_REFCOUNT_BITS:
        raise InvalidRequestError(
            "compat=0.10 has no lazy_refcounts and only refcount_bits=16", path=image.name
        )
    if header.incompatible_features & ~layout.DIRTY or header.external_data:
        raise UnsupportedFeatureError(
            "the image uses features that version 2 does not have", path=image.name
        )
    if header.bitmaps is not None:
        raise UnsupportedFeatureError(
            "version 2 has no bitmaps; remove them first", path=image.name
        )
    size = options.get("size", header.size)
    if not all(_fits_version_2(snapshot, size) for snapshot in image.snapshots()):
        raise UnsupportedFeatureError(
            "internal snapshots prevent downgrade of image: version 2 does not record that their "
            "disk had another size, nor 4 GiB of VM state; delete them first",
            path=image.name,
        )


def _fits_version_2(snapshot: SnapshotInfo, size: int) -> bool:
    return snapshot.disk_size in (None, size) and snapshot.vm_state_size < 1 << 32


def _set_features(image: Qcow2Image, options: Mapping[str, Any]) -> None:
    header = image.header
    compatible, autoclear = header.compatible_features, header.autoclear_features
    if "lazy_refcounts" in options:
        compatible &= ~layout.LAZY_REFCOUNTS
        if options["lazy_refcounts"]:
            compatible |= layout.LAZY_REFCOUNTS
    if options.get("data_file_raw") is False:
        autoclear &= ~layout.RAW_EXTERNAL_DATA
    name = options.get("data_file", header.data_file_name) or None
    new = (compatible, autoclear, name)
    if new != (header.compatible_features, header.autoclear_features, header.data_file_name):
        image._core.settle()
        with image._core.header_file.changing():
            header.compatible_features, header.autoclear_features = compatible, autoclear
            header.data_file_name = name
    if "lazy_refcounts" in options:
        image._core.lazy_refcounts = header.lazy_refcounts


def _upgrade(image: Qcow2Image) -> None:
    """Version 2 to 3: the header grows, and snapshots say how large their disk is."""
    core = image._core
    with core.gate.alone:
        core.settle()
        snapshots = image.snapshots()
        with core.header_file.changing() as header:
            header.version = 3
            header.feature_names = known_feature_names()
        if snapshots:
            from vdisk.formats._qcow2.snapshots import replace_table

            with core.structural():
                replace_table(core, snapshots)


def _downgrade(image: Qcow2Image, report: Callable[[int, int], None]) -> None:
    """Version 3 to 2: zero clusters, which version 2 lacks, are written out first."""
    image.expand_zero_clusters(report)
    core = image._core
    with core.gate.alone:
        core.settle()
        with core.header_file.changing() as header:
            header.version = 2
            header.compatible_features = header.autoclear_features = 0
        core.lazy_refcounts = False


def _change_refcounts(image: Qcow2Image, order: int) -> None:
    """Write all reference counts anew, in another width, then point the header at them."""
    core = image._core
    limit = (1 << (1 << order)) - 1
    with core.gate.alone:
        core.settle()
        old = core.refcounts
        end = old.last_used() + 1
        own = set(old.own_clusters())

        def counts(first: int, count: int) -> array[int]:
            found = old.counts(first, count)
            for cluster in own.intersection(range(first, first + count)):
                found[cluster - first] = 0
            if max(found) > limit:
                raise InvalidRequestError(
                    f"a cluster is referenced {max(found)} times; {1 << order}-bit reference "
                    f"counts hold at most {limit}",
                    path=image.name,
                )
            return found

        core.rewrite_refcounts(end, order, counts)
