"""The formats: what each is called, how it is recognised, opened and created.

A format is a module with a ``DRIVER``.  It is imported when it is first used, so a program
that reads raw images never pays for qcow2.  Recognition reads the first bytes only.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.block import BlockDevice

PROBE_SIZE = 2048
"""Bytes of the file that recognition looks at."""

NO_SECRETS: Mapping[str, bytes] = MappingProxyType({})

_MODULES = {
    "raw": "vdisk.formats.raw",
    "qcow2": "vdisk.formats.qcow2",
    "luks": "vdisk.formats.luks",
}


class OpenContext(NamedTuple):
    """What a format needs to know of the world when it opens one image.

    ``open_child(request)``: open a backing or data file by the name stored in the image, relative
    to it; None for a backing file that the user wants left out.
    ``options``: the format's own run-time options, such as ``{"l2-cache-size": 1 << 20}``.
    ``secrets``: passphrases by id, as ``--object secret`` defines them.
    """

    readonly: bool = True
    allow_backing: bool = True
    open_child: Callable[[ChildRequest], BlockDevice | None] | None = None
    options: Mapping[str, Any] = {}
    secrets: Mapping[str, bytes] = NO_SECRETS
    repairing: bool = False
    """Opened by a check: what it reports is not refused here, and an image that is marked dirty
    or corrupt may be opened for writing as it is."""


class ChildRequest(NamedTuple):
    """A reference from inside an image to another file: ``role`` is "backing" or "data-file".

    ``name`` None: the image names none, and only what the user said can lead to one.
    """

    role: str
    name: str | None
    format: str | None
    readonly: bool


class CreateOption(NamedTuple):
    """One ``-o name=value`` of a format. ``type``: "size", "bool", "string", "number", "enum"."""

    name: str
    type: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()


FILE_OPTIONS = (
    CreateOption("extent_size_hint", "size", "what the file system allocates at a time (XFS)"),
    CreateOption("nocow", "bool", "have the file system write in place (btrfs)"),
)
"""Options of the file that an image is created in, whatever its format."""


class FormatDriver(Protocol):
    """What a format module's ``DRIVER`` offers."""

    name: str
    create_options: tuple[CreateOption, ...]

    def open(self, file: BlockDevice, context: OpenContext) -> BlockDevice:
        """The image in ``file``, which it owns from here on (and closes if opening fails)."""

    def create(
        self,
        file: BlockDevice,
        size: int,
        options: Mapping[str, Any],
        secrets: Mapping[str, bytes] = NO_SECRETS,
    ) -> None:
        """Write an empty image of ``size`` bytes into ``file``; options by name, typed.

        ``secrets``: passphrases by the ids that options such as "key-secret" name.
        """

    def measure(
        self, size: int, options: Mapping[str, Any], allocated: int | None = None
    ) -> tuple[int, int]:
        """Bytes of the file that ``create`` and writing would make: (required, at most).

        ``allocated``: bytes of data, in whole clusters of the new image, that a source fills;
        None: nothing is written.
        """


def driver(name: str) -> FormatDriver:
    """The format called ``name``; raises :class:`InvalidRequestError` for an unknown one."""
    try:
        module = importlib.import_module(_MODULES[name])
    except KeyError:
        known = ", ".join(sorted(_MODULES))
        raise InvalidRequestError(f"Unknown file format {name!r} (known: {known})") from None
    found: FormatDriver = module.DRIVER
    return found


def names() -> list[str]:
    """The names of all formats."""
    return sorted(_MODULES)


def probe(head: bytes) -> str:
    """The format whose magic stands in ``head``, the first bytes of a file; "raw" if none."""
    if head[:4] == b"QFI\xfb" and head[4:8] in (b"\0\0\0\x02", b"\0\0\0\x03"):
        return "qcow2"
    if head[:8] in (b"LUKS\xba\xbe\0\x01", b"LUKS\xba\xbe\0\x02"):
        return "luks"
    return "raw"
