"""Why generated code comes back to Python."""

from __future__ import annotations

import enum


@enum.unique
class Exit(enum.IntEnum):
    """``exit_reason`` of the state; ``rip`` is the instruction to go on with, or the one named."""

    INTERRUPTED = 1
    """The budget is used up, or ``kick`` is set."""
    IN_REGION = 10
    """The same, within a region of the second tier."""
    TRANSLATE = 2
    """There is no code at ``rip`` yet."""
    SYSTEM = 3
    """The instruction at ``rip`` is carried out by Python."""
    FAULT = 4
    """``fault_vector``, ``fault_error`` happened to the instruction at ``rip``."""
    BUS = 6
    """The instruction at ``rip`` is a locked one that nothing but the bus makes atomic."""
    PAUSED = 7
    """PAUSE again and again: the guest waits for another processor."""
    EXTERNAL = 8
    """An interrupt was acknowledged, whose vector is ``exit_argument``: Python is to deliver it."""
    HALTED = 9
    """HLT was executed; ``rip`` is behind it."""
    CROSSING = 5
    """The instruction at ``rip`` reaches into a page that is not the one it was translated with."""
