"""Linux on our machine beside QEMU's (``-accel tcg``): from power-on to a shell, and its disks.

    python bench/boot.py [--rounds 3] [--kernel cloud|generic|686] [--no-disks] [--quick]

All boot the same Debian kernel with the same initramfs (tests/tools/guests.py), each in a process
of its own, in turns.  Counted is from the start of the process until the shell has spoken: seconds
by the clock, and processor seconds of the process, which a busy machine upsets less.  ``cold``:
our first run with an empty cache of compiled code; ``warm``: the runs after it (Python's modules
are compiled before either, as those of an installed package are).  The 32-bit kernel
is also booted by v86 under Node, where ``bench/install-v86.sh`` has put it; v86 offers its guest
neither ACPI nor an APIC, which spares that kernel some work.  Then ``dd``, in the guest, reads and
writes a raw and a qcow2 disk of QEMU's and ours through virtio-blk and IDE, past the guest's own
cache (O_DIRECT) but not past the host's; MB/s as the guest measures, and MB for each second of
processor time of the process, which shows what a request costs however busy the machine is;
medians.  Ratios above 1: ours is faster.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import vdisk
from tests.tools import guests

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = {"cloud": guests.CLOUD, "generic": guests.GENERIC, "686": guests.I686}
MEMORY_MIB = 256
DISK_SIZE = 256 << 20
DISKS = [(bus, form) for bus in ("virtio", "ide") for form in ("raw", "qcow2")]
DEVICES = {("virtio", "raw"): "vda", ("virtio", "qcow2"): "vdb",
           ("ide", "raw"): "sda", ("ide", "qcow2"): "sdb"}  # fmt: skip
PATIENCE = 600
LAST_WORDS = 30
UPTIME_STEP = 0.01
"""Seconds: as fine as /proc/uptime is."""
V86 = Path(__file__).resolve().parent.parent / ".peers" / "v86"
FIRMWARE = Path("/usr/share/seabios")
"""v86 brings no BIOS; it runs SeaBIOS, as QEMU does."""
LABELS = {"qemu": "QEMU tcg", "v86": "v86 under Node", "cold": "ours, cold", "ours": "ours, warm"}


class Load(NamedTuple):
    """One ``dd``; several of them where one is over in some hundredths of a second."""

    name: str
    length: int
    words: str
    count: int
    times: int = 1


LOADS = [
    Load("read 4 KiB", 4096, "if={device} of=/dev/null bs=4k iflag=direct", 2000),
    Load("write 4 KiB", 4096, "if=/dev/zero of={device} bs=4k oflag=direct", 2000),
    Load("read 1 MiB", 1 << 20, "if={device} of=/dev/null bs=1M iflag=direct", 200, 5),
    Load("write 1 MiB", 1 << 20, "if=/dev/zero of={device} bs=1M oflag=direct", 200, 5),
    Load("read 1 MiB, guest's cache", 1 << 20, "if={device} of=/dev/null bs=1M", 200),
]


class Boot(NamedTuple):
    """Seconds until the shell: by the clock, and of processor time."""

    wall: float
    cpu: float


class Speed(NamedTuple):
    """MB for each second: by the guest's clock, and of processor time."""

    wall: float
    cpu: float


Speeds = dict[tuple[str, str, str], Speed]
"""By bus, format and load."""


class Talk:
    """A machine's process, whose serial line is its standard input and output."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._said = b""
        self._learns = "XDG_CACHE_HOME" in environment
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
        )

    def until_ready(self) -> Boot:
        self._until(re.escape(guests.PROMPT).encode())
        return Boot(time.monotonic() - self._began, self._cpu_seconds())

    def run(self, command: str) -> str:
        """What a command prints."""
        assert self.process.stdin is not None
        # What the terminal echoes is another text than what the command prints.
        self.process.stdin.write(f"{command} 2>&1; echo '<'end'>'\n".encode())
        self.process.stdin.flush()
        return self._until(rb"<end>").decode(errors="replace")

    def end(self) -> None:
        """Ours keeps what it has learned for its next run."""
        if self._learns:
            self.process.terminate()
        else:
            self.process.kill()
        try:
            self.process.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _until(self, pattern: bytes) -> bytes:
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self._said)) is None:
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part or time.monotonic() > deadline:
                self.end()
                raise SystemExit(f"{self.process.args} said, last: {self._said[-500:]!r}")
            self._said += part
        found, self._said = self._said[: match.end()], self._said[match.end() :]
        return found

    def task_seconds(self) -> float:
        """Processor time of the threads that there are, finer than :meth:`_cpu_seconds`."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Machines:
    """How each of the two is started, with disks of its own."""

    def __init__(self, guest: guests.Guest, folder: Path, *, disks: bool) -> None:
        self._guest, self._folder, self._disks = guest, folder, disks
        for name in ("ours", "qemu") if disks else ():
            for bus, form in DISKS:
                vdisk.create(self._image(name, bus, form), DISK_SIZE, format=form)

    def _image(self, name: str, bus: str, form: str) -> Path:
        return self._folder / f"{name}-{bus}.{form}"

    def _images(self, name: str) -> Iterator[tuple[Path, str, str]]:
        for bus, form in DISKS if self._disks else ():
            yield self._image(name, bus, form), bus, form

    def ours(self) -> Talk:
        words = [sys.executable, "-m", "vdisk.cli.vm", "run", "--accel", "llvm"]
        words += ["--memory", f"{MEMORY_MIB}M", "--display", "none", "--serial", "stdio"]
        words += self._linux("--")
        for image, bus, form in self._images("ours"):
            words += ["--disk", f"{image},if={bus},format={form}"]
        return Talk(words, {"XDG_CACHE_HOME": str(self._folder / "cache")})

    def qemu(self) -> Talk:
        words = ["qemu-system-x86_64", "-accel", "tcg", "-m", str(MEMORY_MIB), "-nodefaults"]
        words += ["-display", "none", "-vga", "std", "-serial", "stdio", *self._linux("-")]
        for image, bus, form in self._images("qemu"):
            words += ["-drive", f"file={image},if={bus},format={form}"]
        return Talk(words, {})

    def v86(self) -> Talk:
        firmware = [str(FIRMWARE / name) for name in ("bios.bin", "vgabios-stdvga.bin")]
        words = ["node", str(Path(__file__).with_name("v86.mjs")), str(V86), *firmware]
        return Talk([*words, str(MEMORY_MIB), *self._guest, guests.APPEND], {})

    def _linux(self, dash: str) -> list[str]:
        kernel, initrd = self._guest
        options = {"kernel": kernel, "initrd": initrd, "append": guests.APPEND}
        return [word for name, value in options.items() for word in (dash + name, value)]


def measure_disks(talk: Talk, scale: int) -> Speeds:
    found = {}
    for bus, form in DISKS:
        device = f"/dev/{DEVICES[bus, form]}"
        talk.run(f"dd if=/dev/zero of={device} bs=1M oflag=direct")  # nothing is a hole
        for load in LOADS:
            talk.run("echo 3 > /proc/sys/vm/drop_caches")
            found[bus, form, load.name] = measure(talk, load, device, max(load.count // scale, 1))
    return found


def measure(talk: Talk, load: Load, device: str, count: int) -> Speed:
    words, began = load.words.format(device=device), talk.task_seconds()
    each = "; ".join([f"dd {words} count={count}"] * load.times)
    said = talk.run(f"read a z </proc/uptime; {each}; read b z </proc/uptime; echo took $a $b")
    cpu = talk.task_seconds() - began
    match = re.search(r"took ([\d.]+) ([\d.]+)", said)
    if match is None or said.count(f"{count}+0 records out") != load.times:
        raise SystemExit(f"dd {words}: {said}")
    seconds = max(float(match[2]) - float(match[1]), UPTIME_STEP)
    megabytes = load.times * count * load.length / 1e6
    return Speed(megabytes / seconds, megabytes / cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", choices=KERNELS, default="cloud")
    parser.add_argument("--no-disks", dest="disks", action="store_false")
    parser.add_argument("--quick", action="store_true", help="a tenth of each dd")
    arguments = parser.parse_args()
    guest = guests.guest(KERNELS[arguments.kernel])
    contenders = ["qemu", "ours"]
    if arguments.kernel == "686" and is_v86_there():
        contenders.insert(1, "v86")
    boots: dict[str, list[Boot]] = {name: [] for name in (*contenders, "cold")}
    speeds: dict[str, list[Speeds]] = {"qemu": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="vdisk-boot-") as folder:
        machines = Machines(guest, Path(folder), disks=arguments.disks)
        compileall.compile_dir(Path(vdisk.__file__).parent, quiet=1)
        talk = machines.ours()
        boots["cold"].append(talk.until_ready())
        talk.end()
        for _ in range(arguments.rounds):
            for name in contenders:
                talk = getattr(machines, name)()
                try:
                    boots[name].append(talk.until_ready())
                    if arguments.disks and name in speeds:
                        speeds[name].append(measure_disks(talk, 10 if arguments.quick else 1))
                finally:
                    talk.end()
    print_boots(boots)
    if arguments.disks:
        print_speeds(speeds)


def is_v86_there() -> bool:
    """Whether v86 can be measured; says what is missing."""
    missing = [str(path) for path in (V86 / "node_modules", FIRMWARE) if not path.exists()]
    missing += [] if shutil.which("node") else ["node"]
    if missing:
        print(f"without v86: {', '.join(missing)} not found (see bench/install-v86.sh)")
    return not missing


def print_boots(boots: dict[str, list[Boot]]) -> None:
    medians = {
        name: Boot(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in boots.items()
    }
    qemu = medians["qemu"]
    print(f"{'to the shell':<28}{'seconds':>10}{'QEMU/this':>11}{'CPU s':>9}{'QEMU/this':>11}")
    for name, label in LABELS.items():
        if (boot := medians.get(name)) is None:
            continue
        print(f"{label:<28}{boot.wall:>10.2f}{qemu.wall / boot.wall:>11.2f}"
              f"{boot.cpu:>9.2f}{qemu.cpu / boot.cpu:>11.2f}")  # fmt: skip


def print_speeds(speeds: dict[str, list[Speeds]]) -> None:
    columns = f"{'QEMU':>9}{'ours':>9}{'ours/QEMU':>11}"
    print(f"\n{'dd in the guest':<44}{'MB/s':^29}{'MB/CPU s':^29}\n{'':<44}{columns}{columns}")
    for bus, form in DISKS:
        for load in LOADS:
            shown = f"{f'{bus}, {form}: {load.name}':<44}"
            for which in (0, 1):
                qemu, ours = (
                    statistics.median(found[bus, form, load.name][which] for found in speeds[name])
                    for name in ("qemu", "ours")
                )
                shown += f"{qemu:>9.1f}{ours:>9.1f}{ours / qemu:>11.2f}"
            print(shown)


if __name__ == "__main__":
    main()
