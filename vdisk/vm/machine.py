"""A PC whose disks are the library's block devices::

    from vdisk.vm import Machine

    with Machine(memory=512 << 20, disks=["disk.qcow2,if=virtio"]) as machine:
        machine.run_until(serial="login: ", timeout=60)
        machine.serial[0].send("root\\n")
        machine.screenshot("screen.png")

It begins when :meth:`Machine.start` or :meth:`Machine.run_until` is called::

    PRELAUNCH --start--> RUNNING <--pause/resume--> PAUSED
                            |
                            +-- the guest turns itself off, stop() --> SHUTDOWN

Each processor is a thread; chips work under one lock, that of the bus; what a chip asks of the
whole machine (a reset, say) is carried out by a thread of its own, because no processor can wait
for itself to stand still.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.vm._machine import accelerators, configuration
from vdisk.vm._machine.board import Board, Requests
from vdisk.vm._machine.console import SerialConsole
from vdisk.vm._machine.drives import Drives
from vdisk.vm._machine.hands import Hands
from vdisk.vm._machine.processor import Processor
from vdisk.vm._machine.running import Running, Threads
from vdisk.vm._machine.specs import DiskSpec, disk_spec, parse_disk
from vdisk.vm._machine.turns import Journal, TurnClock, Turns, load_journal
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.clock import RealClock
from vdisk.vm.devices.serial import COM_PORTS
from vdisk.vm.memory import GuestMemory
from vdisk.vm.monitor.control import MachineEvent, RunState

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from vdisk.block import BlockDevice

__all__ = ["DiskSpec", "Machine", "MachineError", "MachineTimeoutError", "parse_disk"]

LARGEST_CPUS = 64
"""Processors: more have no place in an 8-bit logical APIC destination's clusters."""
FIXED_EPOCH = 946_684_800
"""2000-01-01: when deterministic runs begin, unless told otherwise."""
TAIL = 400
"""Bytes of serial output that an error shows."""


class MachineError(VdiskError):
    """The machine cannot go on, or ended before what was waited for."""

    kind = "machine"


class MachineTimeoutError(MachineError):
    """What was waited for did not come in time."""

    kind = "timeout"


class Machine:
    """One virtual machine; a context manager that ends it.

    ``memory``: bytes.  ``disks``: text as the command line has it (see
    :func:`~vdisk.vm._machine.specs.parse_disk`), paths, open devices or :class:`DiskSpec`.
    ``cdroms``: images for CD-ROM drives.  ``accel``: ``auto``, ``llvm``, ``kvm``, ``interp``.
    ``bios``: a firmware file such as SeaBIOS's.  ``apic`` False: a machine with the 8259 pair
    only, and one processor.  ``serial_ports``: how many, 0-4.  ``reboot`` False: a reset by the
    guest ends the machine.  ``stay`` True: it stays, stopped, when the guest turns it off.
    ``boot``: order: c hard disk, d CD-ROM, n network.
    ``epoch``: the time of day at power-on, seconds since 1970; None: the host's.
    ``deterministic``: virtual time (see :mod:`~vdisk.vm._machine.turns`), in which the same run
    happens each time; :meth:`save_journal` keeps what came from outside.  ``replay``: repeat
    the run of such a journal.
    Raises :class:`VdiskError` of the kind that fits; then nothing stays open.
    """

    def __init__(
        self,
        *,
        memory: int = 512 << 20,
        cpus: int = 1,
        disks: Sequence[str | os.PathLike[str] | DiskSpec | BlockDevice] = (),
        cdroms: Sequence[str | DiskSpec | None] = (),
        accel: str = "auto",
        bios: str | None = None,
        apic: bool = True,
        serial_ports: int = 1,
        reboot: bool = True,
        stay: bool = False,
        boot: str = "cd",
        epoch: int | None = None,
        deterministic: bool = False,
        replay: str | None = None,
        name: str = "vdisk",
    ) -> None:
        _check(cpus, apic, serial_ports)
        self.name = name
        self.error = ""
        self.exit_status: int | None = None
        """What the guest wrote to the debug exit port, if it did."""
        self._state = RunState.PRELAUNCH
        self._control = threading.RLock()  # one command at a time
        self._ended = threading.Event()
        self._subscribers: list[Callable[[MachineEvent], None]] = []
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._supervisor: threading.Thread | None = None
        self._reboot, self._stay = reboot, stay
        self._boot = configuration.check_boot(boot)
        self.memory = GuestMemory(memory)
        self.bus = Bus()
        self.clock = self._make_clock(deterministic, replay)
        self.serial = [SerialConsole() for _ in range(serial_ports)]
        self.debug_console = SerialConsole()
        self._found = [0] * serial_ports  # how far run_until has searched
        self._closers: list[Callable[[], None]] = []
        try:
            self._assemble(disks, cdroms, accel, bios, cpus, apic, epoch)
        except BaseException:
            self._close_parts()
            raise

    # -- making ------------------------------------------------------------------------------------

    def _assemble(
        self,
        disks: Sequence[str | os.PathLike[str] | DiskSpec | BlockDevice],
        cdroms: Sequence[str | DiskSpec | None],
        accel: str,
        bios: str | None,
        cpus: int,
        apic: bool,
        epoch: int | None,
    ) -> None:
        threads = None if isinstance(self.clock, RealClock) else 0
        specs = [disk_spec(disk) for disk in disks] + [_cdrom(cdrom) for cdrom in cdroms]
        self.drives = Drives(
            specs, self.bus.lock, threads=threads, emit=self._emit, stop=self._request_io_stop
        )
        self._closers.append(self.drives.close)
        self.accelerator = accelerators.make(accel, self.memory, self.bus)
        self._closers.append(self.accelerator.close)
        consoles: list[SerialConsole | None] = list(self.serial)
        self.board = Board(
            self.memory,
            self.bus,
            self.clock,
            self.accelerator,
            Requests(self._request_reset, self._request_power_off, self._request_debug_exit),
            epoch=self._epoch(epoch),
            consoles=consoles,
            debug_console=self.debug_console,
        )
        self._make_processors(cpus, apic)
        self.input = Hands(self.board.keyboard, self.board.mouse, self.bus.lock, self._stimulate)
        for drive in self.drives:
            if drive.spec.interface == "virtio":
                self.board.plug_disk(drive)
        configuration.describe(self.board, self.memory, cpus, self.drives, self._boot)
        self._install_firmware(bios)
        self.running = self._make_running()
        with self.bus.lock:
            self._power_on()

    def _make_clock(self, deterministic: bool, replay: str | None) -> RealClock | TurnClock:
        self.journal = Journal() if replay is None else load_journal(replay)
        return TurnClock() if deterministic or replay else RealClock(self.bus.lock)

    def _make_running(self) -> Running:
        handlers: dict[str, Callable[..., None]] = {
            **self.input.handlers,
            "serial": lambda port, data: self.serial[port].arrive(bytes.fromhex(data)),
            "power": self.board.power.press_power_button,
            "eject": lambda drive, force: self.drives.eject(drive, force=force),
            "insert": lambda drive, name, form: self.drives.insert(
                drive, name, format=form, readonly=True
            ),
            "reset": lambda: self._order(lambda: self._reset(guest=False)),
        }
        for port, console in enumerate(self.serial):
            console.deliver_by(lambda data, port=port: self._stimulate("serial", port, data.hex()))
        if isinstance(self.clock, RealClock):
            return Threads(self.processors, self.bus, self.clock, self._stuck, handlers)
        if not self.accelerator.counts_instructions:
            raise InvalidRequestError(
                f"accelerator {self.accelerator.name} counts no instructions, "
                "which deterministic runs need"
            )
        for processor in self.processors:
            processor.vcpu.timestamp_source = self.clock.now
        return Turns(
            self.processors, self.bus, self.clock, self._stuck, handlers, self.journal, self._failed
        )

    def _stimulate(self, kind: str, *arguments: Any) -> None:
        self.running.stimulate(kind, *arguments)

    def _make_processors(self, cpus: int, apic: bool) -> None:
        self.processors: list[Processor] = []
        for index in range(cpus):
            vcpu = self.accelerator.vcpu(index)
            self._closers.append(vcpu.close)
            processor = Processor(vcpu, self.bus)
            self.board.connect_processor(processor, apic=apic)
            self.processors.append(processor)

    def _install_firmware(self, bios: str | None) -> None:
        from vdisk.vm._machine.firmware import FirmwareFile

        if bios is None:
            raise InvalidRequestError("a machine needs a bios")
        FirmwareFile(bios).install(self.memory, self.board.host_bridge)

    def _power_on(self) -> None:
        """RESET# to all; the bus lock is held, the processors stand still."""
        self.board.reset()
        for processor in self.processors:
            processor.reset()

    def _epoch(self, given: int | None) -> int:
        if given is not None:
            return given
        return int(time.time()) if isinstance(self.clock, RealClock) else FIXED_EPOCH

    # -- life --------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """What the machine is doing."""
        return self._state

    def start(self) -> None:
        """Power on; does nothing to a machine that runs."""
        with self._control:
            if self._state is RunState.PRELAUNCH:
                self._supervisor = threading.Thread(
                    target=self._supervise, name="vdisk-machine", daemon=True
                )
                self._supervisor.start()
                self._go()

    def pause(self) -> None:
        """Return when processors and the guest's time stand still."""
        with self._control:
            if self._state is RunState.RUNNING:
                self._halt(RunState.PAUSED)

    def resume(self) -> None:
        """Go on; failed requests that were kept are tried again."""
        with self._control:
            if self._state is RunState.PRELAUNCH:
                self.start()
            elif self._state in {RunState.PAUSED, RunState.IO_ERROR}:
                self._go()
            elif self._state is not RunState.RUNNING:
                raise InvalidRequestError(f"the machine cannot go on: it is {self._state.value}")

    def reset(self) -> None:
        """The reset button."""
        self._reset(guest=False)

    def press_power_button(self) -> None:
        """The guest may shut itself down."""
        self._stimulate("power")
        self._emit(MachineEvent("POWERDOWN"))

    def stop(self) -> None:
        """Turn it off without asking the guest."""
        with self._control:
            if self._state is not RunState.SHUTDOWN:
                self._turn_off(guest=False, reason="host-qmp-quit")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the machine is off (or cannot go on); False after ``timeout`` seconds."""
        return self._ended.wait(timeout)

    def is_over(self) -> bool:
        """True if the guest does nothing more unless somebody resets it."""
        return self._state in {RunState.SHUTDOWN, RunState.INTERNAL_ERROR}

    def close(self) -> None:
        """Turn it off and release everything; raises what closing the images raises."""
        with self._control:
            if self._state is not RunState.SHUTDOWN:
                self.stop()
            self._orders.put(None)
            self._close_parts()
        if self._supervisor is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _close_parts(self) -> None:
        running = getattr(self, "running", None)
        if running is not None:
            running.close()
        for console in (*self.serial, self.debug_console):
            console.close()
        while self._closers:
            self._closers.pop()()

    def _go(self) -> None:
        resumed = self._state is not RunState.PRELAUNCH
        self._state = RunState.RUNNING
        self.drives.resume()
        self.running.resume()
        if resumed:
            self._emit(MachineEvent("RESUME"))

    def _halt(self, state: RunState) -> None:
        self.running.pause()
        self.drives.drain()
        self._state = state
        self._emit(MachineEvent("STOP"))

    def _reset(self, *, guest: bool) -> None:
        with self._control:
            was_running = self._state is RunState.RUNNING
            self._ended.clear()
            self.running.pause()
            with self.bus.lock:
                self._power_on()
            reason = "guest-reset" if guest else "host-qmp-system-reset"
            if not guest:
                self.running.note("reset")
            self._emit(MachineEvent("RESET", {"guest": guest, "reason": reason}))
            if was_running:
                self.running.resume()
            elif self._state in {RunState.INTERNAL_ERROR, RunState.SHUTDOWN}:
                self._state = RunState.PAUSED

    def _turn_off(self, *, guest: bool, reason: str) -> None:
        self.running.pause()
        self.drives.drain()
        self._state = RunState.SHUTDOWN
        self._emit(MachineEvent("SHUTDOWN", {"guest": guest, "reason": reason}))
        if not (guest and self._stay):
            self._ended.set()
        self._wake_readers()

    def _wake_readers(self) -> None:
        for console in self.serial:
            console.wake()

    # -- what chips and processors ask for ---------------------------------------------------------

    def _supervise(self) -> None:
        """Carry out orders that no processor's thread could."""
        while (order := self._orders.get()) is not None:
            with self._control:
                if not self._ended.is_set():
                    order()

    def _order(self, order: Callable[[], None]) -> None:
        """Let processors stop at once, and the order be carried out."""
        self.running.freeze()
        self._orders.put(order)

    def _request_reset(self) -> None:
        if self._reboot:
            self._order(lambda: self._reset(guest=True))
        else:
            self._order(lambda: self._turn_off(guest=True, reason="guest-reset"))

    def _request_power_off(self) -> None:
        self._order(lambda: self._turn_off(guest=True, reason="guest-shutdown"))

    def _request_debug_exit(self, status: int) -> None:
        self.exit_status = status
        self._order(lambda: self._turn_off(guest=True, reason="guest-shutdown"))

    def _request_io_stop(self) -> None:
        self._order(lambda: self._halt(RunState.IO_ERROR))

    def _stuck(self, processor: Processor, why: VcpuExit) -> None:
        """A processor cannot go on; called in its thread with the bus lock held."""
        if why is VcpuExit.SHUTDOWN:
            self._request_reset()
            return
        self._failed(f"processor {processor.index}: {processor.vcpu.error}")

    def _failed(self, why: str) -> None:
        self.error = why
        self._order(self._give_up)

    def _give_up(self) -> None:
        self._halt(RunState.INTERNAL_ERROR)
        self._ended.set()
        self._wake_readers()

    # -- events ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[MachineEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for every event, in any thread; gives what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def _emit(self, event: MachineEvent) -> None:
        for callback in list(self._subscribers):
            callback(event)

    # -- using it ----------------------------------------------------------------------------------

    def run_until(
        self, *, serial: str | bytes | None = None, timeout: float | None = None, port: int = 0
    ) -> bytes:
        """Run until the guest has written ``serial`` to a serial port: what came up to there.

        ``serial`` None: until the machine is off.  The next call searches from there on.  Raises
        :class:`MachineTimeoutError` after ``timeout`` seconds, and :class:`MachineError` when
        the machine ends before.
        """
        if self._state in {RunState.PRELAUNCH, RunState.PAUSED, RunState.IO_ERROR}:
            self.resume()
        if serial is None:
            if not self.wait(timeout):
                raise MachineTimeoutError(f"still running after {timeout} seconds")
            return b""
        wanted = serial.encode() if isinstance(serial, str) else serial
        console, since = self.serial[port], self._found[port]
        end = console.wait_for(wanted, since, timeout, self.is_over)
        if end is None:
            raise self._missed(wanted, console, since, timeout)
        self._found[port] = end
        return console.output(since)[: end - since]

    def _missed(
        self, wanted: bytes, console: SerialConsole, since: int, timeout: float | None
    ) -> MachineError:
        tail = console.output(since)[-TAIL:].decode("utf-8", "replace")
        shown = f"; the serial port's last words: {tail!r}" if tail else ""
        if self.is_over():
            why = self.error or "the machine ended"
            return MachineError(f"{why} before {wanted!r} came{shown}")
        return MachineTimeoutError(f"{wanted!r} did not come within {timeout} seconds{shown}")

    def type_keys(self, text: str) -> None:
        """Type on the keyboard (US layout); ``\\n`` is Enter."""
        self.input.type(text, self.is_over)

    def press_keys(self, *qcodes: str) -> None:
        """Press keys together: ``press_keys("ctrl", "alt", "delete")``."""
        self.input.press(qcodes, self.is_over)

    def eject(self, drive: str, *, force: bool = False) -> None:
        """Open a CD-ROM drive and take the medium out."""
        self._stimulate("eject", drive, force)

    def insert(self, drive: str, filename: str, *, format: str | None = None) -> None:
        """Put another medium into a CD-ROM drive."""
        self._stimulate("insert", drive, filename, format)

    def save_journal(self, path: str) -> None:
        """Write what came from outside in a deterministic run, for ``replay``."""
        self.journal.save(path)

    def statistics(self) -> dict[str, Any]:
        """How long it has run (ns), instructions of each processor (0: not counted), drives."""
        return {
            "uptime_ns": self.clock.now(),
            "accelerator": self.accelerator.name,
            "instructions": [processor.vcpu.instructions for processor in self.processors],
            "drives": {drive.name: drive.disk.statistics.as_dict() for drive in self.drives},
        }


def _check(cpus: int, apic: bool, serial_ports: int) -> None:
    if not 1 <= cpus <= LARGEST_CPUS:
        raise InvalidRequestError(f"{cpus} processors: from 1 to {LARGEST_CPUS}")
    if cpus > 1 and not apic:
        raise InvalidRequestError("several processors need local APICs")
    if not 0 <= serial_ports <= len(COM_PORTS):
        raise InvalidRequestError(f"{serial_ports} serial ports: at most {len(COM_PORTS)}")


def _cdrom(cdrom: str | DiskSpec | None) -> DiskSpec:
    if isinstance(cdrom, DiskSpec):
        return cdrom
    return DiskSpec(media="cdrom") if cdrom is None else parse_disk(cdrom, media="cdrom")
