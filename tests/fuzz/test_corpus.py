"""Every input of the fuzzers' corpora, and a few of their neighbours, keep the invariants."""

from __future__ import annotations

import random
import zlib

import pytest

from fuzz import target as targets
from tests.tools.peers import check_required

NEIGHBOURS = 40
"""Inputs tried beside those in the tree: the same every time."""


@pytest.mark.parametrize("name", targets.names())
def test_inputs(name: str) -> None:
    target = targets.load(name)
    if not target.limited:
        check_required(["qemu-img"])
    inputs = target.inputs()
    assert inputs
    for data in inputs:
        target.try_input(data)
    rng = random.Random(zlib.crc32(name.encode()))
    for _ in range(NEIGHBOURS if target.limited else 3):
        target.try_input(target.mutate(rng.choice(inputs), rng)[: target.longest])


@pytest.mark.parametrize("name", targets.names())
def test_the_first_line_says_what_holds(name: str) -> None:
    invariant = targets.load(name).invariant
    assert invariant.startswith("Any ")
    assert invariant.endswith("≤ 256 MiB, ≤ 2 s.")
