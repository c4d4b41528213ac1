"""The descriptor table of a guest's buffer, read in native code (VIRTIO 1.2, section 2.7.5).

This is no work of a processor's: a device does it, in Python, while its guest waits.  A buffer of
1 MiB is up to 256 pages, and native code is through with a table of them before Python has added
two numbers.  It takes what drivers lay: each descriptor names the next one, those that the device
reads come first, and all lie in RAM.  Anything else is for those to look at who can say what is
wrong with it (:mod:`vdisk.vm.devices.virtqueue`)::

    address (64)  length (32)  flags (16): 1 NEXT, 2 WRITE  next (16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.routines import routine
from vdisk.vm.memory import EXTENDED
from vdisk.vm.ranges import LANE

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value

NEXT, WRITE = 1, 2
NEXT_SHIFT = 16
"""Of the next one's number, above the flags."""
HALF_LANE = LANE // 2
LANE_SHIFT = LANE.bit_length() - 1
TOTALS = LANE
"""Bytes in front of the ranges: how many bytes they all have, and how many the device may write."""


@routine("i64", "i64", "i64", "i64", "i64")
def gather(b: Builder, table: Value, count: Value, place: Value, end: Value) -> None:
    """One more than the number of descriptors that the device reads; 0: this table is not for here.

    ``table``, ``place``: on the host.  RAM reaches from EXTENDED to ``end`` without a gap.  To
    ``place``: the totals, then all ranges as (gpa, bytes), then all as (host's address, bytes).
    """
    at, number = b.variable("i64", table), b.variable("i64")
    to, total = b.variable("i64", place + TOTALS), b.variable("i64")
    written, before, read = b.variable("i64"), b.variable("i64"), b.variable("i64")
    with b.loop():
        b.break_if(number.get().eq(count))
        number.set(number.get() + 1)
        start, rest = b.load_host(at.get(), "i64"), b.load_host(at.get() + HALF_LANE, "i64")
        length, kind = rest & 0xFFFF_FFFF, b.variable("i64", rest >> 32)
        with b.if_(number.get().eq(count)):
            kind.set(kind.get() & 0xFFFF)  # the last one names none
        with b.else_():
            kind.set(kind.get() ^ (number.get() << NEXT_SHIFT | NEXT))
        wrong = (kind.get() & ~WRITE).ne(0) | kind.get().ult(before.get()) | length.eq(0)
        outside = start.ult(EXTENDED) | start.ugt(end) | length.ugt(end - start)
        with b.if_(wrong | outside, unlikely=True):
            b.return_(b.const("i64", 0))
        before.set(kind.get())
        total.set(total.get() + length)
        with b.if_(kind.get().eq(0)):
            read.set(number.get())
        with b.else_():
            written.set(written.get() + length)
        _put(b, to.get(), start, length)
        _put(b, to.get() + (count << LANE_SHIFT), start + b.get("memory"), length)
        at.set(at.get() + LANE)
        to.set(to.get() + LANE)
    _put(b, place, total.get(), written.get())
    b.return_(read.get() + 1)


def _put(b: Builder, place: Value, first: Value, second: Value) -> None:
    b.store_host(place, first)
    b.store_host(place + HALF_LANE, second)
