"""How fast images are served: vdisk-nbd beside qemu-nbd and nbdkit, same image, same load.

    python bench/nbd.py [--rounds 3] [--seconds 2] [--only read,4096,32] [--size 512M]

Every server serves its own copy of the image, from the page cache, where it is locked, over a unix
socket; the load comes from ``nbd_load.c``, compiled here, which batches as a good client does.  In
each round the servers take their turns, so that a busy machine is busy for all.  The first does not
count: clusters are allocated then.  Of the others, the half counts in which other programs took the
least of the processors, and of that the median.  Reported are the
wall rate, the rate per second of server CPU (user and system, all threads), both divided by those
of the others, the load generator's own cost, and what other programs took of the processors.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
MAP_LOCKED = 0x2000
"""As x86 and ARM have it; Python's mmap does not name it."""


class Case(NamedTuple):
    """``connections`` with ``depth`` requests of ``block`` bytes in flight on each."""

    operation: str
    block: int
    depth: int
    connections: int
    order: str

    def __str__(self) -> str:
        size = f"{self.block >> 10} KiB" if self.block < 1 << 20 else "1 MiB"
        many = f" x {self.connections}" if self.connections > 1 else ""
        return f"{self.operation} {size} QD{self.depth}{many} {self.order}"


CASES = [
    *(
        Case(operation, 4096, depth, connections, "random")
        for operation in ("read", "write")
        for depth, connections in ((1, 1), (32, 1), (128, 1), (32, 4))
    ),
    *(
        Case(operation, block, depth, 1, "sequential")
        for operation in ("read", "write")
        for block, depth in ((65536, 16), (1 << 20, 4))
    ),
]


class Result(NamedTuple):
    """Requests a second, requests a second of server CPU, generator's microseconds a request.

    ``others``: the part of the machine's processors that other programs, or other machines, took.
    """

    wall: float
    cpu: float
    generator: float
    others: float


def serve_vdisk(image: Path, format: str, socket: Path, readonly: bool) -> list[str]:
    flags = ["-r"] if readonly else []
    command = [sys.executable, "-m", "vdisk.cli.nbd", "serve", "-q", "-k", str(socket)]
    return [*command, "-f", format, *flags, str(image)]


def serve_qemu(aio: str, image: Path, format: str, socket: Path, readonly: bool) -> list[str]:
    flags = ["-r"] if readonly else []
    command = ["qemu-nbd", "-t", "-e", "0", "-k", str(socket), f"--aio={aio}"]
    return [*command, "-f", format, *flags, str(image)]


def serve_nbdkit(image: Path, format: str, socket: Path, readonly: bool) -> list[str]:
    flags = ["-r"] if readonly else []
    return ["nbdkit", "-f", "-U", str(socket), *flags, "file", str(image)]


SERVERS = {
    "vdisk": serve_vdisk,
    "qemu threads": lambda *rest: serve_qemu("threads", *rest),
    "qemu io_uring": lambda *rest: serve_qemu("io_uring", *rest),
    "nbdkit file": serve_nbdkit,
}


def make_image(folder: Path, kind: str, size: int) -> Path:
    """Random data: whole in a raw or qcow2 image, or spread over a chain of four."""
    raw = folder / "source.raw"
    if not raw.exists():
        with raw.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
    if kind == "raw":
        return raw
    first = folder / "0.qcow2"
    if not first.exists():
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
        subprocess.run([*convert, raw, first], check=True)
    if kind == "qcow2":
        return first
    for number in range(1, 4):
        target = folder / f"{number}.qcow2"
        backing = ["-b", str(folder / f"{number - 1}.qcow2"), "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, target], check=True)
        writes: list[str] = []
        for part in range(16):
            start = (part * 4 + number) * (size >> 6)
            writes += ["-c", f"write -q -P {number} {start} {size >> 6}"]
        subprocess.run(["qemu-io", *writes, target], check=True)
    return folder / "3.qcow2"


@contextlib.contextmanager
def cached(image: Path) -> Iterator[None]:
    """Keep an image in the page cache.

    Else a system under pressure, or one that reclaims what seems to be cold, takes pages away
    during the run, and whoever is in turn reads them again, perhaps in a form that costs others.
    """
    with image.open("r+b") as file, contextlib.ExitStack() as stack:
        os.fsync(file)  # no measurement shall wait for the copying
        file.read()
        try:
            flags = mmap.MAP_SHARED | MAP_LOCKED
            stack.enter_context(mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ))
        except OSError as error:
            print(f"{image.name} cannot be locked in the page cache: {error.strerror}")
        yield


@contextlib.contextmanager
def running(name: str, image: Path, format: str, readonly: bool) -> Iterator[tuple[int, Path]]:
    """A server of ``image``: its process id and socket."""
    with tempfile.TemporaryDirectory(prefix="vdisk-bench-") as folder:
        socket = Path(folder, "nbd.sock")
        command = SERVERS[name](image, format, socket, readonly)
        with subprocess.Popen(command, cwd=HERE.parent) as process:
            while not socket.exists():
                time.sleep(0.02)
            time.sleep(0.2)
            try:
                yield process.pid, socket
            finally:
                process.terminate()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds() -> float:
    """Of all processors, since the start: user, nice, system, irq, softirq, steal."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in (0, 1, 2, 5, 6, 7)) / TICKS


def measure(load: Path, pid: int, socket: Path, case: Case, seconds: float) -> Result:
    words = [case.operation, case.block, case.depth, case.connections, seconds, case.order]
    before, busy, began = cpu_seconds(pid), busy_seconds(), time.monotonic()
    done = subprocess.run(
        [load, socket, *map(str, words)], check=True, capture_output=True, text=True
    )
    spent = cpu_seconds(pid) - before
    requests, took, own = map(float, done.stdout.split())
    others = (busy_seconds() - busy - spent - own) / (time.monotonic() - began)
    return Result(
        requests / took,
        requests / max(spent, 1 / TICKS),
        own / requests * 1e6,
        max(others, 0) / (os.cpu_count() or 1),
    )


def median(results: list[Result]) -> Result:
    """Of the less disturbed half."""
    quiet = sorted(results, key=lambda result: result.others)[: (len(results) + 1) // 2]
    return Result(*(statistics.median(column) for column in zip(*quiet, strict=True)))


def show(kind: str, case: Case, results: dict[str, Result]) -> None:
    ours = results["vdisk"]
    for name, result in results.items():
        scale = case.block / (1 << 30) if case.block > 4096 else 1e-3
        unit = "GiB" if case.block > 4096 else "k"
        ratio = (
            ""
            if name == "vdisk"
            else f"{ours.wall / result.wall:6.2f} {ours.cpu / result.cpu:6.2f}"
        )
        print(
            f"{kind:6} {case!s:28} {name:14} {result.wall * scale:8.2f} {unit}/s"
            f" {result.cpu * scale:8.2f} {unit}/CPU-s {ratio:14} {result.generator:7.1f} us"
            f" {result.others:5.0%}",
            flush=True,
        )


def row(kind: str, case: Case, results: dict[str, Result]) -> str:
    """A line of a Markdown table: our rates, and by how much they are those of the others' best."""
    ours = results["vdisk"]
    scale, unit = (case.block / (1 << 30), "GiB") if case.block > 4096 else (1e-3, "k")
    cells = [f"{kind} {case}", f"{ours.wall * scale:.3g} {unit}", f"{ours.cpu * scale:.3g} {unit}"]
    for peer in ("qemu", "nbdkit"):
        found = [result for name, result in results.items() if name.startswith(peer)]
        for value, field in ((ours.wall, "wall"), (ours.cpu, "cpu")):
            best = max((getattr(result, field) for result in found), default=None)
            cells.append("" if best is None else f"{value / best:.2f}")
    return "| " + " | ".join(cells) + " |"


def run(kind: str, cases: list[Case], options: argparse.Namespace, folder: Path) -> list[str]:
    """Measure the cases; the lines of the table."""
    rows: list[str] = []
    source = make_image(folder, kind, options.size)
    format = "raw" if kind == "raw" else "qcow2"
    names = [name for name in SERVERS if kind == "raw" or name != "nbdkit file"]
    for operation in ("read", "write"):
        chosen = [case for case in cases if case.operation == operation]
        if not chosen:
            continue
        with contextlib.ExitStack() as stack:
            servers = {}
            for number, name in enumerate(names):
                image = source.with_name(f"copy-{number}.{format}")
                shutil.copyfile(source, image)
                stack.callback(image.unlink)
                stack.enter_context(cached(image))
                servers[name] = stack.enter_context(
                    running(name, image, format, operation == "read")
                )
            for case in chosen:
                results: dict[str, list[Result]] = {name: [] for name in names}
                for _ in range(1 + options.rounds):
                    for name, (pid, socket) in servers.items():
                        results[name].append(
                            measure(folder / "load", pid, socket, case, options.seconds)
                        )
                medians = {name: median(found[1:]) for name, found in results.items()}
                show(kind, case, medians)
                rows.append(row(kind, case, medians))
    return rows


def versions() -> str:
    texts = []
    for command in (["qemu-nbd", "--version"], ["nbdkit", "--version"]):
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        texts.append(said.splitlines()[0])
    return f"{', '.join(texts)}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--size", type=int, default=512 << 20, help="bytes of the disk")
    parser.add_argument("--kinds", default="raw,qcow2,chain")
    parser.add_argument("--only", help="OPERATION[,BLOCK[,DEPTH[,CONNECTIONS]]]")
    options = parser.parse_args()
    cases = CASES
    if options.only:
        wanted = options.only.split(",")
        cases = [case for case in CASES if list(map(str, case))[: len(wanted)] == wanted]
    print(versions())
    with tempfile.TemporaryDirectory(prefix="vdisk-bench-") as name:
        folder = Path(name)
        command = ["cc", "-O2", "-pthread", "-o", folder / "load", HERE / "nbd_load.c"]
        subprocess.run(command, check=True)
        rows: list[str] = []
        for kind in options.kinds.split(","):
            rows += run(kind, cases, options, folder)
    print("\n| | wall | CPU | qemu-nbd, wall | CPU | nbdkit, wall | CPU |")
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
