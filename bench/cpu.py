"""The processors beside QEMU's recompiler (``-accel tcg``), on the same guest program.

    python bench/cpu.py [--rounds 3] [--accel llvm] [--only WORD] [--memory 64]

bench/guests/workloads.c (compiled here by gcc, freestanding) does one kind of work after another,
each several times, and tells on a port when a run begins and ends; the host takes the time.  The
two take turns, each in a process of its own.  Printed are medians of the runs after the first eight
of each round, QEMU's time divided by ours (above 1 ours is faster), the same for the first run
(with translation), and how many million guest instructions a second ours executes.  Both have to
come to the same checksum.  The machine is noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUESTS = ROOT / "bench" / "guests"
PROGRAMS = ROOT / "tests" / "vm" / "cpu" / "programs"
COMPILE = (
    *("gcc", "-std=gnu11", "-O2", "-Wall", "-ffreestanding", "-fno-pic", "-mno-red-zone"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-tree-loop-distribute-patterns"),
    "-fno-asynchronous-unwind-tables",
)
TOOLS = ("gcc", "ld", "objcopy", "nasm", "qemu-system-x86_64")
RUNS = 24
WARM_UP = 8
"""Runs of a workload in a round, and how many of them are for warming up: hot code is compiled in
the background, and a run takes some tens of milliseconds."""
PATIENCE = 300
"""Seconds for a round."""


@dataclass
class Measured:
    """Of one workload: seconds and guest instructions of each run, and what it came to."""

    seconds: list[float] = field(default_factory=list)
    instructions: list[int] = field(default_factory=list)
    checksum: str = ""


class Marks:
    """Takes the time at the marks that the program writes to the debug port."""

    def __init__(self) -> None:
        self.found: dict[str, Measured] = {}
        self._line = bytearray()
        self._begun = (0.0, 0)

    def byte(self, value: int, now: float, instructions: int) -> None:
        """Take a byte that the program wrote at ``now``, after so many instructions."""
        is_name = self._line.startswith(b"<")
        if value == ord("S") and not is_name:
            self._begun = now, instructions
        if value == ord("E") and not is_name:
            measured = list(self.found.values())[-1]
            measured.seconds.append(now - self._begun[0])
            measured.instructions.append(instructions - self._begun[1])
        self._line.append(value)
        if value == ord("\n"):
            self._take(self._line.decode("ascii", "replace").strip())
            self._line.clear()

    def _take(self, line: str) -> None:
        if line.startswith("<"):
            self.found[line[1:]] = Measured()
        elif "=" in line:
            list(self.found.values())[-1].checksum = line.partition("=")[2]


# -- the program -----------------------------------------------------------------------------------


def workloads(word: str) -> int:
    """The bits of the workloads whose names contain ``word``."""
    source = (GUESTS / "workloads.c").read_text()
    names = re.findall(r'^    \{"(.*)", \w+\},$', source, re.MULTILINE)
    chosen = [i for i, name in enumerate(names) if word.lower() in name.lower()]
    if not chosen:
        raise SystemExit(f"no workload is called {word!r}; there are: {', '.join(names)}")
    return sum(1 << i for i in chosen)


def build(folder: Path, chosen: int) -> Path:
    """The firmware image with the program in it."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"not found: {', '.join(missing)}")
    defines = [f"-DRUNS={RUNS}", f"-DCHOSEN={chosen}"]
    object_, program, binary = folder / "w.o", folder / "w.elf", folder / "program.bin"
    image = folder / "bench.bin"
    for words in (
        [*COMPILE, *defines, "-c", GUESTS / "workloads.c", "-o", object_],
        ["ld", "--no-warn-rwx-segments", "-T", GUESTS / "program.ld", object_, "-o", program],
        ["objcopy", "-O", "binary", program, binary],
        ["nasm", "-f", "bin", f"-I{PROGRAMS}/", f"-I{folder}/", GUESTS / "boot.asm", "-o", image],
    ):
        subprocess.run(words, check=True)
    return image


# -- running ---------------------------------------------------------------------------------------


def run_qemu(image: Path, memory_mib: int) -> dict[str, Measured]:
    """A round in QEMU."""
    words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "pc", "-nodefaults"]
    words += ["-m", str(memory_mib), "-bios", str(image), "-display", "none", "-no-reboot"]
    words += ["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    marks = Marks()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1):
            marks.byte(data[0], time.perf_counter(), 0)
        process.wait(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return marks.found


def run_ours(image: Path, accelerator: str, memory_mib: int) -> dict[str, Measured]:
    """A round on one of our accelerators, in a process of its own."""
    words = [sys.executable, __file__, "--guest", str(image), "--accel", accelerator]
    words += ["--memory", str(memory_mib)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=PATIENCE, cwd=ROOT)
    return {name: Measured(**values) for name, values in json.loads(done.stdout).items()}


def guest(image: Path, accelerator: str, memory_mib: int) -> None:
    """Be that process: run the program, print what was measured as JSON."""
    sys.path.insert(0, str(ROOT))
    from tests.tools.engines import ENGINES
    from vdisk.vm._machine import accelerators
    from vdisk.vm.accel.base import VcpuExit
    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

    memory, bus, marks = GuestMemory(memory_mib << 20), Bus(), Marks()
    for address in (0xF0000, 0xFFFF0000):
        memory.load_rom(address, image.read_bytes())
    forced = {engine.name: engine for engine in ENGINES}
    if accelerator in accelerators.NAMES:
        made = accelerators.make(accelerator, memory, bus)
    else:
        made = forced[accelerator].make(memory, bus)
    vcpu = made.vcpu(0)
    ended: list[int] = []
    said: list[tuple[int, float]] = []

    def say(_offset: int, _size: int, value: int) -> None:
        said.append((value, time.perf_counter()))
        vcpu.request_exit()  # only between two runs the count of instructions is exact

    def leave(_offset: int, _size: int, value: int) -> None:
        ended.append(value)
        vcpu.request_exit()

    bus.ports.map(0xE9, 1, lambda *_: 0xE9, say, "debug")
    bus.ports.map(0xF4, 4, lambda *_: 0, leave, "exit")
    vcpu.reset()
    while not ended:
        result = vcpu.run()
        if result is not VcpuExit.INTERRUPTED:
            where = vcpu.get_registers().rip
            raise SystemExit(f"{accelerator}: {result} {vcpu.error} at {where:#x}")
        for value, now in said:
            marks.byte(value, now, vcpu.instructions)
        said.clear()
    print(json.dumps({name: vars(measured) for name, measured in marks.found.items()}))


# -- the report ------------------------------------------------------------------------------------


def report(theirs: list[dict[str, Measured]], ours: list[dict[str, Measured]]) -> None:
    """Print a line a workload, and the geometric mean of the ratios."""
    print(f"{'':20} {'QEMU s':>8} {'ours s':>8} {'ratio':>6} {'first':>6} {'MIPS':>7}")
    ratios: list[float] = []
    firsts: list[float] = []
    for name in theirs[0]:
        q, o = [r[name] for r in theirs], [r[name] for r in ours if name in r]
        if len(o) < len(q) or not all(measured.checksum for measured in o):
            print(f"{name:20} the program stopped before it was done with this")
            break
        sums = {measured.checksum for measured in [*q, *o]}
        if len(sums) != 1:
            raise SystemExit(f"{name}: different results: {', '.join(sorted(sums))}")
        there, here = warm(q), warm(o)
        first = first_run(q) / first_run(o)
        counted = statistics.median(i for m in o for i in m.instructions[WARM_UP:])
        mips = f"{counted / here / 1e6:7.0f}" if counted else "      -"
        ratios.append(there / here)
        firsts.append(first)
        print(f"{name:20} {there:8.3f} {here:8.3f} {there / here:6.2f} {first:6.2f} {mips}")
    mean, mean_first = geometric_mean(ratios), geometric_mean(firsts)
    print(f"{'geometric mean':20} {'':8} {'':8} {mean:6.2f} {mean_first:6.2f}")


def warm(rounds: list[Measured]) -> float:
    """The median of all runs but the first ones."""
    return statistics.median(s for measured in rounds for s in measured.seconds[WARM_UP:])


def first_run(rounds: list[Measured]) -> float:
    """The median of the first runs."""
    return statistics.median(measured.seconds[0] for measured in rounds)


def geometric_mean(values: list[float]) -> float:
    """Of ratios."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of both, taking turns")
    parser.add_argument("--accel", default="llvm", help="an engine of tests/tools/engines.py")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--memory", type=int, default=64, help="of the guest, in MiB")
    parser.add_argument("--guest", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guest:
        guest(arguments.guest, arguments.accel, arguments.memory)
        return
    results: dict[str, list[dict[str, Measured]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        image = build(Path(folder), workloads(arguments.only))
        for _ in range(arguments.rounds):
            results["theirs"].append(run_qemu(image, arguments.memory))
            results["ours"].append(run_ours(image, arguments.accel, arguments.memory))
    report(results["theirs"], results["ours"])


if __name__ == "__main__":
    main()
