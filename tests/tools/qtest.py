"""A QEMU machine that does not run, as a reference for chips: accesses to its bus, and answers.

QEMU's qtest protocol is a line for each access.  The machine is stopped, so no time passes and no
processor interferes; what is compared are registers, not timing.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from tests.tools import peers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LETTERS = {1: "b", 2: "w", 4: "l"}


class Qtest:
    """Commands are collected by the methods and carried out by :meth:`answers`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []

    def out(self, port: int, value: int, size: int = 1) -> None:
        self._lines.append(f"out{_LETTERS[size]} {port:#x} {value:#x}")

    def read_port(self, port: int, size: int = 1) -> None:
        self._lines.append(f"in{_LETTERS[size]} {port:#x}")

    def write(self, address: int, value: int, size: int = 1) -> None:
        self._lines.append(f"write{_LETTERS[size]} {address:#x} {value:#x}")

    def read(self, address: int, size: int = 1) -> None:
        self._lines.append(f"read{_LETTERS[size]} {address:#x}")

    def write_block(self, address: int, data: bytes) -> None:
        self._lines.append(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def read_block(self, address: int, length: int) -> None:
        """Its answer is the bytes as one number, the first byte in front."""
        self._lines.append(f"read {address:#x} {length:#x}")

    def clear(self, address: int, length: int) -> None:
        self._lines.append(f"memset {address:#x} {length:#x} 0")

    def set_irq(self, path: str, name: str, number: int, level: bool) -> None:
        self._lines.append(f"set_irq_in {path} {name} {number} {int(level)}")

    def answers(self) -> list[int]:
        """Carry out what was collected; the values that the reads gave, in order."""
        lines, self._lines = self._lines, []
        assert self._process.stdin is not None and self._process.stdout is not None
        values = []
        for start in range(0, len(lines), 256):  # fewer than the pipe takes
            part = lines[start : start + 256]
            self._process.stdin.write("".join(f"{line}\n" for line in part))
            self._process.stdin.flush()
            values += [self._answer(line) for line in part]
        return [value for value in values if value is not None]

    def _answer(self, command: str) -> int | None:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().split()
        while answer and answer[0] == "IRQ":
            answer = self._process.stdout.readline().split()
        assert answer[:1] == ["OK"], f"{command}: {answer}"
        return int(answer[1], 0) if len(answer) > 1 else None


@contextlib.contextmanager
def machine(options: Sequence[str] = ()) -> Iterator[Qtest]:
    """A stopped PC (i440FX) with these options and no others."""
    words = peers.command(
        "qemu-system-x86_64",
        *("-machine", "pc", "-S", "-nodefaults", "-display", "none"),
        *("-qtest", "stdio", "-qtest-log", "none", *options),
    )
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Qtest(process)
        finally:
            process.kill()
