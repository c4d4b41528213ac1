"""The options of commands that go on for as long as wanted: how long, and from which seed."""

from __future__ import annotations

import argparse
import time


def parser_of(name: str, docstring: str | None, what: str) -> argparse.ArgumentParser:
    """For the command ``fuzz.NAME``, which makes ``what`` for some time."""
    parser = argparse.ArgumentParser(
        prog=f"fuzz.{name}", description=(docstring or "").partition("\n")[0]
    )
    parser.add_argument("--time", type=float, default=60, help="seconds")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help=f"of all {what}; the time by default"
    )
    return parser
