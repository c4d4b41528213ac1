"""A temporary overlay: a disk that can be written to while its image stays as it is."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from vdisk.errors import from_os_error
from vdisk.formats.qcow2 import DRIVER, Qcow2Image, read_header
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice


def temporary_overlay(device: BlockDevice, directory: str | None = None) -> BlockDevice:
    """A qcow2 image over ``device``, which it owns, in a file that has no name any more.

    ``directory``: where the file lives until it is closed (None: the system's place for
    temporary files).  Writes are lost when the overlay is closed.
    """
    try:
        descriptor, path = tempfile.mkstemp(prefix="vdisk-overlay-", dir=directory)
    except OSError as error:
        raise from_os_error(
            error, path=directory or tempfile.gettempdir(), operation="make a temporary file"
        ) from error
    os.close(descriptor)
    try:
        # Nothing has to survive a loss of power: the file does not even survive its closing.
        file = FileStore(path, readonly=False, locked=False, ignore_flush=True)
    finally:
        os.unlink(path)
    try:
        DRIVER.create(file, device.size, {})
        return Qcow2Image(file, read_header(file), readonly=False, backing=device)
    except BaseException:
        file.close()
        raise
