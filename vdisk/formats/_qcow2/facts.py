"""What ``info`` tells of a qcow2 image beyond what any image has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.formats._qcow2 import layout

if TYPE_CHECKING:
    from vdisk.formats.qcow2 import Qcow2Image


def facts(image: Qcow2Image) -> dict[str, Any]:
    """ImageInfoSpecificQCow2 of QEMU's qapi/block-core.json."""
    header = image.header
    info: dict[str, Any] = {
        "compat": "0.10" if header.version == 2 else "1.1",
        "compression-type": ("zlib", "zstd")[header.compression_type],
    }
    if header.version >= 3:
        info["lazy-refcounts"] = header.lazy_refcounts
    if header.bitmaps is not None:
        info["bitmaps"] = [
            {"flags": list(one.flags), "name": one.name, "granularity": one.granularity}
            for one in image.bitmaps()
        ]
    info["refcount-bits"] = header.refcount_bits
    if image.encryption is not None:
        info["encrypt"] = image.encryption.info()
    if header.version >= 3:
        if header.external_data:
            if header.data_file_name is not None:
                info["data-file"] = header.data_file_name
            info["data-file-raw"] = header.data_file_raw
        info["corrupt"] = bool(header.incompatible_features & layout.CORRUPT)
        info["extended-l2"] = header.extended_l2
    return info
