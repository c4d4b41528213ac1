"""What block jobs do: the copying is :mod:`vdisk.jobs.live`'s, here is what it is about.

::

    stream        backing files --> the image          it gets another backing file, or none
    commit        the image --> a backing file         the drive goes on in that, when told to
    commit below  a backing file --> one below it      the image above gets another backing file
    mirror        the disk --> a target                the drive goes on in that, when told to
    backup        the disk of now --> a target
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol, cast

from vdisk.errors import AlreadyExistsError, InvalidRequestError, UnsupportedFeatureError
from vdisk.jobs import live
from vdisk.jobs.commit import layer_below
from vdisk.jobs.rebase import rebase
from vdisk.opening import open_image

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.vm._machine.drives import MachineDrive
    from vdisk.vm.monitor.control import Target


class Work(Protocol):
    """One job's part: ``run`` and ``catch_up`` in its thread, the rest with the bus lock held.

    ``waits``: it goes on until it is told to conclude.  ``around``: of each change of the disk.
    """

    type: str
    waits: bool
    pace: live.Pace

    def around(self, offset: int, length: int) -> AbstractContextManager[object]: ...

    def run(self) -> None: ...

    def catch_up(self) -> None:
        """Deal with what was changed meanwhile."""

    def conclude(self, *, pivot: bool) -> None:
        """All is done; ``pivot``: the drive goes on in the target.  No request is under way."""

    def abandon(self) -> None:
        """It has failed, or was cancelled."""


class StreamWork:
    """``base``: how many backing files down it ends; None: at none of them."""

    type, waits = "stream", False

    def __init__(self, drive: MachineDrive, base: int | None) -> None:
        drive.changeable("streamed into")
        if not hasattr(drive.image, "change_backing"):
            raise UnsupportedFeatureError("images of this format have no backing file")
        self._drive = drive
        self._image = cast("Qcow2Image", drive.image)
        self._base = None if base is None else layer_below(self._image, base)
        self.pace = live.Pace(self._image.size)
        self._stream = live.Stream(self._image, self._base, self.pace)
        self.around, self.run = self._stream.around, self._stream.run

    def catch_up(self) -> None:
        """Changes have waited for it."""

    def conclude(self, *, pivot: bool) -> None:
        del pivot
        base = self._base
        self._image.flush()
        if base is None:
            self._image.change_backing(None, None)
        else:
            self._image.change_backing(os.path.abspath(base.name), format_of(base))
        self._drive.reopen()

    def abandon(self) -> None:
        """What was brought up stays: the disk is the same with it."""


class CommitWork:
    """Into the backing file ``depth`` down; the drive is in the image above it until then."""

    type, waits = "commit", True

    def __init__(self, drive: MachineDrive, depth: int) -> None:
        self._drive = drive
        image, self._base = _open_base(drive, 0, depth)
        self.pace = live.Pace(image.size)
        self._follow = live.commit(image, self._base, depth, self.pace)
        self.around, self.run = self._follow.around, self._follow.run
        self.catch_up = self._follow.catch_up

    def conclude(self, *, pivot: bool) -> None:
        self._base.flush()
        if pivot:
            self._drive.goes_on_in(self._base.name, format_of(self._base))
        self._drive.reopen()

    def abandon(self) -> None:
        """What was written below is hidden by the image above it."""
        self._drive.reopen()


class CommitBelowWork:
    """From the backing file ``top`` down into the one ``base`` down; neither is the image."""

    type, waits = "commit", False

    def __init__(self, drive: MachineDrive, top: int, base: int) -> None:
        self._drive = drive
        source, self._base = _open_base(drive, top, base)
        self._above = layer_below(drive.image, top - 1)
        self.pace = live.Pace(source.size)
        self.run = live.commit(source, self._base, base - top, self.pace).run

    def around(self, _offset: int, _length: int) -> AbstractContextManager[object]:
        return nullcontext()

    def catch_up(self) -> None:
        """Nobody writes to backing files."""

    def conclude(self, *, pivot: bool) -> None:
        del pivot
        self._base.flush()
        name, format = os.path.abspath(self._base.name), format_of(self._base)
        above, its_format = self._above.name, format_of(self._above)
        self._drive.reopen(
            between=lambda: rebase(
                above, name, format=its_format, backing_format=format, unsafe=True
            )
        )

    def abandon(self) -> None:
        self._drive.reopen()


class MirrorWork:
    """To a target that :func:`open_target` gave, which it owns."""

    type, waits = "mirror", True

    def __init__(self, drive: MachineDrive, target: BlockDevice, described: Target) -> None:
        self._drive, self._target = drive, target
        self.pace = live.Pace(drive.image.size)
        self._follow = live.mirror(
            drive.image,
            target,
            self.pace,
            top_only=described.sync == "top",
            target_is_zero=not described.existing,
        )
        self.around, self.run = self._follow.around, self._follow.run
        self.catch_up = self._follow.catch_up

    def conclude(self, *, pivot: bool) -> None:
        self._target.flush()
        if not pivot:
            self._target.close()
            return
        former = self._drive.disk.exchange(self._target)
        self._drive.goes_on_in(self._target.name, format_of(self._target))
        former.close()

    def abandon(self) -> None:
        self._target.close()


class BackupWork:
    """To a target that :func:`open_target` gave, which it owns."""

    type, waits = "backup", False

    def __init__(self, drive: MachineDrive, target: BlockDevice, described: Target) -> None:
        self._target = target
        self.pace = live.Pace(drive.image.size)
        self._backup = live.Backup(
            drive.image,
            target,
            self.pace,
            top_only=described.sync == "top",
            target_is_zero=not described.existing,
        )
        self.around, self.run = self._backup.around, self._backup.run

    def catch_up(self) -> None:
        """What is changed now is of no interest."""

    def conclude(self, *, pivot: bool) -> None:
        del pivot
        self._target.flush()
        self._target.close()

    def abandon(self) -> None:
        self._target.close()


def _open_base(drive: MachineDrive, top: int, base: int) -> tuple[BlockDevice, BlockDevice]:
    """The layers ``top`` and ``base`` below a drive's image, the latter writable and as large."""
    drive.changeable("committed")
    drive.reopen(writable_backing=base)
    try:
        source, below = layer_below(drive.image, top), layer_below(drive.image, base)
        if below.size < source.size:
            below.truncate(source.size)
    except BaseException:
        drive.reopen()
        raise
    return source, below


def open_target(image: BlockDevice, target: Target, *, cache: str) -> BlockDevice:
    """The device that a copy of ``image`` goes to: made, or found, and of its size."""
    format = target.format
    if not target.existing:
        format = format or format_of(image)
        _create(image, target._replace(format=format))
    device = open_image(target.filename, readonly=False, format=format, cache=cache)
    if device.size != image.size:
        size = device.size
        device.close()
        raise InvalidRequestError(
            f"the target has {size} bytes and the disk {image.size}", path=target.filename
        )
    return device


def _create(image: BlockDevice, target: Target) -> None:
    from vdisk.opening.creating import plan_creation

    assert target.format is not None
    if os.path.lexists(target.filename):
        raise AlreadyExistsError("there is a file of this name already", path=target.filename)
    options = {}
    if target.sync == "top" and image.backing is not None:
        options = {
            "backing_file": os.path.abspath(image.backing.name),
            "backing_fmt": format_of(image.backing),
        }
    plan_creation(
        target.filename, image.size, format=target.format, options=options, check_backing=False
    ).run()


def format_of(image: BlockDevice) -> str:
    """The format of an open image, as an option names it."""
    return str(getattr(image, "format_name", "raw"))
