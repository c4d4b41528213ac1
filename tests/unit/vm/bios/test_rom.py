"""The ROM's code."""

from __future__ import annotations

from vdisk.vm._bios.rom import build


def test_the_place_behind_a_trap_is_no_other_trap() -> None:
    """RIP may show either when a service runs, so both have to lead to one name."""
    traps = build().traps
    assert not traps.keys() & {place + 2 for place in traps}
