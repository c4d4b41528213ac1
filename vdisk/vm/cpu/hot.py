"""The second tier: hot regions of a page as one native function each.

A region is a block that samples have found often and the blocks of the same page that direct jumps
lead to from there, or that lead to it, so loops become loops.  It is written by the same semantic
functions, with the parameters of the records as constants: LLVM folds them, forwards registers and
flags from instruction to instruction, and no record is dispatched in between.

A region is entered like a handler: it *is* the handler of the first record of some of its blocks,
its *entries* (the record says which it is): those that no jump of the region leads to, as functions
begin there; those behind a CALL, where a function comes back; and those that a jump leads back to,
so that whoever is in a loop of the first tier gets out of it.  Everything rare
(faults, exits, jumps out of the region) goes on by address, with what the first tier has
there; so nothing else has to know that the second tier exists.  A region's code depends on the
bytes it was made from and on their place in the page, and on nothing else: it serves wherever the
same bytes stand, in other runs too (:mod:`vdisk.vm.cpu.region_store`); and what looks like an
address of the kernel is left to be filled in, as Linux loads itself somewhere else each time.

A store that changes translated code drops the records it hits.  Whoever executes them stops at
once, but a region has no records to stop at: after the slow way of a store it looks whether
anything was dropped (``code_dropped``) and goes on with the first tier's next record if so, which
may be in the middle of a block (``resume``): where blocks begin is where instructions are counted
and interrupts are taken, so it must not depend on whether there is a region.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import iced_x86 as iced

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.lowering import FALL_THROUGH
from vdisk.vm.cpu.state import FIELDS
from vdisk.vm.cpu.translation import BLOCK_LIMIT, KEEPS, LINKED
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Decoded, Form, Mode, Op
    from vdisk.vm.cpu.decoder import Decoder

REGION_LIMIT = 192
"""Instructions; LLVM needs about half a millisecond for the best code of each."""
ZERO = FIELDS["zero"].offset
KERNEL = range(-0x7F00_0000, -0x4000_0000)
"""Where Linux puts its code and data (KASLR: a multiple of 2 MiB further up): numbers of 32 bits
in there are taken for addresses, which differ from run to run by the same amount."""
LEAST = 2
"""Instructions; less is not worth being entered and left."""
CALLS = {"call", "call_indirect"}
JUMPS = {iced.FlowControl.UNCONDITIONAL_BRANCH, iced.FlowControl.CONDITIONAL_BRANCH}
NOT_HOT = {"system", "undefined", "crossing", "stale", "hlt"}


class Place(NamedTuple):
    """A record, as it can be found from a block's address."""

    block: int
    """Offset of the block in the page."""
    before: int
    """How many records of the block stand before it."""
    offset: int
    number: int
    """What it holds as ``off`` and ``count``."""

    def packed(self) -> int:
        """What ``resume`` takes (:mod:`vdisk.vm.cpu.native`)."""
        return self.before | self.offset << 16 | self.number << 32


class Step(NamedTuple):
    """One micro-op of a region."""

    op: Op
    shape: Shape
    offset: int
    length: int
    number: int
    """How many instructions of its block end with it."""
    place: Place
    """Its record in the first tier."""
    following: Place | None
    """The record behind it, if that begins another instruction."""


class Plan(NamedTuple):
    """One block of a region."""

    offset: int
    decoded: list[Decoded]
    successors: tuple[int, ...]
    """Offsets of the blocks in the page that may follow directly."""
    end: int

    def returns(self) -> tuple[int, ...]:
        """Where in the page a function comes back to that the block calls."""
        calls = self.decoded[-1].form.name in CALLS
        return (self.end,) if calls and self.end < PAGE_SIZE else ()


class Region:
    """The blocks around a hot one."""

    def __init__(
        self,
        decoder: Decoder,
        mode: Mode,
        translated: AbstractSet[int],
        head: int,
        limit: int = REGION_LIMIT,
    ) -> None:
        """``translated``: offsets of blocks in the page; ``head``: that of the hot one."""
        self.decoder, self.mode, self.translated, self.head = decoder, mode, translated, head
        self.limit = limit
        self.blocks: dict[int, Plan] = {}
        self.entries: tuple[int, ...] = ()
        self.addresses: dict[tuple[int, str], int] = {}
        """Parameters that are addresses of the kernel, by the instruction's place and by name."""
        self.fields: list[int] = []
        """Where in the page these stand."""

    def spans(self) -> tuple[tuple[int, int], ...]:
        """The bytes [start, end) of each block."""
        return tuple((plan.offset, plan.end) for plan in self.blocks.values())

    def gather(self, code: bytes, *, enter: bool = False) -> bool:
        """Find the blocks, the nearest first; False if there is nothing to gain.

        ``enter``: the hot block is an entry in any case.
        """
        leading = self._leading(code)
        waiting, size = deque([self.head]), 0
        while waiting:
            offset = waiting.popleft()
            if offset in self.blocks or offset not in self.translated:
                continue
            decoded = self.decoder.decode_block(code, offset, BLOCK_LIMIT)
            size += len(decoded)
            if not decoded or (size > self.limit and self.blocks):
                continue
            plan = self.blocks[offset] = self._plan(offset, decoded)
            waiting += (*plan.successors, *plan.returns(), *leading.get(offset, ()))
        head = self.blocks.get(self.head)
        if head is None or _is_cold(head):
            return False
        self._settle(code)
        entries = self._find_entries()
        self.entries = tuple(sorted({*entries, self.head})) if enter or not entries else entries
        loops = any(plan.offset in plan.successors for plan in self.blocks.values())
        return loops or sum(len(plan.decoded) for plan in self.blocks.values()) >= LEAST

    def take(self, code: bytes, entries: tuple[int, ...]) -> bool:
        """Be a region of just the translated blocks again; False if one is none."""
        for offset in self.translated:
            decoded = self.decoder.decode_block(code, offset, BLOCK_LIMIT)
            if not decoded:
                return False
            self.blocks[offset] = self._plan(offset, decoded)
        self._settle(code)
        self.entries = entries
        return True

    def _settle(self, code: bytes) -> None:
        """All blocks are there: from now on they stand in the order of their addresses."""
        self.blocks = dict(sorted(self.blocks.items()))
        for plan in self.blocks.values():
            self._find_addresses(code, plan)

    def _leading(self, code: bytes) -> dict[int, list[int]]:
        """By blocks: which translated ones may go on or come back there.  A hint: it is not looked
        at what jumps are in this mode."""
        leading: dict[int, list[int]] = {}
        decoder = iced.Decoder(self.mode.code, code)
        for offset in sorted(self.translated):
            decoder.position = decoder.ip = offset
            for count, instruction in enumerate(decoder, 1):
                flow = instruction.flow_control
                if flow != iced.FlowControl.NEXT or count == BLOCK_LIMIT:
                    break
            else:
                continue
            if flow in JUMPS:
                leading.setdefault(instruction.near_branch_target, []).append(offset)
            if flow != iced.FlowControl.UNCONDITIONAL_BRANCH:
                leading.setdefault(instruction.next_ip, []).append(offset)
        return leading

    def _find_entries(self) -> tuple[int, ...]:
        blocks = self.blocks
        ways = [(plan.offset, to) for plan in blocks.values() for to in plan.successors]
        inside = {to for _, to in ways}
        found = {offset for offset in blocks if offset not in inside}
        found.update(place for plan in blocks.values() for place in plan.returns())
        found.update(to for start, to in ways if to <= start)
        usual = {offset for offset in found & blocks.keys() if not _is_cold(blocks[offset])}
        return tuple(sorted(usual))

    def _find_addresses(self, code: bytes, plan: Plan) -> None:
        """Note which parameters a kernel has that stands somewhere else each time."""
        at = plan.offset
        for decoded in plan.decoded if self.mode.code == 64 else ():
            for op in decoded.ops:
                for name in ("disp", "imm"):
                    number = getattr(op, name)
                    if number in KERNEL and not (name == "disp" and op.rip_relative):
                        place = _field(code[at : at + decoded.length], name, number)
                        if place is not None:
                            self.addresses[at, name] = number
                            self.fields.append(at + place)
            at += decoded.length

    def _plan(self, offset: int, decoded: list[Decoded]) -> Plan:
        last = decoded[-1]
        end = offset + sum(each.length for each in decoded)
        successors = []
        goes_on = last.jump is not None and last.form.name != "call"
        if goes_on and links_to(last, end + (last.jump or 0)):
            successors.append(end + (last.jump or 0))
        if (not last.form.ends or last.form.falls_through) and end < PAGE_SIZE:
            successors.append(end)
        return Plan(offset, decoded, tuple(successors), end)

    def live_in(self) -> dict[int, int]:
        """The flags that are looked at from each block's beginning on, to a fixed point."""
        live = dict.fromkeys(self.blocks, 0)
        changed = True
        while changed:
            changed = False
            for offset, plan in self.blocks.items():
                now = self.live_out(plan, live)
                for decoded in reversed(plan.decoded):
                    now = decoded.form.reads | (now & ~decoded.form.kills)
                if now != live[offset]:
                    live[offset], changed = now, True
        return live

    def live_out(self, plan: Plan, live: dict[int, int]) -> int:
        """The flags that are looked at after a block; all, where it leaves the region."""
        last = plan.decoded[-1]
        ways = 2 if last.form.name in FALL_THROUGH else 1
        inside = [live[successor] for successor in plan.successors if successor in live]
        if len(inside) < ways or (last.form.ends and last.jump is None):
            return flags.ARITHMETIC
        total = 0
        for each in inside:
            total |= each
        return total

    def steps(self, plan: Plan, live: dict[int, int]) -> list[Step]:
        """The block's micro-ops, with the shapes that they have here."""
        wanted, now = [], self.live_out(plan, live)
        for decoded in reversed(plan.decoded):
            wanted.append(now)
            now = decoded.form.reads | (now & ~decoded.form.kills)
        wanted.reverse()
        steps: list[Step] = []
        offset, known = plan.offset, -1
        for count, (decoded, live_after) in enumerate(zip(plan.decoded, wanted, strict=True), 1):
            for op in decoded.ops:
                shape = op.shape._replace(
                    flags=live_after & decoded.form.writes != 0,
                    known=known if decoded.form.needs_known else -1,
                )
                if op.jump is not None:
                    target = offset + decoded.length + op.jump
                    if links_to(decoded, target):
                        shape = shape._replace(variant=shape.variant | LINKED)
                if decoded.form.name in {"inc", "dec"} and not live_after & flags.CF:
                    shape = shape._replace(variant=CARRY_DEAD)
                place = Place(plan.offset, len(steps), offset, count)
                following = None
                if op is decoded.ops[-1]:
                    end, more = offset + decoded.length, min(count + 1, len(plan.decoded))
                    following = Place(plan.offset, len(steps) + 1, end, more)
                steps.append(Step(op, shape, offset, decoded.length, count, place, following))
            known = _known_after(decoded.form, known)
            offset += decoded.length
        return steps


def _is_cold(plan: Plan) -> bool:
    """True if nothing is gained by entering a region there."""
    return plan.decoded[0].form.name in NOT_HOT


def links_to(decoded: Decoded, target: int) -> bool:
    """True if a jump to an offset of its page follows a link."""
    return decoded.form.links and 0 <= target < PAGE_SIZE


CARRY_DEAD = 1
"""Variant of INC and DEC: nobody will look at CF, so it need not be kept."""


def _known_after(form: Form, known: int) -> int:
    if form.leaves >= 0:
        return form.leaves
    if form.leaves != KEEPS:
        return -1
    return 0 if known < 0 and form.is_condition else known


def _field(code: bytes, name: str, number: int) -> int | None:
    """Where in an instruction the four bytes of a parameter stand."""
    decoder = iced.Decoder(64, code)
    places = decoder.get_constant_offsets(decoder.decode())
    at, size = (
        (places.displacement_offset, places.displacement_size)
        if name == "disp"
        else (places.immediate_offset, places.immediate_size)
    )
    same = int.from_bytes(code[at : at + 4], "little", signed=True) == number
    return at if size == 4 and same else None
