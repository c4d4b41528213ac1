"""``python -m fuzz``: run targets, look at one input, keep the corpora small.

python -m fuzz run --time 60             every target for a minute
python -m fuzz run --time 600 qcow2_read
python -m fuzz one qcow2_read FILE       what does this input do?
python -m fuzz replay                    every input in the tree, once
python -m fuzz coverage                  what do all inputs reach, parser by parser?
python -m fuzz distil qcow2_read         put the best of what was found into the tree
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuzz import engine
from fuzz import target as targets

WORK = Path(".fuzz")
"""Where inputs are kept that are not in the tree, and defects."""
FEW, SMALL = 16, 4096
"""Files of a corpus in the tree that ``distil`` fills up, and bytes of the largest it adds."""


def main() -> int:
    args = _parser().parse_args()
    status: int = args.call(args)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run targets, each for so many seconds")
    run.add_argument("--time", type=float, default=60, help="seconds for each target")
    run.add_argument("--seed", type=int, default=None, help="of chance; the time by default")
    run.add_argument("--work", type=Path, default=WORK, help="where to keep what is found")
    run.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets.names()))
    run.set_defaults(call=_run)
    one = commands.add_parser("one", help="run one input")
    one.add_argument("target")
    one.add_argument("file", type=Path)
    one.set_defaults(call=_one)
    replay = commands.add_parser("replay", help="run every input in the tree")
    replay.add_argument("targets", nargs="*", metavar="TARGET")
    replay.set_defaults(call=_replay)
    coverage = commands.add_parser("coverage", help="how much of each parser all inputs reach")
    coverage.add_argument("--work", type=Path, default=WORK)
    coverage.add_argument("targets", nargs="*", metavar="TARGET")
    coverage.set_defaults(call=_coverage)
    distil = commands.add_parser("distil", help="add the best inputs found to the tree")
    distil.add_argument("--work", type=Path, default=WORK)
    distil.add_argument("targets", nargs="*", metavar="TARGET")
    distil.set_defaults(call=_distil)
    child = commands.add_parser("child", help="(what run starts)")
    child.add_argument("mode", choices=["guided", "plain"])
    child.add_argument("target")
    child.add_argument("seconds", type=float)
    child.add_argument("folder", type=Path)
    child.add_argument("seed", type=int)
    child.set_defaults(call=_child)
    return parser


def _run(args: argparse.Namespace) -> int:
    how = "guided by coverage" if engine.guided() else "by chance (atheris is not installed)"
    seed = int(time.time()) if args.seed is None else args.seed
    print(f"{args.time:g} s for each target, {how}; seed {seed}", flush=True)
    figures = []
    for name in args.targets or targets.names():
        done = engine.run(name, args.time, args.work, seed)
        figures.append(done)
        print(f"{name:18} {done.inputs:9} inputs  {done.edges:5} edges", flush=True)
        for defect in done.defects:
            print(f"  DEFECT {defect}", flush=True)
    engine.save_figures(args.work / "figures.json", figures)
    return int(any(done.defects for done in figures))


def _one(args: argparse.Namespace) -> int:
    target = targets.load(args.target)
    print(target.invariant)
    target.try_input(targets.read_input(args.file))
    print("holds")
    return 0


def _replay(args: argparse.Namespace) -> int:
    for name in args.targets or targets.names():
        target = targets.load(name)
        inputs = target.inputs()
        for data in inputs:
            target.try_input(data)
        print(f"{name:18} {len(inputs):4} inputs")
    return 0


def _coverage(args: argparse.Namespace) -> int:
    from fuzz.coverage import measure

    for parser, reached in measure(args.targets or targets.names(), args.work).items():
        print(f"{parser:26} {reached} branches")
    return 0


def _distil(args: argparse.Namespace) -> int:
    from fuzz.coverage import distil

    for name in args.targets or targets.names():
        if targets.load(name).limited:
            added = distil(name, args.work, FEW, SMALL)
            print(f"{name:18} {len(added):4} new inputs")
    return 0


def _child(args: argparse.Namespace) -> int:
    how = engine.run_plain if args.mode == "plain" else engine.run_guided
    return how(args.target, args.seconds, args.folder, args.seed)


if __name__ == "__main__":
    sys.exit(main())
