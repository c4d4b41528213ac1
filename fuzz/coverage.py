"""What inputs reach: how much of each parser all of them do, and which few do most.

Inputs are those in the tree and those that runs have found.  ``python -m fuzz coverage`` runs each
once, a target in a process of its own so that imports count too, and prints for each parser how
many of its lines were run, and of its branches.  What is not reached is what an open image does
beyond parsing, or cannot happen.  ``python -m fuzz distil`` puts the few into the tree.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fuzz import target as targets

if TYPE_CHECKING:
    from collections.abc import Iterable

PARSERS = {
    "qcow2 header": ["formats/_qcow2/header.py", "formats/_qcow2/validate.py"],
    "qcow2 opening": ["formats/_qcow2/opening.py"],
    "qcow2 L1 and L2 tables": ["formats/_qcow2/mapping.py", "formats/_qcow2/entries.py"],
    "qcow2 compressed clusters": ["formats/_qcow2/compression.py"],
    "qcow2 snapshots": ["formats/_qcow2/snapshots.py"],
    "qcow2 bitmaps": [
        "formats/_qcow2/bitmap_directory.py",
        "formats/_qcow2/bitmap_data.py",
        "formats/_qcow2/bitmaps.py",
    ],
    "qcow2 reference counts": ["formats/_qcow2/refcounts.py"],
    "qcow2 check": [
        "formats/_qcow2/check.py",
        "formats/_qcow2/survey.py",
        "formats/_qcow2/scan.py",
        "formats/_qcow2/census.py",
    ],
    "qcow2 repair": ["formats/_qcow2/repair.py"],
    "LUKS header": ["formats/_luks/header.py", "formats/_luks/specification.py"],
    "LUKS key slots": ["formats/_luks/keyslots.py"],
    "names and json:": ["opening/names.py", "options.py"],
    "NBD wire": ["nbd/wire.py", "nbd/options.py", "nbd/gate.py", "nbd/_buffer.py"],
    "NBD server negotiation": ["nbd/server_negotiation.py"],
    "NBD server transmission": ["nbd/server_transmission.py", "nbd/bulk.py"],
    "NBD client negotiation": ["nbd/client_negotiation.py", "nbd/connect.py"],
    "NBD client transmission": ["nbd/client_transmission.py", "nbd/chunks.py", "nbd/replies.py"],
    "NBD URI": ["nbd/uri.py"],
    "virtqueues": ["vm/devices/virtqueue.py", "vm/devices/virtqueue_packed.py"],
    "virtio-blk": ["vm/devices/virtio_blk.py", "vm/devices/virtio.py", "vm/devices/virtio_pci.py"],
    "virtio-net": ["vm/devices/virtio_net.py"],
    "IDE": [
        *(f"vm/devices/ide{part}.py" for part in ("", "_channel", "_disk", "_dma", "_drive")),
        *(f"vm/devices/{name}.py" for name in ("ide_smart", "atapi", "atapi_mmc")),
    ],
    "user network": [f"vm/net/{name}.py" for name in ("ipv6", "packets", "tcp", "user")],
}
"""The parsers of what strangers send, and the modules of the library that they are."""


class Reached(NamedTuple):
    """Lines and branches of a parser: how many there are, and were reached."""

    lines: int
    lines_reached: int
    branches: int
    branches_reached: int

    def __str__(self) -> str:
        lines = 100 * self.lines_reached / max(self.lines, 1)
        branches = 100 * self.branches_reached / max(self.branches, 1)
        return f"{lines:5.1f} % of {self.lines:4} lines  {branches:5.1f} % of {self.branches:4}"


def found(work: Path, name: str) -> list[bytes]:
    """The inputs that runs of a target have kept."""
    return [path.read_bytes() for path in sorted((work / name / "inputs").glob("*"))]


# -- all of them -----------------------------------------------------------------------------------


def measure(names: Iterable[str], work: Path) -> dict[str, Reached]:
    """What the inputs of the targets reach, by parser."""
    with tempfile.TemporaryDirectory(prefix="vdisk-coverage-") as folder:
        for name in names:
            words = [sys.executable, "-m", "fuzz.coverage", name, str(work), folder]
            subprocess.run(words, check=True)
        return _combined(Path(folder))


def _combined(folder: Path) -> dict[str, Reached]:
    from coverage import Coverage

    measured = Coverage(data_file=str(folder / "all"), branch=True, messages=False)
    measured.combine([str(folder)], keep=True)
    report = folder / "report.json"
    measured.json_report(outfile=str(report), ignore_errors=True)
    files = json.loads(report.read_text())["files"]
    parsers = {}
    for parser, modules in PARSERS.items():
        sums = [0, 0, 0, 0]
        for path, entry in files.items():
            if any(path.endswith(f"vdisk/{module}") for module in modules):
                summary = entry["summary"]
                sums[0] += summary["num_statements"]
                sums[1] += summary["covered_lines"]
                sums[2] += summary["num_branches"]
                sums[3] += summary["covered_branches"]
        parsers[parser] = Reached(*sums)
    return parsers


def main() -> None:
    """In the child: run the inputs of one target."""
    from coverage import Coverage

    name, work, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    measured = Coverage(data_file=f"{folder}/all.{name}", branch=True, source=["vdisk"])
    measured.start()
    target = targets.load(name)
    inputs = [*target.inputs(), *found(work, name)]
    for data in inputs:
        target.try_input(data, SLOW)
    measured.stop()
    measured.save()
    print(f"{name:18} {len(inputs):5} inputs", flush=True)


# -- the best of them ------------------------------------------------------------------------------

Arcs = frozenset[tuple[str, int, int]]
"""Steps from line to line, by file: what an input did in the library."""


def distil(name: str, work: Path, most: int, largest: int) -> list[str]:
    """Add inputs to the tree's corpus that reach what none there does; the new files' names.

    ``most``: files that the corpus may have; ``largest``: bytes of one as it is stored.
    """
    target = targets.load(name)
    shelf = targets.CORPUS / name
    shelf.mkdir(parents=True, exist_ok=True)
    reached = {arc for data in target.inputs() for arc in _arcs(target, data)}
    left = {
        data: _arcs(target, data)
        for data in found(work, name)
        if targets.stored_size(data) <= largest
    }
    added: list[str] = []
    while left and len(list(shelf.iterdir())) < most:
        best = max(left, key=lambda data: (len(left[data] - reached), -targets.stored_size(data)))
        arcs = left.pop(best)
        if arcs <= reached:
            break
        reached |= arcs
        added.append(targets.write_input(shelf, hashlib.sha256(best).hexdigest()[:12], best))
    return added


def _arcs(target: targets.Target, data: bytes) -> Arcs:
    from coverage import Coverage

    measured = Coverage(data_file=None, branch=True, source=["vdisk"], messages=False)
    measured.start()
    try:
        target.try_input(data, SLOW)
    finally:
        measured.stop()
    steps = measured.get_data()
    return frozenset(
        (file, first, last)
        for file in steps.measured_files()
        for first, last in steps.arcs(file) or ()
    )


SLOW = 20.0
"""How much slower code may be whose lines are counted."""


if __name__ == "__main__":
    main()
