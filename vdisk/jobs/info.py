"""What an image is, without reading the disk in it.

The backing files are opened one by one, each by itself, so that an image whose chain is broken
can still be looked at.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.opening import Backing, open_image
from vdisk.opening.names import MAX_CHAIN_DEPTH, describe, parse_name, relative_to, with_format

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.snapshots import SnapshotInfo


class ImageInfo(NamedTuple):
    """An image, described as QEMU's QAPI type ``ImageInfo`` does.  Sizes in bytes.

    ``actual_size``: storage in use, None where nobody can tell.  ``dirty``: the image was not
    closed properly, or is open for writing.  ``full_backing_filename``: the backing file as
    seen from the working directory.  ``format_specific``: what only this format has.
    ``backing``: the same of the backing file, where the chain was asked for.
    """

    filename: str
    format: str
    virtual_size: int
    actual_size: int | None
    dirty: bool = False
    cluster_size: int | None = None
    encrypted: bool = False
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_format: str | None = None
    snapshots: tuple[SnapshotInfo, ...] = ()
    format_specific: Mapping[str, Any] | None = None
    backing: ImageInfo | None = None

    def chain(self) -> Iterator[ImageInfo]:
        """This image and those below it."""
        image: ImageInfo | None = self
        while image is not None:
            yield image
            image = image.backing

    def to_json(self) -> dict[str, Any]:
        """The image, without its chain, in the shape of ``vdisk info --output=json``."""
        shown: dict[str, Any] = {
            "virtual-size": self.virtual_size,
            "filename": self.filename,
            "format": self.format,
            "dirty-flag": self.dirty,
        }
        optional = {
            "actual-size": self.actual_size,
            "cluster-size": self.cluster_size,
            "encrypted": self.encrypted or None,
            "backing-filename": self.backing_filename,
            "full-backing-filename": self.full_backing_filename,
            "backing-filename-format": self.backing_format,
            "snapshots": [snapshot_to_json(each) for each in self.snapshots] or None,
            "format-specific": self.format_specific,
        }
        shown.update((key, value) for key, value in optional.items() if value is not None)
        return shown


def snapshot_to_json(snapshot: SnapshotInfo) -> dict[str, Any]:
    """A snapshot in the shape of QAPI's ``SnapshotInfo``."""
    seconds, nanoseconds = divmod(snapshot.vm_clock_nsec, 1_000_000_000)
    shown: dict[str, Any] = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": seconds,
        "vm-clock-nsec": nanoseconds,
    }
    if snapshot.icount is not None:
        shown["icount"] = snapshot.icount
    return shown


def info(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    format: str | None = None,
    chain: bool = False,
    backing: bool = True,
    force_share: bool = False,
    secrets: Mapping[str, bytes] | None = None,
) -> ImageInfo:
    """Describe the image ``name``; with ``chain`` also the backing files below it.

    ``backing`` False: an image that names a backing or data file is refused.  An encrypted
    image needs no secret.  Raises :class:`~vdisk.errors.VdiskError`.
    """
    tree = parse_name(os.fspath(name)) if isinstance(name, str | os.PathLike) else dict(name)
    wanted = Backing.LEAVE if backing else Backing.REFUSE
    found: list[ImageInfo] = []
    seen: list[object] = []
    while True:
        with open_image(
            tree, format=format, force_share=force_share, backing=wanted, secrets=secrets
        ) as image:
            _refuse_loop(image, seen, found)
            found.append(describe_image(image, tree))
        backing_name = found[-1].full_backing_filename
        if not chain or backing_name is None:
            break
        tree, format = parse_name(backing_name), found[-1].backing_format
    described = found.pop()
    while found:
        described = found.pop()._replace(backing=described)
    return described
