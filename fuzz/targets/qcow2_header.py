"""Any bytes: a Header, which survives being written and read, or a VdiskError; ≤ 256 MiB, ≤ 2 s.

Only the first cluster, without the file around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuzz.images import small_images
from fuzz.qcow2_fields import change_image
from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.formats._qcow2.header import Header, cluster_bits_of, parse
from vdisk.formats._qcow2.validate import check_header

if TYPE_CHECKING:
    import random

LONGEST = 4096
FILE_SIZE = 1 << 30


def seeds() -> dict[str, bytes]:
    return {name: data[:1024] for name, data in small_images().items()}


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_image(data, rng)


def run(data: bytes) -> None:
    try:
        cluster_bits_of(data, path="fuzz")
        header = parse(data, path="fuzz")
    except VdiskError:
        return
    try:
        check_header(header, FILE_SIZE, path="fuzz")
    except VdiskError:
        return
    try:
        written = header.to_bytes()
    except InvalidRequestError:
        return  # it fitted in the cluster only without the feature names or the padding of ours
    again = parse(written, path="fuzz")
    assert _fields(again) == _fields(header)
    assert again.to_bytes() == written


def _fields(header: Header) -> dict[str, Any]:
    """All of it but the feature names, which writing completes, and the place that moves then."""
    moving = ("feature_names", "name_offset")
    return {name: value for name, value in vars(header).items() if name not in moving}
