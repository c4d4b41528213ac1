"""Our BIOS on QEMU's chips and processor: the ROM runs there, the services here.

QEMU runs the ROM as its firmware, with a breakpoint on every trap.  When one is hit the service
is run here, on QEMU's registers (through its gdb stub), memory and ports (through qtest)::

    with QemuBios(drives=[…], options=["-hda", …]) as machine:
        machine.run(until=lambda: "login" in machine.screen())
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

from tests.tools.patience import connected_to
from tests.tools.peers import command
from vdisk.vm._bios.call import Call
from vdisk.vm._bios.controller import DATA, OUTPUT_FULL, STATUS
from vdisk.vm._bios.hardware import Hardware
from vdisk.vm._bios.rom import ROM_BASE, build
from vdisk.vm._bios.scancodes import KEYS
from vdisk.vm._bios.services import Services
from vdisk.vm._bios.space import Space
from vdisk.vm.accel.base import Registers, Segment, SystemRegisters
from vdisk.vm.memory import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    from typing_extensions import Buffer

    from vdisk.vm._bios.drives import Drives

OUT_LENGTH = 2
GDB_ORDER = (0, 3, 1, 2, 6, 7, 5, 4, *range(8, 16))  # rax rbx rcx rdx rsi rdi rbp rsp r8 …
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
START_UP = 60.0
WRITE_OUTPUT_BUFFER = 0xD2
ENTER, DOWN = (0x1C,), (0xE0, 0x50)


class Qtest:
    """QEMU's qtest protocol: ports and physical memory."""

    def __init__(self, path: str) -> None:
        self._socket = connected_to(path)
        self._file = self._socket.makefile("rwb", buffering=0)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, line: str) -> str:
        self._file.write(line.encode() + b"\n")
        answer = self._file.readline().decode().strip()
        assert answer.startswith("OK"), (line, answer)
        return answer[3:]

    def read(self, address: int, size: int) -> int:
        letter = {1: "b", 2: "w", 4: "l"}[size]
        return int(self.ask(f"in{letter} {address:#x}"), 16)

    def write(self, address: int, size: int, value: int) -> None:
        letter = {1: "b", 2: "w", 4: "l"}[size]
        self.ask(f"out{letter} {address:#x} {value:#x}")

    def read_memory(self, gpa: int, length: int) -> bytes:
        return base64.b64decode(self.ask(f"b64read {gpa:#x} {length:#x}")) if length else b""

    def write_memory(self, gpa: int, data: bytes) -> None:
        if data:
            self.ask(f"b64write {gpa:#x} {len(data):#x} {base64.b64encode(data).decode()}")


class Gdb:
    """The remote protocol of QEMU's gdb stub: one processor."""

    def __init__(self, path: str) -> None:
        self._socket = connected_to(path)
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, text: str) -> None:
        checksum = sum(text.encode()) & 0xFF
        self._socket.sendall(f"${text}#{checksum:02x}".encode())

    def receive(self, timeout: float | None) -> str | None:
        """The next packet; None if none comes in time."""
        self._socket.settimeout(timeout)
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start)
            if start >= 0 and end >= 0 and len(self._buffer) >= end + 3:
                packet = self._buffer[start + 1 : end].decode()
                self._buffer = self._buffer[end + 3 :]
                self._socket.sendall(b"+")
                return packet
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            assert data, "QEMU has gone"
            self._buffer += data

    def ask(self, text: str) -> str:
        self.send(text)
        answer = self.receive(START_UP)
        assert answer is not None and not answer.startswith("E"), (text, answer)
        return answer

    def interrupt(self) -> None:
        self._socket.sendall(b"\x03")


class QemuProcessor:
    """The registers of QEMU's processor, stopped at a trap: a :class:`Processor`."""

    def __init__(self, gdb: Gdb) -> None:
        self._gdb = gdb
        self.raw = bytearray()

    def fetch(self) -> None:
        self.raw = bytearray.fromhex(self._gdb.ask("g").replace("x", "0"))

    def skip_out(self) -> None:
        """Go on behind the OUT."""
        rip = int.from_bytes(self.raw[128:136], "little") + OUT_LENGTH
        self.raw[128:136] = rip.to_bytes(8, "little")
        self._gdb.ask("G" + self.raw.hex())

    def _word(self, offset: int, size: int) -> int:
        return int.from_bytes(self.raw[offset : offset + size], "little")

    def get_registers(self) -> Registers:
        gprs = [0] * 16
        for place, number in enumerate(GDB_ORDER):
            gprs[number] = self._word(8 * place, 8)
        return Registers(gprs, self._word(128, 8), self._word(136, 4))

    def set_registers(self, registers: Registers) -> None:
        for place, number in enumerate(GDB_ORDER):
            self.raw[8 * place : 8 * place + 8] = registers.gprs[number].to_bytes(8, "little")
        self.raw[136:140] = registers.rflags.to_bytes(4, "little")

    def get_system_registers(self) -> SystemRegisters:
        found = SystemRegisters()
        for place, name in enumerate(SEGMENTS):
            selector = self._word(140 + 4 * place, 4)
            setattr(found, name, Segment(selector, selector << 4))
        found.cr0 = self._word(164 + 24, 8)
        return found

    def set_system_registers(self, registers: SystemRegisters) -> None:
        for place, name in enumerate(SEGMENTS):
            selector = getattr(registers, name).selector
            self.raw[140 + 4 * place : 144 + 4 * place] = selector.to_bytes(4, "little")


class QemuMemory:
    """QEMU's physical memory in the place of :class:`~vdisk.vm.memory.GuestMemory`."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest

    def kind(self, _gpa: int) -> PageKind:
        return PageKind.RAM

    def is_ram(self, _gpa: int, _length: int) -> bool:
        return True

    def read(self, gpa: int, length: int) -> bytes:
        return self._qtest.read_memory(gpa, length)

    def write(self, gpa: int, data: Buffer) -> None:
        self._qtest.write_memory(gpa, bytes(data))


class QemuSpace(Space):
    """Filling goes through a buffer: there is no view of another process's memory."""

    def fill(self, gpa: int, length: int, read_into: Callable[[int, memoryview], None]) -> None:
        buffer = bytearray(length)
        read_into(0, memoryview(buffer))
        self.write(gpa, buffer)


class HostTime:
    """A clock of the host's time."""

    def now(self) -> int:
        return time.monotonic_ns()


class QemuBios:
    """A running QEMU, stopped whenever a service works."""

    def __init__(
        self,
        directory: Path,
        drives: Drives,
        options: Sequence[str] = (),
        memory_mib: int = 64,
        **settings: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.rom = build()
        rom_file = directory / "bios.bin"
        rom_file.write_bytes(self.rom.image)
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())  # short socket names
        gdb_path, qtest_path = f"{folder}/gdb", f"{folder}/qtest"
        self.process = subprocess.Popen(
            [
                *command("qemu-system-x86_64", "-accel", "tcg", "-m", str(memory_mib), "-S"),
                *("-cpu", "qemu64,-apic"),  # the 8259 pair is wired to the processor
                *("-bios", str(rom_file), "-display", "none", "-nodefaults", "-net", "none"),
                *("-vga", "std", "-chardev", f"socket,id=g,path={gdb_path},server=on,wait=off"),
                *("-gdb", "chardev:g", "-qtest", f"unix:{qtest_path},server=on,wait=off"),
                *("-qtest-log", "/dev/null", *options),
            ]
        )
        self._stack.callback(self._kill)
        self.qtest, self.gdb = Qtest(qtest_path), Gdb(gdb_path)
        for connection in (self.qtest, self.gdb):
            self._stack.callback(connection.close)
        self.processor = QemuProcessor(self.gdb)
        self.space = QemuSpace(QemuMemory(self.qtest), None)  # type: ignore[arg-type]
        low_end = memory_mib << 20
        self.hardware = Hardware(
            self.qtest, self.space, HostTime(), self.rom, low_end, 1 << 32, drives
        )
        self.services = Services(self.hardware, **settings)
        self.traps = {ROM_BASE + at: name for at, name in self.rom.traps.items()}
        self.counts: dict[str, int] = {}
        self._keys: list[int] = []
        self.gdb.ask("?")
        for address in self.traps:
            assert self.gdb.ask(f"Z1,{address:x},1") == "OK"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, until: Callable[[], bool], timeout: float = 30.0, interval: float = 0.3) -> bool:
        """Run until a condition holds, asked every ``interval`` seconds; False: it never did."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            slice_end = time.monotonic() + interval
            self._run_until(slice_end)
            if until():
                return True
        return False

    def _run_until(self, end: float) -> None:
        self._send_key()
        self.gdb.send("c")
        while True:
            stopped = self.gdb.receive(max(end - time.monotonic(), 0.001))
            if stopped is None:
                self.gdb.interrupt()
                stopped = self.gdb.receive(START_UP)
                assert stopped is not None
                if not self._serve():
                    return
            else:
                self._serve()
            if time.monotonic() >= end:
                return
            self._send_key()
            self.gdb.send("c")

    def _serve(self) -> bool:
        """Run the service of the trap at which the processor stands, if it is one."""
        self.processor.fetch()
        call = Call(self.processor, self.space)
        name = self.traps.get(call.code_address or 0)
        if name is None:
            return False
        self.counts[name] = self.counts.get(name, 0) + 1
        self.services.traps[name](call)
        call.finish()
        self.processor.skip_out()
        return True

    def press(self, *scan_codes: int) -> None:
        """Press and release a key: bytes of scan code set 1, E0 before those that have it.

        They go through the keyboard controller's own command for that (D2h), since QEMU drops
        keys while the machine stands still.
        """
        released = [code if code == 0xE0 else code | 0x80 for code in scan_codes]
        self._keys += [*scan_codes, *released]

    def type(self, text: str) -> None:
        """Press the keys of small letters."""
        for character in text:
            self.press(
                next(scan for scan, key in KEYS.items() if key.plain & 0xFF == ord(character))
            )

    def _send_key(self) -> None:
        """One byte of the keyboard, when the last one has been fetched."""
        if self._keys and not self.qtest.read(STATUS, 1) & OUTPUT_FULL:
            self.qtest.write(STATUS, 1, WRITE_OUTPUT_BUFFER)
            self.qtest.write(DATA, 1, self._keys.pop(0))

    def screen(self) -> str:
        """The text screen, a line a row."""
        cells = self.qtest.read_memory(0xB8000, 4000)[::2]
        rows = (cells[at : at + 80] for at in range(0, 2000, 80))
        return "\n".join(row.decode("cp437").replace("\0", " ").rstrip() for row in rows)
