"""Block devices over block devices: windows, throttles, quorums, fault injection, write logs.

A filter that options can name (``{"driver": "throttle", "file": …}``) is listed here, and its
module has a ``FILTER``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice
    from vdisk.options import OptionBag

_MODULES = {
    "blkdebug": "vdisk.filters.blkdebug",
    "blkverify": "vdisk.filters.verify",
    "compress": "vdisk.filters.compress",
    "copy-on-read": "vdisk.filters.copy_on_read",
    "quorum": "vdisk.filters.quorum",
    "throttle": "vdisk.filters.throttle",
}
_SCHEMES = ("blkdebug", "blkverify")
"""Filters that read names of their own, such as ``blkverify:RAW:TEST``."""


LIST = "children"
"""The option that is a list of nodes, of any length: "children.0", "children.1" and so on."""


class FilterDriver(Protocol):
    """What a filter module's ``FILTER`` offers.

    ``children``: its options that are nodes (:data:`LIST`: a list of nodes); ``images``: those of
    them whose format may be guessed, where others without a driver are files.
    """

    children: tuple[str, ...]
    images: frozenset[str]

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> BlockDevice:
        """The filter over its ``children``, which it owns from here on, also when it fails."""


def filter_driver(name: str) -> FilterDriver | None:
    """The filter called ``name``, if there is one."""
    if name not in _MODULES:
        return None
    found: FilterDriver = importlib.import_module(_MODULES[name]).FILTER
    return found


class NamedFilterDriver(FilterDriver, Protocol):
    """A filter that reads names of its own."""

    def parse_name(self, name: str) -> dict[str, Any]:
        """The options, "driver" among them, that a name beginning with its scheme stands for."""


def filter_for_scheme(scheme: str) -> NamedFilterDriver | None:
    """The filter that reads names beginning with ``scheme:``, if there is one."""
    if scheme not in _SCHEMES:
        return None
    found: NamedFilterDriver = importlib.import_module(_MODULES[scheme]).FILTER
    return found


def names() -> list[str]:
    """The names of all filters that options can name."""
    return sorted(_MODULES)
