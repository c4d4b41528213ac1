"""Block devices over block devices: windows, throttles, fault injection, write logs.

A filter that options can name (``{"driver": "throttle", "file": …}``) is listed here, and its
module has a ``FILTER``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.block import BlockDevice
    from vdisk.options import OptionBag

_MODULES = {"copy-on-read": "vdisk.filters.copy_on_read"}


class FilterDriver(Protocol):
    """What a filter module's ``FILTER`` offers.  ``children``: its options that are nodes."""

    children: tuple[str, ...]

    def open(self, children: Mapping[str, BlockDevice], options: OptionBag) -> BlockDevice:
        """The filter over its ``children``, which it owns from here on, also when it fails."""


def filter_driver(name: str) -> FilterDriver | None:
    """The filter called ``name``, if there is one."""
    if name not in _MODULES:
        return None
    found: FilterDriver = importlib.import_module(_MODULES[name]).FILTER
    return found


def names() -> list[str]:
    """The names of all filters that options can name."""
    return sorted(_MODULES)
