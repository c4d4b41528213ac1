"""Opening an image: its header, the files it refers to, and what its feature bits demand.

Reading the header touches nothing else; :func:`open_parts` opens what the header names, and
:func:`prepare_for_writing` does what a program owes the image before its first write.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import close_all
from vdisk.errors import CorruptImageError, UnsupportedFeatureError
from vdisk.formats import ChildRequest
from vdisk.formats._qcow2 import layout
from vdisk.formats._qcow2.header import Header, cluster_bits_of, parse
from vdisk.formats._qcow2.validate import check_header

if TYPE_CHECKING:
    from vdisk.block import BlockDevice
    from vdisk.formats import OpenContext
    from vdisk.formats._qcow2.crypto import Encryption
    from vdisk.formats.qcow2 import Qcow2Image


class Parts(NamedTuple):
    """What an image is made of, opened."""

    header: Header
    data_file: BlockDevice | None
    backing: BlockDevice | None
    encryption: Encryption | None

    def close(self) -> None:
        """Close the files the image refers to."""
        close_all(self.data_file, self.backing)


def read_header(file: BlockDevice, *, checking: bool = False) -> Header:
    """The header of the image in ``file``, checked against the file's size.

    ``checking``: tables that a check can do without may be anywhere.
    """
    head = file.read(0, min(file.size, layout.V2_HEADER_LENGTH))
    cluster_size = 1 << cluster_bits_of(head, path=file.name)
    header = parse(file.read(0, min(file.size, cluster_size)), path=file.name)
    check_header(header, file.size, path=file.name, checking=checking)
    return header


def open_parts(file: BlockDevice, context: OpenContext) -> Parts:
    """Read the header of ``file`` and open what it refers to; all of it, or an error."""
    header = read_header(file, checking=context.repairing)
    corrupt = header.incompatible_features & layout.CORRUPT
    if corrupt and not context.readonly and not context.repairing:
        raise CorruptImageError(
            "Image is corrupt; cannot be opened read/write: repair it with check -r all",
            path=file.name,
        )
    with ExitStack() as opened:
        data_file = _open_data_file(file, header, context)
        if data_file is not None:
            opened.callback(data_file.close)
        backing = _open_backing(header, context)
        if backing is not None:
            opened.callback(backing.close)
        encryption = _open_encryption(file, header, context)
        opened.pop_all()
    return Parts(header, data_file, backing, encryption)


def _open_data_file(file: BlockDevice, header: Header, context: OpenContext) -> BlockDevice | None:
    if not header.external_data:
        return None
    if context.open_child is None:
        raise UnsupportedFeatureError(
            "the image keeps its data in another file, which may not be opened here",
            path=file.name,
        )
    request = ChildRequest("data-file", header.data_file_name, "file", context.readonly)
    return context.open_child(request)


def _open_backing(header: Header, context: OpenContext) -> BlockDevice | None:
    if header.data_file_raw or context.open_child is None:
        return None  # the data file alone is the disk
    return context.open_child(
        ChildRequest("backing", header.backing_file, header.backing_format, True)
    )


def _open_encryption(file: BlockDevice, header: Header, context: OpenContext) -> Encryption | None:
    if not header.crypt_method and not any(
        name.partition(".")[0] == "encrypt" for name in context.options
    ):
        return None
    from vdisk.formats._qcow2.crypto import open_encryption

    return open_encryption(file, header, context.options, context.secrets)


def prepare_for_writing(image: Qcow2Image, context: OpenContext) -> None:
    """What each feature bit demands of a program that is about to write."""
    header = image.header
    if header.autoclear_features & ~layout.KNOWN_AUTOCLEAR:
        with image._core.header_file.changing():
            header.autoclear_features &= layout.KNOWN_AUTOCLEAR
    if image.dirty and not context.repairing:
        _repair_dirty(image)
    if not context.repairing:
        image.bitmaps()  # they must be readable, or writing would make enabled ones wrong


def _repair_dirty(image: Qcow2Image) -> None:
    """The image was not closed by its last writer: its refcounts are to be made right first."""
    result = image.check(repair={"leaks", "errors"})
    if image.dirty:
        first = next(iter(result.remaining), "")
        raise CorruptImageError(
            "the image was not closed cleanly, and repairing it left "
            f"{result.corruptions} corruptions and {result.check_errors} errors ({first})",
            path=image.name,
        )
