"""vdisk beside qemu-img on the same images: how long, and how much processor.

    python bench/images.py [--runs 5] [--folder DIR] [--only WORD]

Each line is one job. The two programs take turns, each run in a process of its own, and what is
printed is the median of the runs: seconds on the clock, seconds of processor (user and system, of
the process and its children), and the ratio of vdisk's to qemu-img's. Below 1 vdisk is faster.

Everything lies in the page cache, and targets are made anew each time, in memory that was used and
freed just before (a virtual machine may charge for memory that was idle): what is compared is the
programs, not the disk. The data are this machine's programs and documents, packed one after
another: they compress as file systems do. A noisy machine changes both columns: read the ratios.
"""

from __future__ import annotations

import argparse
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
    from collections.abc import Iterator, Sequence

VDISK = [sys.executable, "-m", "vdisk.cli.main"]
QEMU_IMG = ["qemu-img"]

MIB = 1 << 20
TIB = 1 << 40

DATA_SIZE = 1536 * MIB
PACKED_SIZE = 384 * MIB
DATA_SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")


class Cost(NamedTuple):
    """Seconds of one run."""

    wall: float
    processor: float


class Job(NamedTuple):
    """Arguments that both programs take; ``target``: the file of ``size`` that they make."""

    name: str
    arguments: Sequence[str]
    target: Path | None = None
    size: int = 0


# -- running ---------------------------------------------------------------------------------------


def run(words: Sequence[str]) -> Cost:
    """Run a program with its output thrown away; its cost, which must not be a failure's."""
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} exited with {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def free_memory_for(job: Job) -> None:
    """Remove the job's target, leaving as much memory as it takes free and warm."""
    if job.target is None:
        return
    with job.target.open("wb") as file:
        for _ in range(0, job.size, MIB):
            file.write(b"x" * MIB)
    job.target.unlink()


def measured(programs: Sequence[Sequence[str]], job: Job, runs: int) -> list[Cost]:
    """The median cost of each program, which take turns."""
    costs: list[list[Cost]] = [[] for _ in programs]
    for turn in range(runs):
        order = range(len(programs)) if turn % 2 == 0 else reversed(range(len(programs)))
        for number in order:
            free_memory_for(job)
            costs[number].append(run([*programs[number], *job.arguments]))
    return [
        Cost(
            statistics.median(cost.wall for cost in each),
            statistics.median(cost.processor for cost in each),
        )
        for each in costs
    ]


# -- images ----------------------------------------------------------------------------------------


def make_data(path: Path, size: int) -> None:
    """``size`` bytes of real files, in a raw image without holes."""
    with path.open("wb") as target:
        for source in _files():
            with source.open("rb") as file:
                shutil.copyfileobj(file, target, MIB)
            if target.tell() >= size:
                break
        while target.tell() < size:
            target.write(os.urandom(min(MIB, size - target.tell())))
        target.truncate(size)


def _files() -> Iterator[Path]:
    for top in DATA_SOURCES:
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path


def make_chain(folder: Path, data: Path) -> Path:
    """Three images over one another; the two upper ones hold every eighth MiB each."""
    import vdisk

    base, middle, top = (folder / f"{name}.qcow2" for name in ("base", "middle", "top"))
    subprocess.run([*QEMU_IMG, "convert", "-f", "raw", "-O", "qcow2", data, base], check=True)
    for number, (below, image) in enumerate(((base, middle), (middle, top))):
        vdisk.create(image, format="qcow2", backing_file=str(below), backing_format="qcow2")
        with vdisk.open(image, "r+", format="qcow2") as device:
            for offset in range(number * 4 * MIB, device.size - MIB, 8 * MIB):
                device.write(offset, os.urandom(MIB))
    return top


def make_large(folder: Path) -> list[tuple[str, Path]]:
    """Images of 1 TiB: one with every cluster mapped, one with a cluster in each 512 MiB."""
    import vdisk

    full, sparse = folder / "full.qcow2", folder / "sparse.qcow2"
    subprocess.run(
        [*QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", full, str(TIB)],
        check=True,
    )
    vdisk.create(sparse, TIB, format="qcow2")
    with vdisk.open(sparse, "r+", format="qcow2") as device:
        for offset in range(0, TIB, 512 * MIB):
            device.write(offset, b"x" * 65536)
    return [("full", full), ("sparse", sparse)]


# -- jobs ------------------------------------------------------------------------------------------


def copying_jobs(folder: Path) -> Iterator[Job]:
    data, small = folder / "data.raw", folder / "small.raw"
    make_data(data, DATA_SIZE)
    make_data(small, PACKED_SIZE)
    target = folder / "target"

    def convert(name: str, source: Path, *flags: str) -> Job:
        words = ["convert", *flags, str(source), str(target)]
        return Job(name, words, target, source.stat().st_size)

    yield convert("raw -> raw", data, "-f", "raw", "-O", "raw")
    yield convert("raw -> qcow2", data, "-f", "raw", "-O", "qcow2")
    yield convert("raw -> qcow2 -W", data, "-f", "raw", "-O", "qcow2", "-W")
    image = folder / "image.qcow2"
    subprocess.run([*QEMU_IMG, "convert", "-f", "raw", "-O", "qcow2", data, image], check=True)
    yield convert("qcow2 -> raw", image, "-f", "qcow2", "-O", "raw")
    yield convert("qcow2 -> raw -W -m 16", image, "-f", "qcow2", "-O", "raw", "-W", "-m", "16")
    yield Job(
        "compare raw with qcow2", ["compare", "-f", "raw", "-F", "qcow2", str(data), str(image)]
    )
    yield convert("chain of 3 -> qcow2", make_chain(folder, data), "-f", "qcow2", "-O", "qcow2")
    for compression in ("zlib", "zstd"):
        flags = ["-O", "qcow2", "-c", "-o", f"compression_type={compression}"]
        yield convert(f"raw -> qcow2 -c {compression}", small, "-f", "raw", *flags)
        packed = folder / f"{compression}.qcow2"
        subprocess.run([*QEMU_IMG, "convert", *flags, "-f", "raw", small, packed], check=True)
        yield convert(f"qcow2 {compression} -> raw", packed, "-f", "qcow2", "-O", "raw")


def metadata_jobs(folder: Path) -> Iterator[Job]:
    for kind, image in make_large(folder):
        path = str(image)
        yield Job(f"check, 1 TiB {kind}", ["check", "-f", "qcow2", path])
        yield Job(f"map, 1 TiB {kind}", ["map", "-f", "qcow2", "--output=json", path])
        yield Job(f"measure, 1 TiB {kind}", ["measure", "-f", "qcow2", "-O", "qcow2", path])
        yield Job(f"compare with itself, 1 TiB {kind}", ["compare", "-f", "qcow2", path, path])


def report(job: Job, runs: int) -> None:
    ours, theirs = measured([VDISK, QEMU_IMG], job, runs)
    cells = [
        f"{ours.wall:8.2f}{theirs.wall:10.2f}{ours.wall / theirs.wall:8.2f}",
        f"{ours.processor:10.2f}{theirs.processor:10.2f}{ours.processor / theirs.processor:8.2f}",
    ]
    print(f"{job.name:<34}{''.join(cells)}", flush=True)


def report_start_up(folder: Path, runs: int) -> None:
    """``info`` of a small image against an interpreter that does nothing."""
    image = folder / "small.qcow2"
    subprocess.run([*QEMU_IMG, "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    programs = [[*VDISK, "info", str(image)], [sys.executable, "-c", "pass"]]
    programs.append([*QEMU_IMG, "info", str(image)])
    costs = measured(programs, Job("start-up", []), 4 * runs)
    names = ("vdisk info", "python -c pass", "qemu-img info")
    print(
        "start-up, ms: "
        + ", ".join(
            f"{name} {cost.wall * 1000:.0f} (processor {cost.processor * 1000:.0f})"
            for name, cost in zip(names, costs, strict=True)
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns of each program (default 5)")
    parser.add_argument("--folder", help="where to put the images (8 GB; default: temporary)")
    parser.add_argument("--only", default="", help="only jobs with this word in their name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="vdisk-bench-") as name:
        folder = Path(name)
        print(f"{os.cpu_count()} processors; medians of {args.runs} runs, programs taking turns")
        print(f"{'':<34}{'wall s':>8}{'qemu-img':>10}{'ratio':>8}", end="")
        print(f"{'cpu s':>10}{'qemu-img':>10}{'ratio':>8}")
        for jobs in (copying_jobs, metadata_jobs):
            for job in jobs(folder):
                if args.only in job.name:
                    report(job, args.runs)
        if args.only in "start-up":
            report_start_up(folder, args.runs)


if __name__ == "__main__":
    main()
