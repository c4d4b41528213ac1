"""Keys that a monitor presses: ``send-key`` and ``sendkey``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vdisk.errors import InvalidRequestError
from vdisk.vm.display.keys import find_qcode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.display.base import InputSink

HOLD_MILLISECONDS = 100
"""How long keys are held unless one says: QEMU's default."""
LONGEST_HOLD = 60_000
"""A monitor waits for as long, so it has an end."""
MOST_KEYS = 16
"""Keys held together: more than anybody's fingers."""


def qcode_of(name: str) -> str:
    """The key called ``name``.  Raises InvalidRequestError."""
    qcode = find_qcode(name)
    if qcode is None:
        raise InvalidRequestError(f"invalid parameter: {name}")
    return qcode


def press_together(
    sink: InputSink,
    qcodes: Sequence[str],
    milliseconds: int,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Press keys in order, hold them, release them."""
    if not 0 <= milliseconds <= LONGEST_HOLD:
        raise InvalidRequestError(f"keys are held for at most {LONGEST_HOLD} ms")
    if len(qcodes) > MOST_KEYS:
        raise InvalidRequestError(f"at most {MOST_KEYS} keys are held together")
    for qcode in qcodes:
        sink.key(qcode, True)
    sleep(milliseconds / 1000)
    for qcode in reversed(qcodes):
        sink.key(qcode, False)
