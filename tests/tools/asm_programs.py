"""Small assembly guests (tests/vm/cpu/programs): assembled, run on an accelerator or in QEMU.

A program is a 64 KiB firmware image.  What it has to say stands in its source::

    ;= a line of output
    ;q what QEMU 7.2's recompiler says instead, where it differs from the manual

and in its head, where needed::

    ; processors: N
    ; not in QEMU: the reason
"""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tools import peers
from vdisk.vm._machine.processor import Processor
from vdisk.vm._machine.running import Threads
from vdisk.vm.accel.base import VcpuExit
from vdisk.vm.bus import Bus
from vdisk.vm.clock import RealClock
from vdisk.vm.devices.apic_bus import ApicBus
from vdisk.vm.devices.lapic import Lapic
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from tests.tools.engines import Engine
    from vdisk.vm.accel.base import Accelerator, Vcpu

PROGRAMS = Path(__file__).resolve().parents[1] / "vm" / "cpu" / "programs"
IMAGE_SIZE = 0x1_0000
MEMORY_SIZE = 16 << 20
DEBUG_PORT, EXIT_PORT, FAST_A20_PORT = 0xE9, 0xF4, 0x92
PATIENCE = 100.0
NEWLINE = 10


@dataclass(frozen=True)
class Program:
    """A source file; ``lines``: what it should say, ``qemu_lines``: what QEMU makes of it."""

    name: str
    lines: tuple[str, ...]
    qemu_lines: tuple[str, ...]
    processors: int = 1
    not_in_qemu: str = ""

    def __str__(self) -> str:
        return self.name

    def assemble(self, directory: Path) -> bytes:
        """The firmware image."""
        target = directory / f"{self.name}.bin"
        words = ["-f", "bin", "-I", f"{PROGRAMS}/", "-o", str(target)]
        peers.run("nasm", *words, str(PROGRAMS / f"{self.name}.asm"))
        image = target.read_bytes()
        assert len(image) == IMAGE_SIZE
        return image


def load(path: Path) -> Program:
    """A program and what its source says about it."""
    lines: list[str] = []
    qemu_lines: list[str] = []
    processors, not_in_qemu = 1, ""
    for line in path.read_text().splitlines():
        if line.startswith(";= "):
            lines.append(line[3:])
            qemu_lines.append(line[3:])
        elif line.startswith(";q "):
            qemu_lines[-1] = line[3:]
        elif line.startswith("; processors: "):
            processors = int(line.rpartition(" ")[2])
        elif line.startswith("; not in QEMU: "):
            not_in_qemu = line.partition(": ")[2]
    return Program(path.stem, tuple(lines), tuple(qemu_lines), processors, not_in_qemu)


def programs() -> list[Program]:
    """All of them."""
    return [load(path) for path in sorted(PROGRAMS.glob("*.asm"))]


class Board:
    """The least of a machine: memory, firmware, the debug and exit ports, port 92h."""

    def __init__(self, engine: Engine, image: bytes) -> None:
        self.memory = GuestMemory(MEMORY_SIZE)
        self.memory.load_rom(0xF_0000, image)
        self.memory.load_rom((1 << 32) - IMAGE_SIZE, image)
        self.bus = Bus()
        self.said = bytearray()
        self.exited = False
        self.bus.ports.map(DEBUG_PORT, 1, lambda *_: DEBUG_PORT, self._say, "debug")
        self.bus.ports.map(EXIT_PORT, 4, lambda *_: 0, self._exit, "exit")
        self.bus.ports.map(FAST_A20_PORT, 1, self._read_92, self._write_92, "port 92")
        self.accelerator: Accelerator = engine.make(self.memory, self.bus)
        self.vcpu: Vcpu = self.accelerator.vcpu(0)
        self.vcpu.reset()

    def _say(self, _offset: int, _size: int, value: int) -> None:
        self.said.append(value & 0xFF)

    def _exit(self, _offset: int, _size: int, _value: int) -> None:
        self.exited = True
        self.vcpu.request_exit()

    def _read_92(self, _offset: int, _size: int) -> int:
        return 2 if self.accelerator.a20 else 0

    def _write_92(self, _offset: int, _size: int, value: int) -> None:
        self.accelerator.a20 = bool(value & 2)

    def run(self) -> str:
        """What the program says; how it ended, if not as it should, in a last line."""
        watch = threading.Timer(PATIENCE, self.vcpu.request_exit)
        watch.start()
        try:
            result = self.vcpu.run()
        finally:
            watch.cancel()
        text = self.said.decode("ascii", "replace")
        if self.exited or result is VcpuExit.SHUTDOWN:
            return text
        return f"{text}\n{result} {self.vcpu.error} at {self.vcpu.get_registers().rip:#x}"

    def close(self) -> None:
        """Release the accelerator."""
        self.vcpu.close()
        self.accelerator.close()


class SmpBoard(Board):
    """The same with several processors, their local APICs, and a thread for each."""

    def __init__(self, engine: Engine, image: bytes, processors: int) -> None:
        super().__init__(engine, image)
        self.clock, apics = RealClock(self.bus.lock), ApicBus()
        vcpus = [self.vcpu, *(self.accelerator.vcpu(index) for index in range(1, processors))]
        self.processors = [Processor(vcpu, self.bus) for vcpu in vcpus]
        for processor in self.processors:
            lapic = Lapic(processor.index, apics, self.clock, processor)
            processor.lapic = lapic
            processor.connect(lapic, lapic)
            processor.reset()
        self.over = threading.Event()
        self.stuck: list[str] = []
        self.running = Threads(self.processors, self.bus, self.clock, self._report, {})

    def _exit(self, _offset: int, _size: int, _value: int) -> None:
        self.exited = True
        self.over.set()

    def _report(self, processor: Processor, result: VcpuExit) -> None:
        self.stuck.append(f"processor {processor.index}: {result} {processor.vcpu.error}")
        self.over.set()

    def run(self) -> str:
        self.running.resume()
        self.over.wait(PATIENCE)
        self.running.close()
        text = self.said.decode("ascii", "replace")
        if self.exited and not self.stuck:
            return text
        places = [f"{each.vcpu.get_registers().rip:#x}" for each in self.processors]
        return f"{text}\n{self.stuck} at {places}"

    def close(self) -> None:
        for processor in self.processors[1:]:
            processor.vcpu.close()
        super().close()


def run_qemu(image: Path, processors: int = 1) -> str:
    """What a program says in QEMU's recompiler."""
    words = ["-accel", "tcg", "-cpu", "max", "-M", "pc", "-m", "16", "-smp", str(processors)]
    words += ["-bios", str(image), "-display", "none", "-nodefaults", "-no-reboot"]
    words += ["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    done = subprocess.run(
        peers.command("qemu-system-x86_64", *words),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout.decode("ascii", "replace")
