"""From the options of ``vdisk io`` or its command ``open`` to a device."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from vdisk.cli._io.session import complain
from vdisk.opening import Backing, open_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice
    from vdisk.cli._io.session import Settings
    from vdisk.options import Secrets


class Opener:
    """Opens images as :class:`Settings` say; ``secrets`` and ``backing`` hold for all of them."""

    def __init__(self, secrets: Secrets, backing: Backing) -> None:
        self._secrets = secrets
        self._backing = backing

    def __call__(self, settings: Settings) -> BlockDevice:
        """The device; raises :class:`~vdisk.errors.VdiskError`."""
        device = self._image(settings)
        try:
            if settings.snapshot:
                device = temporary_overlay(device)
            if settings.copy_on_read:
                from vdisk.filters.copy_on_read import CopyOnRead

                device = CopyOnRead(device)
        except BaseException:
            device.close()
            raise
        return device

    def _image(self, settings: Settings) -> BlockDevice:
        options: Mapping[str, Any] = settings.options
        return open_image(
            options if settings.name is None else settings.name,
            readonly=settings.readonly or settings.snapshot,
            format=settings.format,
            cache=settings.cache,
            force_share=settings.force_share,
            backing=self._backing,
            secrets=self._secrets,
            options=None if settings.name is None else options,
            warn=lambda message: complain(f"vdisk io: warning: {message}"),
        )


def temporary_overlay(base: BlockDevice) -> BlockDevice:
    """A writable disk that begins as ``base``; its file has no name and goes when it is closed."""
    from vdisk.formats.qcow2 import DRIVER, Qcow2Image, read_header
    from vdisk.stores.file import FileStore

    descriptor, path = tempfile.mkstemp(prefix="vdisk-", suffix=".qcow2")
    os.close(descriptor)
    try:
        file = FileStore(path, readonly=False, locked=False)
    finally:
        os.unlink(path)
    DRIVER.create(file, base.size, {})
    return Qcow2Image(file, read_header(file), readonly=False, backing=base)
