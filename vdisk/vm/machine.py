"""A PC whose disks are the library's block devices::

    from vdisk.vm import Machine

    with Machine(memory=512 << 20, disks=["disk.qcow2,if=virtio"]) as machine:
        machine.run_until(serial="login: ", timeout=60)
        machine.serial[0].send("root\\n")
        machine.screenshot("screen.png")

Each processor is a thread (or all take turns, where a run has to repeat); chips work under one
lock, that of the bus.  How the parts fit together is drawn in ``_machine/board.py``, how a machine
lives in ``_machine/life.py``.
"""

from __future__ import annotations

import time
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError, VdiskError
from vdisk.vm import loader
from vdisk.vm._machine import accelerators, configuration, networks
from vdisk.vm._machine.block_jobs import BlockJobs
from vdisk.vm._machine.board import Board, Video
from vdisk.vm._machine.boot_choice import BootChoice
from vdisk.vm._machine.console import SerialConsole
from vdisk.vm._machine.drives import Drives
from vdisk.vm._machine.firmware import FirmwareFile, OwnBios
from vdisk.vm._machine.hands import Hands
from vdisk.vm._machine.life import Life
from vdisk.vm._machine.networks import NetworkSpec, parse_mac, parse_network
from vdisk.vm._machine.options import Options
from vdisk.vm._machine.processor import Processor
from vdisk.vm._machine.running import Running, Threads
from vdisk.vm._machine.sleeping import Sleep
from vdisk.vm._machine.specs import (
    DiskSpec,
    cdrom_spec,
    disk_of_words,
    disk_spec,
    floppy_spec,
    parse_disk,
)
from vdisk.vm._machine.turns import Journal, TurnClock, Turns, load_journal
from vdisk.vm.bus import Bus
from vdisk.vm.clock import RealClock
from vdisk.vm.display.image import save_picture
from vdisk.vm.memory import GuestMemory
from vdisk.vm.monitor.control import RunState

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from vdisk.block import BlockDevice
    from vdisk.vm._machine.control import Control
    from vdisk.vm._machine.saving import Saving
    from vdisk.vm.devices.acpi_tables import AcpiTables
    from vdisk.vm.devices.vga import Vga
    from vdisk.vm.loader import Entry, Kernel, MemoryRange
    from vdisk.vm.net.tap import TapNetwork
    from vdisk.vm.net.user import UserNetwork

__all__ = [
    "DiskSpec",
    "Machine",
    "MachineError",
    "MachineTimeoutError",
    "NetworkSpec",
    "disk_of_words",
    "parse_disk",
    "parse_mac",
    "parse_network",
]

FIXED_EPOCH = 946_684_800
"""2000-01-01: when deterministic runs begin, unless told otherwise."""
LOOK_SECONDS = 0.05
"""Between two looks at the screen."""
TAIL = 400
"""Bytes of serial output that an error shows."""


class MachineError(VdiskError):
    """The machine cannot go on, or ended before what was waited for."""

    kind = "machine"


class MachineTimeoutError(MachineError):
    """What was waited for did not come in time."""

    kind = "timeout"


class Machine(Life):
    """One virtual machine; a context manager that ends it.

    ``memory``: bytes.  ``disks``: text as the command line has it (see
    :func:`~vdisk.vm._machine.specs.parse_disk`), paths, open devices or :class:`DiskSpec`.
    ``cdroms``: images for CD-ROM drives, None for an empty one; ``floppies``: for the diskette
    drives A and B.  ``accel``: ``auto``, ``llvm``, ``kvm``, ``interp``.  ``bios``: a firmware file
    such as SeaBIOS's; None: the BIOS of our own.
    ``boot``: order: a floppy, c hard disk, d CD-ROM, n network, and more in the words of QEMU's
    ``-boot`` (see :mod:`~vdisk.vm._machine.boot_choice`).
    ``kernel``, ``initrd``, ``append``: boot Linux or a Multiboot kernel from these files (see
    :mod:`~vdisk.vm.loader`); ``kernel_bits``: which of its entries.
    ``vga``: ``std`` or ``none``; ``vga_memory``: bytes; ``vga_size``: pixels, what the monitor
    says it likes best.  ``apic`` False: a machine with the 8259
    pair only, and one processor.  ``serial_ports``: how many, 0-4.  ``rng``: a virtio source of
    randomness.  ``network``: ``none``; ``user``: a network card behind which this process speaks
    for the guest; ``tap``: one behind which there is a TAP of the host; with more words of QEMU's
    (see :mod:`~vdisk.vm._machine.networks`).
    ``reboot`` False: a reset by the guest ends the machine.  ``stay`` True: it stays, stopped, when
    the guest turns it off.
    ``epoch``: the time of day at power-on, seconds since 1970; None: the host's.
    ``deterministic``: virtual time (see :mod:`~vdisk.vm._machine.turns`), in which the same run
    happens each time; :meth:`save_journal` keeps what came from outside.  ``replay``: repeat
    the run of such a journal.
    ``progress``: told, by any thread, how much of how much is done where something has to be
    prepared first: the recompiler's first run compiles what most guests need.
    Raises :class:`VdiskError` of the kind that fits; then nothing stays open.
    """

    def __init__(
        self,
        *,
        memory: int = 512 << 20,
        cpus: int = 1,
        disks: Sequence[str | os.PathLike[str] | DiskSpec | BlockDevice] = (),
        cdroms: Sequence[str | DiskSpec | None] = (),
        floppies: Sequence[str | DiskSpec | None] = (),
        accel: str = "auto",
        bios: str | None = None,
        boot: str = "cd",
        kernel: str | None = None,
        initrd: str | None = None,
        append: str = "",
        kernel_bits: int | None = None,
        vga: str = "std",
        vga_memory: int = 16 << 20,
        vga_size: tuple[int, int] = (1280, 800),
        apic: bool = True,
        serial_ports: int = 1,
        rng: bool = False,
        network: str | NetworkSpec = "none",
        reboot: bool = True,
        stay: bool = False,
        epoch: int | None = None,
        deterministic: bool = False,
        replay: str | None = None,
        name: str = "vdisk",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        options = Options(
            memory=memory, cpus=cpus, disks=disks, cdroms=cdroms,
            floppies=floppies, accel=accel,
            bios=bios, boot=BootChoice.parse(boot), kernel=kernel, initrd=initrd, append=append,
            kernel_bits=kernel_bits, vga=vga, vga_memory=vga_memory,
            vga_size=vga_size, apic=apic, serial_ports=serial_ports, rng=rng, epoch=epoch,
            network=networks.network_spec(network),
            deterministic=deterministic, replay=replay, progress=progress,
        )  # fmt: skip
        self.name = name
        super().__init__(reboot=reboot, stay=stay)
        self.memory = GuestMemory(memory)
        self.bus = Bus()
        self.clock = self._make_clock(deterministic, replay)
        self.serial = [SerialConsole() for _ in range(serial_ports)]
        self.debug_console = SerialConsole()
        self._found = [0] * serial_ports  # how far run_until has searched
        self._own_bios: OwnBios | None = None
        self._was_on = False
        self.network: UserNetwork | TapNetwork | None = None
        try:
            self._assemble(options)
        except BaseException:
            self._close_parts()
            raise

    # -- making ----------------------------------------------------------------------------------

    def _assemble(self, options: Options) -> None:
        real = isinstance(self.clock, RealClock)
        specs = [disk_spec(disk) for disk in options.disks]
        specs += [cdrom_spec(cdrom) for cdrom in options.cdroms]
        specs += [floppy_spec(floppy) for floppy in options.floppies]
        self.drives = Drives(
            specs,
            self.bus.lock,
            threads=None if real else 0,
            emit=self._emit,
            stop=self._request_io_stop,
        )
        self._closers.append(self.drives.close)
        self.block_jobs = BlockJobs(self.drives, self._emit)
        self._closers.append(self.block_jobs.close)
        kernel = None
        if options.kernel is not None:
            kernel = loader.read(options.kernel, most=options.memory)
        self.accelerator = accelerators.make(
            options.accel,
            self.memory,
            self.bus,
            deterministic=not real,
            progress=options.progress,
            bits=64 if kernel is None else kernel.bits,
        )
        self._closers.append(self.accelerator.close)
        firmware = None if options.bios is None else FirmwareFile(options.bios)
        self.board = self._make_board(options, firmware)
        self._make_processors(options.cpus, options.apic)
        self.sleep = Sleep(self.board, self.processors, self._emit)
        self.input = Hands(
            self.board.keyboard, self.board.mouse, self.bus.lock, self._stimulate,
            self.sleep.wake_by_hand, self.memory.read,
        )  # fmt: skip
        floppies = [drive for drive in self.drives if drive.spec.media == "floppy"]
        self.board.plug_floppies(floppies)
        for drive in self.drives:
            if drive not in floppies:
                self.board.plug_disk(drive)
        if options.network.kind != "none":
            self._plug_network(options.network)
        if options.rng:
            self._plug_rng(real=real)
        acpi = configuration.describe(self.board, self.memory, options.cpus, options.boot)
        self._boot_choice = options.boot
        if firmware is not None:
            firmware.install(self.memory, self.board)
        else:
            self._install_own_bios(options, acpi, kernel)
        self.running = self._make_running()
        with self.bus.lock:
            self._power_on()

    def _plug_rng(self, *, real: bool) -> None:
        from random import Random

        self.board.plug_rng(None if real else Random(0).randbytes)

    def _plug_network(self, spec: NetworkSpec) -> None:
        self.network = network = networks.make_network(spec, self.clock, self.bus.lock, self.name)
        self._closers.append(network.close)
        self.board.plug_network(network, spec.mac)

    def _make_board(self, options: Options, firmware: FirmwareFile | None) -> Board:
        rom = b"" if firmware is None else firmware.vga_rom()
        epoch = int(time.time()) if isinstance(self.clock, RealClock) else FIXED_EPOCH
        return Board(
            self.memory,
            self.bus,
            self.clock,
            self.accelerator,
            self._requests(),
            epoch=epoch if options.epoch is None else options.epoch,
            consoles=list(self.serial),
            debug_console=self.debug_console,
            video=None
            if options.vga == "none"
            else Video(options.vga_memory, rom, options.vga_size),
        )

    def _install_own_bios(self, options: Options, acpi: AcpiTables, kernel: Kernel | None) -> None:
        bios = self._own_bios = OwnBios(
            self.board,
            self.memory,
            self.accelerator,
            self.processors,
            self.drives,
            boot=options.boot,
            acpi=acpi,
        )
        if kernel is None:
            return

        def load(ranges: Sequence[MemoryRange], rsdp: int = 0) -> Entry:
            return kernel.load(
                self.memory,
                ranges,
                command_line=options.append,
                initrd=options.initrd,
                bits=options.kernel_bits,
                rsdp=rsdp,
            )

        load(configuration.likely_ranges(self.memory))  # errors are found before the start
        bios.boot_kernel(load, self._failed)

    def _make_clock(self, deterministic: bool, replay: str | None) -> RealClock | TurnClock:
        self.journal = Journal() if replay is None else load_journal(replay)
        return TurnClock() if deterministic or replay else RealClock(self.bus.lock)

    def _make_running(self) -> Running:
        chips: dict[str, Callable[..., object]] = {
            **self.input.handlers,
            "serial": lambda port, data: self.serial[port].arrive(bytes.fromhex(data)),
            "power": self.board.power.press_power_button,
            "wake": self.sleep.wake_by_hand,
        }
        handlers: dict[str, Callable[..., object]] = {
            **{kind: self._locked(handler) for kind, handler in chips.items()},
            "eject": lambda drive, force: self.drives.eject(drive, force=force),
            "insert": lambda drive, name, form: self.drives.insert(drive, name, format=form),
            "reset": self._reset_between_turns,
        }
        for port, console in enumerate(self.serial):
            console.deliver_by(partial(self._deliver, port))
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

    def _locked(self, handler: Callable[..., object]) -> Callable[..., object]:
        """A handler for chips, which want the bus lock held."""

        def call(*arguments: Any) -> None:
            with self.bus.lock:
                handler(*arguments)

        return call

    def _deliver(self, port: int, data: bytes) -> None:
        self._stimulate("serial", port, data.hex())

    def _make_processors(self, cpus: int, apic: bool) -> None:
        self.processors: list[Processor] = []
        for index in range(cpus):
            vcpu = self.accelerator.vcpu(index)
            self._closers.append(vcpu.close)
            processor = Processor(vcpu, self.bus)
            self.board.connect_processor(processor, apic=apic)
            self.processors.append(processor)

    def _power_on(self) -> None:
        choice, strict = self._boot_choice, self._boot_choice.strict
        letters = choice.letters(first=not self._was_on)
        self._was_on = True
        configuration.describe_boot_order(self.board, self.drives, letters, strict=strict)
        if self._own_bios is not None:
            self._own_bios.boot_from(letters, strict=strict)
        self.board.reset()
        for processor in self.processors:
            processor.reset()

    # -- using it --------------------------------------------------------------------------------

    def run_until(
        self,
        *,
        serial: str | bytes | None = None,
        screen: str | None = None,
        timeout: float | None = None,
        port: int = 0,
    ) -> bytes:
        """Run until the guest has written ``serial`` to a serial port: what came up to there.

        The next call searches from there on.  ``screen``: until the screen shows this text.
        Neither: until the machine is off.  Raises :class:`MachineTimeoutError` after
        ``timeout`` seconds, and :class:`MachineError` when the machine ends before.
        """
        if self._state in {RunState.PRELAUNCH, RunState.PAUSED, RunState.IO_ERROR}:
            self.resume()
        if screen is not None:
            self._await_text(screen, timeout)
        elif serial is None and not self.wait(timeout):
            raise MachineTimeoutError(f"still running after {timeout} seconds")
        if serial is None:
            return b""
        wanted = serial.encode() if isinstance(serial, str) else serial
        console, since = self.serial[port], self._found[port]
        end = console.wait_for(wanted, since, timeout, self.is_over)
        if end is None:
            tail = console.output(since)[-TAIL:].decode("utf-8", "replace")
            raise self._missed(wanted, "the serial port's last words", tail, timeout)
        self._found[port] = end
        return console.output(since)[: end - since]

    def _await_text(self, wanted: str, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while wanted not in (shown := self.screen_text()):
            late = deadline is not None and time.monotonic() > deadline
            if late or self.is_over():
                raise self._missed(wanted, "the screen", shown.rstrip(), timeout)
            time.sleep(LOOK_SECONDS)

    def _missed(
        self, wanted: str | bytes, where: str, found: str, timeout: float | None
    ) -> MachineError:
        shown = f"; {where}: {found!r}" if found else ""
        if self.is_over():
            why = self.error or "the machine ended"
            return MachineError(f"{why} before {wanted!r} came{shown}")
        return MachineTimeoutError(f"{wanted!r} did not come within {timeout} seconds{shown}")

    @property
    def control(self) -> Control:
        """What monitors and displays need of a machine with a video card."""
        from vdisk.vm._machine.control import Control

        return Control(self)

    @property
    def screen(self) -> Vga:
        """The video card, a :class:`~vdisk.vm.display.base.Screen`."""
        if self.board.vga is None:
            raise InvalidRequestError("this machine has no video card")
        return self.board.vga

    def screenshot(self, path: str, format: str | None = None) -> None:
        """Write the picture on the screen to a file: ``png`` or ``ppm``, by its name or as told."""
        save_picture(self.screen.frame(), path, format)

    def screen_text(self) -> str:
        """The characters on the screen, a line a row; empty in a graphics mode."""
        frame = self.screen.text()
        if frame is None:
            return ""
        characters = frame.cells[::2].decode("cp437").replace("\0", " ")
        rows = range(0, len(characters), frame.columns)
        return "\n".join(characters[row : row + frame.columns].rstrip() for row in rows)

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

    # -- saving ----------------------------------------------------------------------------------

    @cached_property
    def saving(self) -> Saving:
        """What saves and loads it."""
        from vdisk.vm._machine.saving import Saving

        return Saving(self.memory, self.board, self.processors, self.drives, self.accelerator)

    def save(self, tag: str) -> None:
        """Save the whole machine as a snapshot of its qcow2 disks (savevm); then it goes on.

        Raises :class:`InvalidRequestError` where a disk that can be written to is no qcow2.
        """
        with self._standing_still(RunState.SAVE_VM):
            self.saving.save(tag)

    def load(self, tag: str) -> None:
        """Become the machine that was saved under this name (loadvm); it goes on if it ran.

        A machine that has not been started may be loaded into as well.  Raises
        :class:`CorruptImageError` for a state that cannot be; where that shows only when the
        machine has been changed already, it is left with an internal error, and can be reset.
        """
        with self._standing_still(RunState.RESTORE_VM):
            try:
                self.saving.load(tag)
                self.sleep.begin()  # where it was saved on its way to
            except VdiskError as error:
                if self.saving.half_loaded:
                    self.error = f"the machine could not be loaded: {error}"
                raise

    def statistics(self) -> dict[str, Any]:
        """How long it has run (ns), instructions of each processor (0: not counted), drives."""
        return {
            "uptime_ns": self.clock.now(),
            "accelerator": self.accelerator.name,
            "instructions": [processor.vcpu.executed() for processor in self.processors],
            "drives": {drive.name: drive.disk.statistics.as_dict() for drive in self.drives},
        }
