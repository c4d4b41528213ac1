"""Disk images in Python: open, create, convert, check, and what they hold.

::

    import vdisk

    vdisk.create("disk.qcow2", 20 << 30, format="qcow2")
    with vdisk.open("disk.qcow2", "r+") as disk:
        disk.write(0, b"boot")
        for extent in disk.map():
            print(extent.start, extent.length, extent.kind)
    vdisk.convert("disk.qcow2", "disk.raw", progress=lambda done, total: print(done, "of", total))
    print(vdisk.info("disk.qcow2").to_json())

Everything is a :class:`BlockDevice`; every error is a :class:`VdiskError`.  The names below
are imported when they are first used, so ``import vdisk`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdisk.api import create as create
    from vdisk.api import map as map
    from vdisk.api import open as open
    from vdisk.block import BlockDevice as BlockDevice
    from vdisk.block import Extent as Extent
    from vdisk.block import Kind as Kind
    from vdisk.errors import AlreadyExistsError as AlreadyExistsError
    from vdisk.errors import AuthenticationError as AuthenticationError
    from vdisk.errors import CancelledError as CancelledError
    from vdisk.errors import ClosedError as ClosedError
    from vdisk.errors import CorruptImageError as CorruptImageError
    from vdisk.errors import DeviceError as DeviceError
    from vdisk.errors import FormatError as FormatError
    from vdisk.errors import ImageLockedError as ImageLockedError
    from vdisk.errors import InvalidRequestError as InvalidRequestError
    from vdisk.errors import NoSpaceError as NoSpaceError
    from vdisk.errors import NotFoundError as NotFoundError
    from vdisk.errors import OutOfRangeError as OutOfRangeError
    from vdisk.errors import ReadOnlyError as ReadOnlyError
    from vdisk.errors import UnsupportedFeatureError as UnsupportedFeatureError
    from vdisk.errors import VdiskError as VdiskError
    from vdisk.fileobj import DeviceFile as DeviceFile
    from vdisk.formats.luks import LuksImage as LuksImage
    from vdisk.formats.qcow2 import Qcow2Image as Qcow2Image
    from vdisk.formats.raw import RawImage as RawImage
    from vdisk.jobs.check import check as check
    from vdisk.jobs.commit import CommitResult as CommitResult
    from vdisk.jobs.commit import commit as commit
    from vdisk.jobs.compare import CompareResult as CompareResult
    from vdisk.jobs.compare import Difference as Difference
    from vdisk.jobs.compare import compare as compare
    from vdisk.jobs.convert import ConvertResult as ConvertResult
    from vdisk.jobs.convert import convert as convert
    from vdisk.jobs.info import ImageInfo as ImageInfo
    from vdisk.jobs.info import info as info
    from vdisk.jobs.map import MapEntry as MapEntry
    from vdisk.jobs.measure import MeasureResult as MeasureResult
    from vdisk.jobs.measure import measure as measure
    from vdisk.jobs.rebase import RebaseResult as RebaseResult
    from vdisk.jobs.rebase import rebase as rebase

__version__ = "0.1.0"

_HOMES = {
    "vdisk.api": "create map open",
    "vdisk.block": "BlockDevice Extent Kind",
    "vdisk.errors": (
        "AlreadyExistsError AuthenticationError CancelledError ClosedError CorruptImageError "
        "DeviceError FormatError ImageLockedError InvalidRequestError NoSpaceError NotFoundError "
        "OutOfRangeError ReadOnlyError UnsupportedFeatureError VdiskError"
    ),
    "vdisk.fileobj": "DeviceFile",
    "vdisk.formats.luks": "LuksImage",
    "vdisk.formats.qcow2": "Qcow2Image",
    "vdisk.formats.raw": "RawImage",
    "vdisk.jobs.check": "check",
    "vdisk.jobs.commit": "CommitResult commit",
    "vdisk.jobs.compare": "CompareResult Difference compare",
    "vdisk.jobs.convert": "ConvertResult convert",
    "vdisk.jobs.info": "ImageInfo info",
    "vdisk.jobs.map": "MapEntry",
    "vdisk.jobs.measure": "MeasureResult measure",
    "vdisk.jobs.rebase": "RebaseResult rebase",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vdisk' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
