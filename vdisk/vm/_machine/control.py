"""The machine as monitors and displays know it: a ``MachineControl`` of ``monitor/control.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.vm._machine import inside
from vdisk.vm.devices.pci import BAR_IO, INTERRUPT_LINE, INTERRUPT_PIN, REVISION_ID
from vdisk.vm.monitor.control import PciFunction
from vdisk.vm.net.forwards import Forward, parse_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm._machine.processor import Processor
    from vdisk.vm.devices.pci import PciDevice
    from vdisk.vm.display.base import InputSink, Screen
    from vdisk.vm.machine import Machine
    from vdisk.vm.monitor.control import (
        BlockJobInfo,
        Drive,
        JobRequest,
        MachineEvent,
        ProcessorState,
        RunState,
        Target,
        VmSnapshot,
    )
    from vdisk.vm.net.user import UserNetwork

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

    def wakeup(self) -> None:
        self._machine.wake_up()

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

    def resize_disk(self, device: str, size: int) -> None:
        self._machine.drives.resize(device, size)

    def commit_disk(self, device: str) -> None:
        self._machine.drives.commit(device)

    # -- work on disks while the guest uses them -------------------------------------------------

    def block_jobs(self) -> Sequence[BlockJobInfo]:
        return self._machine.block_jobs.infos()

    def stream_disk(self, device: str, base: str | None, request: JobRequest) -> None:
        self._machine.block_jobs.stream(device, base, request)

    def commit_layers(
        self, device: str, base: str | None, top: str | None, request: JobRequest
    ) -> None:
        self._machine.block_jobs.commit(device, base, top, request)

    def mirror_disk(self, device: str, target: Target, request: JobRequest) -> None:
        self._machine.block_jobs.mirror(device, target, request)

    def backup_disk(self, device: str, target: Target, request: JobRequest) -> None:
        self._machine.block_jobs.backup(device, target, request)

    def complete_job(self, id: str) -> None:
        self._machine.block_jobs.find(id).complete()

    def cancel_job(self, id: str, *, force: bool = False) -> None:
        self._machine.block_jobs.find(id).cancel(force=force)

    def pause_job(self, id: str, *, paused: bool) -> None:
        self._machine.block_jobs.find(id).work.pace.paused = paused

    def set_job_speed(self, id: str, speed: int) -> None:
        if speed < 0:
            raise InvalidRequestError("Parameter 'speed' expects a non-negative value")
        self._machine.block_jobs.find(id).work.pace.speed = speed

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

    def _processor(self, cpu: int) -> Processor:
        if not 0 <= cpu < self.cpus():
            raise NotFoundError(f"there is no processor {cpu}")
        return self._machine.processors[cpu]

    def registers(self, cpu: int) -> str:
        processor = self._processor(cpu)
        with self._machine.held():
            return inside.registers_text(processor)

    def processor(self, cpu: int) -> ProcessorState:
        processor = self._processor(cpu)
        with self._machine.held():
            return inside.state(processor)

    def memory_size(self) -> int:
        return self._machine.memory.size

    def read_memory(self, address: int, length: int) -> bytes:
        _check_length(length)
        return self._machine.memory.read(address, length)

    def read_virtual(self, cpu: int, address: int, length: int) -> bytes:
        _check_length(length)
        processor = self._processor(cpu)
        machine = self._machine
        with machine.held():
            return inside.read_virtual(processor, machine.memory, machine.bus, address, length)

    def pci(self) -> Sequence[PciFunction]:
        with self._machine.bus.lock:
            functions = self._machine.board.pci.functions
            return [_pci_function(number, functions[number]) for number in sorted(functions)]

    def network(self) -> Sequence[str]:
        network = self._machine.network
        if network is None:
            return []
        with self._machine.bus.lock:
            return network.describe()

    def add_forward(self, rule: str) -> None:
        network = self._network()
        with self._machine.bus.lock:
            network.add_forward(Forward.parse(rule))

    def remove_forward(self, place: str) -> None:
        self._network().remove_forward(*parse_place(place))

    def _network(self) -> UserNetwork:
        from vdisk.vm.net.user import UserNetwork

        network = self._machine.network
        if network is None:
            raise NotFoundError("this machine has no network card")
        if not isinstance(network, UserNetwork):
            raise InvalidRequestError("ports are forwarded in a user network only")
        return network


def _check_length(length: int) -> None:
    if not 0 <= length <= LARGEST_READ:
        raise InvalidRequestError(f"{length} bytes of memory: at most {LARGEST_READ}")


def _pci_function(number: int, device: PciDevice) -> PciFunction:
    config = device.config
    pin, line = config[INTERRUPT_PIN], config[INTERRUPT_LINE]
    return PciFunction(
        slot=number >> 3,
        function=number & 7,
        name=device.name,
        vendor=int.from_bytes(config[0:2], "little"),
        device=int.from_bytes(config[2:4], "little"),
        class_code=device.config_dword(REVISION_ID) >> 8,
        irq=line if pin else None,
        ranges=[
            (index, "I/O" if bar.flags & BAR_IO else "memory", bar.address, bar.size)
            for index, bar in sorted(device.bars.items())
        ],
    )
