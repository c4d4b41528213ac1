"""How the registry of formats makes and opens qcow2 images."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vdisk.formats import NO_SECRETS, CreateOption, OpenContext
from vdisk.formats._qcow2.create import (
    AMEND_OPTIONS,
    OPTIONS,
    asks_for_encryption,
    header_from_options,
    write_empty_image,
)
from vdisk.formats._qcow2.measure import measure
from vdisk.formats._qcow2.opening import open_parts, prepare_for_writing
from vdisk.formats._qcow2.runtime import typed_options

if TYPE_CHECKING:
    from collections.abc import Mapping as Options

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image


class Qcow2Driver:
    """Opens and creates qcow2 images, which are of ``image_class``."""

    name = "qcow2"
    create_options: tuple[CreateOption, ...] = OPTIONS
    amend_options: tuple[CreateOption, ...] = AMEND_OPTIONS

    def __init__(self, image_class: type[Qcow2Image]) -> None:
        self._image_class = image_class

    def open(self, file: BlockDevice, context: OpenContext) -> Qcow2Image:
        """The image in ``file`` with its data file and backing chain."""
        with ExitStack() as opened:
            opened.callback(file.close)
            parts = open_parts(file, context)
            opened.callback(parts.close)
            image = self._image_class(
                file,
                parts.header,
                readonly=context.readonly,
                backing=parts.backing,
                data_file=parts.data_file,
                encryption=parts.encryption,
                options=typed_options(context.options, parts.header),
            )
            opened.callback(image.close)
            if not context.readonly:
                prepare_for_writing(image, context)
            opened.pop_all()
        return image

    def create(
        self,
        file: BlockDevice,
        size: int,
        options: Options[str, Any],
        secrets: Options[str, bytes] = NO_SECRETS,
    ) -> None:
        header = header_from_options(size, options)
        encryption = None
        if asks_for_encryption(options):
            from vdisk.formats._qcow2.crypto import create_encrypted

            encryption = create_encrypted(file, header, options, secrets)
        else:
            write_empty_image(file, header)
        mode = options.get("preallocation", "off")
        if header.data_file_raw and mode == "off":
            mode = "metadata"  # so that every byte of the disk is the data file's, written or not
        if mode != "off":
            from vdisk.formats._qcow2.resize import preallocate_new

            image = self._image_class(file, header, readonly=False, encryption=encryption)
            preallocate_new(image, mode)

    def measure(
        self, size: int, options: Options[str, Any], allocated: int | None = None
    ) -> tuple[int, int]:
        """Bytes of a new file: holding ``allocated`` bytes in whole clusters, and all of them."""
        return measure(size, options, allocated)
