"""The machine as monitors and displays know it: a ``MachineControl`` of ``monitor/control.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.vm.accel.base import GPR_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.accel.base import Segment, SystemRegisters
    from vdisk.vm.display.base import InputSink, Screen
    from vdisk.vm.machine import Machine
    from vdisk.vm.monitor.control import Drive, MachineEvent, RunState, VmSnapshot

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
LARGEST_READ = 64 << 20


class Control:
    """Controls ``machine``; from any thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.name = machine.name
        self.screen: Screen = machine.screen
        self.input: InputSink = machine.input

    def status(self) -> RunState:
        return self._machine.state

    def stop(self) -> None:
        self._machine.pause()

    def cont(self) -> None:
        self._machine.resume()

    def reset(self) -> None:
        self._machine.reset()

    def powerdown(self) -> None:
        self._machine.press_power_button()

    def quit(self) -> None:
        self._machine.stop()

    def inject_nmi(self) -> None:
        with self._machine.bus.lock:
            for processor in self._machine.processors:
                processor.nmi()

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> Callable[[], None]:
        return self._machine.subscribe(callback)

    # -- disks -------------------------------------------------------------------------------

    def drives(self) -> Sequence[Drive]:
        with self._machine.bus.lock:
            return [drive.describe() for drive in self._machine.drives]

    def eject(self, device: str, *, force: bool = False) -> None:
        self._machine.eject(device, force=force)

    def insert(
        self, device: str, filename: str, *, format: str | None = None, read_only: bool = True
    ) -> None:
        if not read_only:
            raise InvalidRequestError("a CD-ROM cannot be written to")
        self._machine.insert(device, filename, format=format)

    def open_tray(self, device: str, *, force: bool = False) -> None:
        self._machine.drives.move_tray(device, out=True, force=force)

    def close_tray(self, device: str) -> None:
        self._machine.drives.move_tray(device, out=False)

    def snapshot_disk(
        self,
        device: str,
        filename: str,
        *,
        format: str = "qcow2",
        mode: Literal["existing", "absolute-paths"] = "absolute-paths",
    ) -> None:
        self._machine.drives.snapshot(device, filename, format=format, existing=mode == "existing")

    # -- the whole machine, saved ---------------------------------------------------------------

    def save_vm(self, tag: str) -> None:
        self._machine.save(tag)

    def load_vm(self, tag: str) -> None:
        self._machine.load(tag)

    def delete_vm(self, tag: str) -> None:
        with self._machine.bus.lock:
            self._machine.saving.delete(tag)

    def vm_snapshots(self) -> Sequence[VmSnapshot]:
        with self._machine.bus.lock:
            return self._machine.saving.snapshots()

    # -- looking inside --------------------------------------------------------------------------

    def cpus(self) -> int:
        return len(self._machine.processors)

    def accelerator(self) -> str:
        return self._machine.accelerator.name

    def registers(self, cpu: int) -> str:
        if not 0 <= cpu < self.cpus():
            raise NotFoundError(f"there is no processor {cpu}")
        vcpu = self._machine.processors[cpu].vcpu
        with self._machine.held():
            general, system = vcpu.get_registers(), vcpu.get_system_registers()
        names = [*GPR_NAMES, "rip", "rflags"]
        values = [*general.gprs, general.rip, general.rflags]
        cells = [f"{name:>6} {value:016x}" for name, value in zip(names, values, strict=True)]
        rows = [" ".join(cells[start : start + 3]) for start in range(0, len(cells), 3)]
        return "\n".join([*rows, *_system_lines(system)]) + "\n"

    def read_memory(self, address: int, length: int) -> bytes:
        if not 0 <= length <= LARGEST_READ:
            raise InvalidRequestError(f"{length} bytes of memory: at most {LARGEST_READ}")
        return self._machine.memory.read(address, length)


def _system_lines(system: SystemRegisters) -> list[str]:
    """Segments, tables and control registers."""
    lines = [_segment_line(name, getattr(system, name)) for name in SEGMENTS]
    for name in ("gdt", "idt"):
        table = getattr(system, name)
        lines.append(f"{name:>6}      {table.base:016x} {table.limit:08x}")
    names = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
    lines.append(" ".join(f"{name} {getattr(system, name):x}" for name in names))
    return lines


def _segment_line(name: str, segment: Segment) -> str:
    return (
        f"{name:>6} {segment.selector:04x} {segment.base:016x} {segment.limit:08x} "
        f"{segment.attributes:04x}"
    )
