"""Where bytes live: files, memory, the far end of an NBD connection.

Each store is a :class:`vdisk.block.BlockDevice`.  A store that names can lead to ("nbd://…",
``{"driver": "file"}``) is listed here, and its module has a ``PROTOCOL``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice
    from vdisk.options import OptionBag

_MODULES = {
    "file": "vdisk.stores.file_protocol",
    "host_device": "vdisk.stores.file_protocol",
    "nbd": "vdisk.stores.nbd_protocol",
    "null-aio": "vdisk.stores.null",
    "null-co": "vdisk.stores.null",
}
_SCHEMES = {
    "file": "file",
    "null-aio": "null-aio",
    "null-co": "null-co",
    **dict.fromkeys(("nbd", "nbd+tcp", "nbd+unix", "nbd+vsock"), "nbd"),
    **dict.fromkeys(("nbds", "nbds+unix", "nbds+vsock"), "nbd"),
}
"""What stands before the colon of a name, and the protocol that reads such names."""


class CacheMode(NamedTuple):
    """How writes reach the disk.

    ``direct``: past the page cache (O_DIRECT).  ``write_through``: stable when the write
    returns.  ``no_flush``: flushes are ignored, for data that may be lost with the power.
    """

    direct: bool = False
    write_through: bool = False
    no_flush: bool = False

    @staticmethod
    def parse(name: str) -> CacheMode:
        """The mode called ``name``, as ``-t`` and ``-T`` take it."""
        try:
            return CACHE_MODES[name]
        except KeyError:
            known = ", ".join(CACHE_MODES)
            raise InvalidRequestError(f"unknown cache mode {name!r} (one of {known})") from None


CACHE_MODES = {
    "writeback": CacheMode(),
    "none": CacheMode(direct=True),
    "off": CacheMode(direct=True),
    "writethrough": CacheMode(write_through=True),
    "directsync": CacheMode(direct=True, write_through=True),
    "unsafe": CacheMode(no_flush=True),
}


class StoreSettings(NamedTuple):
    """How to open a store, whatever its protocol.

    ``force_share``: take no locks.  ``secrets``: passphrases by id.  ``objects``: other
    ``--object`` definitions by id, such as TLS credentials, each with its "qom-type".
    """

    readonly: bool = True
    force_share: bool = False
    cache: CacheMode = CacheMode()
    secrets: Mapping[str, bytes] = {}
    objects: Mapping[str, Mapping[str, str]] = {}


class ProtocolDriver(Protocol):
    """What a store module's ``PROTOCOL`` offers."""

    def parse_name(self, name: str) -> dict[str, Any]:
        """The options, "driver" among them, that a name with one of its schemes stands for."""

    def open(self, options: OptionBag, settings: StoreSettings) -> BlockDevice:
        """The store that ``options`` describe (its "driver" taken out already)."""


def protocol(name: str) -> ProtocolDriver | None:
    """The protocol called ``name``, if there is one."""
    if name not in _MODULES:
        return None
    found: ProtocolDriver = importlib.import_module(_MODULES[name]).PROTOCOL
    return found


def protocol_for_scheme(scheme: str) -> ProtocolDriver | None:
    """The protocol that reads names beginning with ``scheme:``, if there is one."""
    return protocol(_SCHEMES[scheme]) if scheme in _SCHEMES else None


def names() -> list[str]:
    """The names of all protocols."""
    return sorted(_MODULES)


def path_of(filename: str) -> str:
    """The path that ``filename``, perhaps with "file:" before it, means.

    As a name of its own it means the same: what comes before a colon is not taken for a protocol.
    """
    path = filename.removeprefix("file:")
    return "./" + path if ":" in path.partition("/")[0] else path
