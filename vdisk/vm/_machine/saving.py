"""A whole machine saved in its disks, as QEMU's savevm does it.

Every disk that can be written to gets an internal snapshot of one name; that of the first one also
keeps the state of the machine (:mod:`~vdisk.vm._machine.sections`)::

    disk 0 (qcow2)   snapshot "tag": the disk + configuration, RAM, chips, processors
    disk 1 (qcow2)   snapshot "tag": the disk

Saving never leaves half of it: what was made is deleted again when a disk fails.  Loading looks
at all of the file first and then changes the machine; only if a chip refuses its part is the
machine left as it cannot be, and it says so.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vdisk.block import fill_zeroes
from vdisk.errors import CorruptImageError, InvalidRequestError, NotFoundError, VdiskError
from vdisk.formats.qcow2 import Qcow2Image
from vdisk.vm._machine import sections, state
from vdisk.vm.memory import FOUR_GIB
from vdisk.vm.monitor.control import VmSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.block import BlockDevice
    from vdisk.vm._machine.board import Board
    from vdisk.vm._machine.drives import Drives, MachineDrive
    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.accel.base import Accelerator
    from vdisk.vm.devices.base import Device, State
    from vdisk.vm.memory import GuestMemory


class Saving:
    """Saves and loads one machine, which stands still meanwhile."""

    def __init__(
        self,
        memory: GuestMemory,
        board: Board,
        processors: list[Processor],
        drives: Drives,
        accelerator: Accelerator,
    ) -> None:
        self._memory = memory
        self._board = board
        self._processors = processors
        self._drives = drives
        self._accelerator = accelerator
        self.half_loaded = False
        """Loading has begun to change the machine, and has not ended well."""

    # -- snapshots ---------------------------------------------------------------------------

    def snapshots(self) -> list[VmSnapshot]:
        """The saved machines: snapshots with a state in the first disk that can hold them."""
        images = [image for _, image in self._writable() if isinstance(image, Qcow2Image)]
        if not images:
            return []
        return [
            VmSnapshot(each.id, each.name, each.vm_state_size, each.date_sec, each.vm_clock_nsec)
            for each in images[0].snapshots()
            if each.vm_state_size
        ]

    def save(self, tag: str) -> None:
        """Save under ``tag``, in place of what has this name."""
        if not tag:
            raise InvalidRequestError("a saved machine needs a name")
        images = self._images()
        self._drives.flush()
        for image in images:
            if _has(image, tag):
                image.delete_snapshot(tag)
        done: list[Qcow2Image] = []
        now, date = self._board.clock.now(), time.time()
        try:
            for image in images:
                size = self._write(image) if image is images[0] else 0
                image.create_snapshot(tag, date=date, vm_state_size=size, vm_clock_nsec=now)
                done.append(image)
        except BaseException:
            with suppress(VdiskError):  # the first error is the one to tell of
                for image in done:
                    image.delete_snapshot(tag)
                images[0].vm_state().truncate(0)
            raise

    def delete(self, tag: str) -> None:
        """Delete it from every disk that has it."""
        found = [image for image in self._images() if _has(image, tag)]
        if not found:
            raise NotFoundError(f"there is no saved machine {tag!r}")
        for image in found:
            image.delete_snapshot(tag)

    def load(self, tag: str) -> None:
        """Become the machine that was saved under ``tag``."""
        images = self._images()
        missing = [image for image in images if not _has(image, tag)]
        if missing:
            raise NotFoundError(f"there is no snapshot {tag!r}", path=missing[0].name)
        view = images[0].open_snapshot(tag)
        try:
            size = view.snapshot.vm_state_size
            chips = self._check(sections.sections(view.read_vm_state, size))
            ram = sections.sections(view.read_vm_state, size)
            self.half_loaded = True
            self._restore_ram(section for section in ram if section.kind == sections.RAM)
        finally:
            view.close()
        for image in images:
            image.apply_snapshot(tag)
        for drive in self._drives:
            if drive.disk.image is not None:
                drive.disk.exchange(drive.disk.image)  # sizes and places have changed
        self._restore(chips)
        self.half_loaded = False

    def _writable(self) -> list[tuple[MachineDrive, BlockDevice]]:
        return [(drive, _inner(drive.image)) for drive in self._drives if not drive.disk.readonly]

    def _images(self) -> list[Qcow2Image]:
        """The images of all disks that can be written to; raises where one is no qcow2 image."""
        images = []
        for drive, image in self._writable():
            if not isinstance(image, Qcow2Image):
                raise InvalidRequestError(
                    f"{drive.name} is not a qcow2 image, so the machine cannot be saved"
                )
            drive.check_idle()
            if drive.disk.stopped:
                raise InvalidRequestError(f"{drive.name} has failed requests that wait")
            images.append(image)
        if not images:
            raise InvalidRequestError("there is no writable qcow2 disk to save the machine in")
        return images

    # -- writing -----------------------------------------------------------------------------

    def _write(self, image: Qcow2Image) -> int:
        area = image.vm_state()
        writer = sections.Writer(area.write)
        writer.state(sections.CONFIGURATION, self._configuration())
        for start, view in self._pieces():
            writer.ram(start, view)
        writer.state(sections.CHIPS, self._state())
        return writer.finish()

    def _configuration(self) -> State:
        """What has to be the same for a machine to take this one's place."""
        return {
            "memory": self._memory.size,
            "accelerator": self._accelerator.name,
            "processors": len(self._processors),
            "devices": list(self._devices()),
            "drives": [[drive.name, drive.disk.removable] for drive in self._drives],
        }

    def _state(self) -> State:
        return {
            "clock": self._board.clock.now(),
            "a20": self._accelerator.a20,
            "devices": {name: device.save_state() for name, device in self._devices().items()},
            "processors": [
                {**processor.save_state(), "vcpu": state.save_vcpu(processor.vcpu)}
                for processor in self._processors
            ],
        }

    def _devices(self) -> dict[str, Device]:
        """All chips by names of their own."""
        found: dict[str, Device] = {}
        for device in self._board.devices:
            name, number = device.name, 1
            while name in found:
                number += 1
                name = f"{device.name}#{number}"
            found[name] = device
        return found

    def _pieces(self) -> Iterator[tuple[int, memoryview]]:
        """All RAM, the bytes under ROM too, which may be its shadow."""
        memory = self._memory
        for start, end in ((0, memory.low_end), (FOUR_GIB, memory.high_end)):
            for gpa in range(start, end, sections.RAM_CHUNK):
                yield gpa, memory.raw(gpa, min(sections.RAM_CHUNK, end - gpa))

    # -- reading -----------------------------------------------------------------------------

    def _check(self, found: Iterator[sections.Section]) -> State:
        """Look at everything before anything is changed; gives the chips' state."""
        chips: Any = None
        configuration: Any = None
        for section in found:
            if section.kind == sections.CONFIGURATION:
                configuration = sections.read_state(section)
            elif section.kind == sections.CHIPS:
                chips = sections.read_state(section)
            elif section.kind == sections.RAM:
                gpa, data = sections.read_ram(section)
                if not self._is_ours(gpa, len(data)):
                    raise CorruptImageError(f"the machine state has RAM at {gpa:#x}")
        if not isinstance(configuration, dict) or not isinstance(chips, dict):
            raise CorruptImageError("the machine state lacks a section")
        for name, ours in self._configuration().items():
            saved = configuration.get(name)
            if saved != ours:
                raise InvalidRequestError(
                    f"the saved machine has other {name}: {saved}, this one {ours}"
                )
        return chips

    def _is_ours(self, gpa: int, length: int) -> bool:
        memory = self._memory
        low = gpa + length <= memory.low_end
        high = gpa >= FOUR_GIB and gpa + length <= memory.high_end
        return gpa % sections.RAM_CHUNK == 0 and (low or high)

    def _restore_ram(self, found: Iterator[sections.Section]) -> None:
        pieces = self._pieces()
        for section in found:
            gpa, data = sections.read_ram(section)
            for start, view in pieces:
                if start == gpa:
                    view[:] = data
                    break
                self._clear(view)
            else:
                raise CorruptImageError("the RAM of the machine state is out of order")
        for _start, view in pieces:
            self._clear(view)
        for start, view in self._pieces():
            self._memory.dirtied(start, len(view))

    @staticmethod
    def _clear(view: memoryview) -> None:
        if sections.any_set(view):
            fill_zeroes(view)

    def _restore(self, chips: State) -> None:
        try:
            clock, a20 = chips["clock"], chips["a20"]
            devices, processors = chips["devices"], chips["processors"]
            if type(clock) is not int or not 0 <= clock < 1 << 63 or type(a20) is not bool:
                raise CorruptImageError("the clock of the machine state is impossible")
            self._board.clock.restore(clock)
            ours = self._devices()
            for name in sorted(ours, key=lambda name: ours[name].load_order):
                ours[name].load_state(devices[name])
            for processor, saved in zip(self._processors, processors, strict=True):
                processor.load_state(saved)
                state.load_vcpu(processor.vcpu, saved["vcpu"])
            self._accelerator.a20 = a20
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptImageError(f"the machine state: {error!r}") from error


def _inner(device: BlockDevice) -> BlockDevice:
    """The image below filters."""
    while (inner := getattr(device, "inner", None)) is not None:
        device = inner
    return device


def _has(image: Qcow2Image, tag: str) -> bool:
    return any(tag in {each.name, each.id} for each in image.snapshots())
