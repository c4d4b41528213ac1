"""Exports that are opened when a client wants them, and closed when the last has left."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

from vdisk.errors import from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.nbd_serving.export import Export

MAX_LISTED = 10_000
"""Names in one listing: as many as clients take from any server."""


class ExportSource(Protocol):
    """Where exports come from; the methods may block, and are called in worker threads."""

    def names(self) -> list[tuple[str, str]]:
        """What there is: (name, description)."""

    def open(self, name: str) -> Export | None:
        """The export of that name, or None if there is none.  Raises :class:`VdiskError`."""

    def close(self, export: Export) -> None:
        """No client uses ``export`` any longer."""


class DirectoryOfImages:
    """Every image in a directory, each an export named like its file.

    ``open_file(path, name)`` opens an image as an export.  Only files right in the directory
    count, and none whose names begin with a dot.
    """

    def __init__(self, directory: str, open_file: Callable[[str, str], Export]) -> None:
        self._directory = directory
        self._open_file = open_file

    def names(self) -> list[tuple[str, str]]:
        try:
            with os.scandir(self._directory) as entries:
                found = sorted(
                    entry.name
                    for entry in entries
                    if _may_be_export(entry.name) and entry.is_file()
                )
        except OSError as error:
            raise from_os_error(error, path=self._directory, operation="list") from error
        return [(name, "") for name in found[:MAX_LISTED]]

    def open(self, name: str) -> Export | None:
        if not _may_be_export(name):
            return None
        path = os.path.join(self._directory, name)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
        except OSError:
            return None
        return self._open_file(path, name)

    def close(self, export: Export) -> None:
        export.device.close()


def _may_be_export(name: str) -> bool:
    """A plain file name: nothing hidden, nothing that leads out of the directory."""
    return bool(name) and not name.startswith(".") and "/" not in name and name.isprintable()
