"""Running one target: guided by coverage where atheris is installed, by chance where it is not.

Both ways call the same ``run`` and ``mutate`` of a target within the same limits, and both end
with a :class:`Figures`.  An input that shows a defect is kept in the work directory, minimised by
nobody: ``python -m fuzz one TARGET FILE`` shows what it does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import re
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

from fuzz import target as targets
from fuzz.limits import CPU_SECONDS, INSTRUMENTED

if TYPE_CHECKING:
    from pathlib import Path

_STATISTICS = re.compile(r"^stat::number_of_executed_units: +(\d+)", re.MULTILINE)
_COVERAGE = re.compile(r"\bcov: (\d+)")
_GENERIC = 5
"""One input in so many is changed by libFuzzer, which knows what comparisons looked for."""


class Figures(NamedTuple):
    """How a run went.  ``edges``: places in the code that were reached, 0 if not measured."""

    target: str
    inputs: int
    edges: int
    seconds: float
    defects: list[str]


def guided() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def run(name: str, seconds: float, work: Path, seed: int) -> Figures:
    """Fuzz one target in a process of its own; ``work`` keeps what it finds between runs."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    mode = "guided" if guided() and targets.load(name).limited else "plain"
    words = [sys.executable, "-m", "fuzz", "child", mode, name, str(seconds), str(folder)]
    started = time.monotonic()
    before = set(folder.glob("defect-*"))
    done = subprocess.run(
        [*words, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = done.stdout.decode(errors="replace")
    (folder / "log").write_text(said)
    inputs = [int(number) for number in _STATISTICS.findall(said)]
    edges = [int(number) for number in _COVERAGE.findall(said)]
    defects = [str(path) for path in sorted(set(folder.glob("defect-*")) - before)]
    if not inputs or (done.returncode and not defects):
        defects.append(f"{name} ended with {done.returncode}: see {folder / 'log'}")
    taken = time.monotonic() - started
    return Figures(name, sum(inputs), max(edges, default=0), taken, defects)


# -- in the child ----------------------------------------------------------------------------------


def run_plain(name: str, seconds: float, folder: Path, seed: int) -> int:
    """Neighbours of known inputs by chance; the exit status."""
    target, rng = targets.load(name), random.Random(seed)
    pool = target.inputs()
    for data in pool:
        target.try_input(data)
    count, found, end = len(pool), set[str](), time.process_time() + seconds
    deadline = time.monotonic() + seconds
    while time.process_time() < end and time.monotonic() < deadline:
        data = target.mutate(rng.choice(pool), rng)[: target.longest]
        count += 1
        try:
            target.try_input(data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            _keep_defect(folder, data, error, found)
    print(f"stat::number_of_executed_units: {count}")
    return int(bool(found))


def _keep_defect(folder: Path, data: bytes, error: BaseException, found: set[str]) -> None:
    """Keep the first input of each kind of defect: of each place that raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} {frame.filename}:{frame.lineno} {_shape(str(error))}"
    if kind in found:
        return
    found.add(kind)
    digest = hashlib.sha256(data).hexdigest()[:16]
    (folder / f"defect-{digest}").write_bytes(data)
    print(f"defect-{digest}: {kind}\n{''.join(traceback.format_exception(error))}")


def _shape(message: str) -> str:
    """A message without its numbers."""
    return re.sub(r"0x[0-9a-f]+|\d+", "N", message)[:200]


def run_guided(name: str, seconds: float, folder: Path, seed: int) -> int:
    """libFuzzer, told by atheris which code an input reached; never returns."""
    import atheris

    with atheris.instrument_imports(include=["vdisk"], enable_loader_override=False):
        target = targets.load(name)
        target.prepare()
        for data in target.seeds().values():  # what is imported lazily is instrumented, too
            target.run(data)
    corpus = folder / "inputs"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(target.inputs()):
        (corpus / f"given-{number}").write_bytes(data)

    def try_input(data: bytes) -> None:
        target.try_input(data, INSTRUMENTED)

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        rng = random.Random(number)
        if not rng.randrange(_GENERIC):
            changed: bytes = atheris.Mutate(data, longest)
            return changed
        return target.mutate(data, rng)[:longest]

    options = {
        "max_total_time": int(seconds),
        "max_len": target.longest,
        "len_control": 0,
        "seed": seed,
        "timeout": int(CPU_SECONDS * INSTRUMENTED * 10),
        "rss_limit_mb": 0,  # fuzz.limits is stricter
        "artifact_prefix": f"{folder}/defect-",
        "print_final_stats": 1,
    }
    words = ["fuzz", *(f"-{key}={value}" for key, value in options.items())]
    atheris.Setup([*words, str(corpus)], try_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


# -- what is kept of a run -------------------------------------------------------------------------


def save_figures(path: Path, figures: list[Figures]) -> None:
    """Add a run's figures to those of earlier ones: inputs and seconds of each target."""
    totals = json.loads(path.read_text()) if path.exists() else {}
    for one in figures:
        old = totals.get(one.target, {"inputs": 0, "seconds": 0.0, "edges": 0})
        totals[one.target] = {
            "inputs": old["inputs"] + one.inputs,
            "seconds": round(old["seconds"] + one.seconds, 1),
            "edges": max(old["edges"], one.edges),
        }
    path.write_text(json.dumps(totals, indent=1, sort_keys=True))
