"""What an image is, without reading the disk in it.

The backing files are opened one by one, each by itself, so that an image whose chain is broken
can still be looked at.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vdisk.opening import Backing, NodeContext, open_node
from vdisk.opening.names import describe_tree, parse_name, relative_to, with_format
from vdisk.opening.nodes import MAX_CHAIN_DEPTH
from vdisk.options import nest, split_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.snapshots import SnapshotInfo
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.opening.nodes import FileLink
    from vdisk.options import Secrets


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
    secrets: Secrets | None = None,
) -> ImageInfo:
    """Describe the image ``name``; with ``chain`` also the backing files below it.

    ``backing`` False: an image that names a backing or data file is refused.  An encrypted
    image needs no secret.  Raises :class:`~vdisk.errors.VdiskError`.
    """
    tree = parse_name(os.fspath(name)) if isinstance(name, str | os.PathLike) else nest(name)
    files: list[FileLink] = []
    passphrases, objects = split_secrets(secrets)
    context = NodeContext(
        files=files,
        backing=Backing.LEAVE if backing else Backing.REFUSE,
        force_share=force_share,
        secrets=passphrases,
        objects=objects,
    )
    found: list[ImageInfo] = []
    while len(found) < MAX_CHAIN_DEPTH:
        files, above = [], files
        context = context._replace(chain=(*context.chain, *above), files=files)
        stated = tree if format is None else with_format(tree, format)
        with open_node(_without_unknown(stated, passphrases), context) as image:
            found.append(describe_image(image, tree, files[0].directory if files else None))
        below = found[-1].full_backing_filename
        if not chain or below is None:
            break
        tree, format = parse_name(below), found[-1].backing_format
    described = found.pop()
    while found:
        described = found.pop()._replace(backing=described)
    return described


def _without_unknown(tree: Mapping[str, Any], passphrases: Mapping[str, bytes]) -> dict[str, Any]:
    """``tree`` without references to secrets that nobody defined: none is needed here."""
    return {
        key: _without_unknown(value, passphrases) if isinstance(value, dict) else value
        for key, value in tree.items()
        if key.rpartition(".")[2] != "key-secret"
        or not isinstance(value, str)  # which opening refuses
        or value in passphrases
    }


def describe_image(
    image: BlockDevice, tree: Mapping[str, Any], directory: str | None = None
) -> ImageInfo:
    """What the open ``image`` says of itself; ``tree``: the options it was opened by.

    ``directory``: where the image lies, for the name of its backing file.
    """
    format = getattr(image, "format_name", None) or str(tree.get("driver", "raw"))
    described = ImageInfo(
        filename=describe_tree(tree, format),
        format=format,
        virtual_size=image.size,
        actual_size=_actual_size(image),
    )
    format_info = getattr(image, "format_info", None)
    if format_info is not None:
        described = described._replace(format_specific={"type": format, "data": format_info()})
    if format == "qcow2":
        return _with_qcow2(described, cast("Qcow2Image", image), directory)
    if format == "luks":
        return described._replace(encrypted=True)
    return described


def _with_qcow2(described: ImageInfo, image: Qcow2Image, directory: str | None) -> ImageInfo:
    header = image.header
    backing = header.backing_file
    return described._replace(
        dirty=image.dirty,
        cluster_size=image.cluster_size,
        encrypted=bool(header.crypt_method),
        backing_filename=backing,
        full_backing_filename=None if backing is None else relative_to(directory, backing),
        backing_format=header.backing_format,
        snapshots=tuple(image.snapshots()),
    )


def _actual_size(image: BlockDevice) -> int | None:
    """Storage in use by the image and its external data file."""
    found: list[int] = []
    for device in (getattr(image, "file", image), getattr(image, "data_file", None)):
        size = getattr(device, "allocated_size", None)
        if size is not None:
            found.append(size)
    return sum(found) if found else None
