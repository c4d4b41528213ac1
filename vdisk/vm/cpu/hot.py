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
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import iced_x86 as iced

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.builder import Value
from vdisk.vm.cpu.context import ENDS_ITSELF, SEMANTICS, Context
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.lowering import FALL_THROUGH
from vdisk.vm.cpu.native import KNOWN
from vdisk.vm.cpu.records import PARAMS
from vdisk.vm.cpu.state import FIELDS
from vdisk.vm.cpu.translate import block_end_shape
from vdisk.vm.cpu.translation import BLOCK_LIMIT, KEEPS, LINKED
from vdisk.vm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Decoded, Form, Mode, Op
    from vdisk.vm.cpu.decoder import Decoder

REGION_LIMIT = 192
"""Instructions; LLVM needs about half a millisecond for each."""
ZERO = FIELDS["zero"].offset
KERNEL = range(-0x7F00_0000, -0x4000_0000)
"""Where Linux puts its code and data (KASLR: a multiple of 2 MiB further up): numbers of 32 bits
in there are taken for addresses, which differ from run to run by the same amount."""
LEAST = 4
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
            plan = self._plan(offset, decoded)
            self.blocks[offset] = plan
            waiting += (*plan.successors, *plan.returns(), *leading.get(offset, ()))
            self._find_addresses(code, plan)
        head = self.blocks.get(self.head)
        if head is None or _is_cold(head):
            return False
        entries = self._find_entries()
        self.entries = tuple(sorted({*entries, self.head})) if enter or not entries else entries
        loops = any(plan.offset in plan.successors for plan in self.blocks.values())
        return loops or sum(len(plan.decoded) for plan in self.blocks.values()) >= LEAST

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


class RegionBuilder(LlvmBuilder):
    """Writes a region: parameters are constants, and blocks of the region are labels."""

    def __init__(self, region: Region) -> None:
        super().__init__(KNOWN)
        self.region = region
        self._budget = self.variable("i64", Value(self, "i64", "%bud"))
        self._dropped = self.variable("i1", 0)
        """A store of the present step has changed translated code: true on the way out only."""
        self._stores = False  # the present step, so far
        self._step: Step | None = None
        self._here = self._next = ""
        self._out_offset = self.variable("i64")
        self._out_budget = self.variable("i64")
        self._out_place = self.variable("i64")
        self._outs: set[str] = set()
        """What is left for: the ways out that are written once, at the end."""

    def write(self) -> str:
        """The whole function's body."""
        live = self.region.live_in()
        self._enter()
        for plan in self.region.blocks.values():
            self._next = f"b{plan.offset}"
            steps = self.region.steps(plan, live)
            for step in steps:
                self._here, self._next = self._next, self.new_label()
                self.place_label(self._here)
                self._write_step(step)
            self._write_end(plan, steps[-1])
        for name in sorted(self._outs):
            self._write_out(name)
        return self.body()

    def _enter(self) -> None:
        first, *others = self.region.entries
        if others:  # by what the record has as ``off``
            offset = super().param("off").text
            ways = " ".join(f"i64 {other}, label %b{other}" for other in others)
            self.end(f"switch i64 {offset}, label %b{first} [ {ways} ]")
        else:
            self.jump_to_label(f"b{first}")

    def _write_step(self, step: Step) -> None:
        self._step, self._stores = step, False
        SEMANTICS[step.shape.operation](Context(self, step.shape))
        if step.shape.operation not in ENDS_ITSELF:
            self.next()

    def _write_end(self, plan: Plan, last: Step) -> None:
        """What stands behind the last instruction: where it may fall through, the next block."""
        self.place_label(self._next)
        form = plan.decoded[-1].form
        if form.ends and not form.falls_through:
            self.end("unreachable")
            return
        shape = block_end_shape(self.region.mode)
        count = len(plan.decoded)
        self._step = Step(last.op, shape, plan.end, 0, count, last.place, None)
        self._go(plan.end, self._left())

    # -- what a record is here -----------------------------------------------------------------

    @property
    def step(self) -> Step:
        """The micro-op that is being written."""
        assert self._step is not None
        return self._step

    def budget(self) -> Value:
        return self._budget.get()

    def param(self, name: str) -> Value:
        step, op = self.step, self.step.op
        if (step.offset, name) in self.region.addresses:
            return self._address(self.region.addresses[step.offset, name])
        if name == "disp":
            number = op.disp + (step.offset if op.rip_relative else 0)
        elif name == "wide":
            number = op.wide
        elif name in {"off", "len", "count"}:
            number = {"off": step.offset, "len": step.length, "count": step.number}[name]
        else:
            number = getattr(op, name) * PARAMS[name].scaled
        return self.const("i64", number)

    def _address(self, number: int) -> Value:
        """A number that is known when the region is used: relative to the first such one."""
        first = next(iter(self.region.addresses.values()))
        text = f"movq $${BASE}{number - first:+d}, $0"  # which LLVM does not look into
        return self.assign("i64", f'call i64 asm "{text}", "=r"()')

    def load_state(self, offset: Value | int, kind: str) -> Value:
        where = offset.const if isinstance(offset, Value) else offset
        if where == ZERO:
            return self.const(kind, 0)
        return super().load_state(offset, kind)

    def call(self, routine: str, *arguments: Value) -> Value:
        result = super().call(routine, *arguments)
        if routine in {"slow_store", "stored"}:
            self._stores = True
            self._dropped.set(self.poll("code_dropped").ne(0))
        return result

    def elsewhere(self) -> bool:
        """By the first tier's record, unless that record is this very region."""
        place = self.step.place
        if place.before == 0 and place.block in self.region.entries:
            return False
        self._resume(place)
        return True

    # -- ends ------------------------------------------------------------------------------------

    def _linear(self, offset: Value | int) -> Value:
        """The address of a place in the page, or just behind it."""
        linear = self.get("code_page") + offset
        return linear if self.region.mode.code == 64 else linear & 0xFFFF_FFFF

    def _out(self, name: str, offset: int, budget: Value, place: int = 0) -> None:
        """On with a function of the run-time, at a place of the page.

        There is one such end of the region for each of them: LLVM takes as long for an end as for
        many an instruction.
        """
        self._out_offset.set(offset)
        self._out_budget.set(budget)
        self._out_place.set(place)
        self._outs.add(name)
        self.jump_to_label(f"to_{name}")

    def _write_out(self, name: str) -> None:
        self.place_label(f"to_{name}")
        given = [self._linear(self._out_offset.get()), self._out_budget.get(), self.tlb()]
        if name == "resume":
            given.append(self._out_place.get())
        self.used.add(f"declare tailcc void @{name}(ptr{', i64' * len(given)})")
        text = ", ".join(f"i64 {each.text}" for each in given)
        self.end(f"musttail call tailcc void @{name}(ptr %st, {text})", "ret void")

    def _go(self, target: int, budget: Value) -> None:
        """On at another place of the page."""
        if target not in self.region.blocks:
            self._out("goto", target, budget)
            return
        self._stop_if(budget, target)
        self._budget.set(budget)
        self.jump_to_label(f"b{target}")

    def _stop_if(self, budget: Value, offset: int) -> None:
        """Back to Python if the budget is used up or something else is to be done."""
        with self.if_((budget | self.poll("kick")).slt(0), unlikely=True):
            self._out("region_stopped", offset, budget)

    def _resume(self, place: Place) -> None:
        """Go on with a record in the middle of its block, as if it had been executed from there."""
        self._out("resume", place.block, self.budget(), place.packed())

    @contextmanager
    def _if_dropped(self) -> Iterator[None]:
        """What is written inside happens after a store that changed translated code."""
        with self.if_(self._dropped.get(), unlikely=True):
            self.set("code_dropped", 0)
            yield

    def next(self) -> None:
        if self.has_ended():
            return
        following = self.step.following
        if self._stores and following is not None:
            with self._if_dropped():
                self._resume(following)
        self.jump_to_label(self._next)

    def again(self, spent: Value | int = 1) -> None:
        budget, offset = self.budget() - spent, self.step.offset
        left = budget - (self.step.number - 1)
        self._stop_if(left, offset)
        self._budget.set(budget)
        if self._stores:
            with self._if_dropped():
                self._resume(self.step.place)
        self.jump_to_label(self._here)

    def follow(self) -> None:
        step, budget = self.step, self._left()
        assert step.op.jump is not None
        target = step.offset + step.length + step.op.jump
        if self._stores and target in self.region.blocks:
            with self._if_dropped():
                self._out("goto", target, budget)
        self._go(target, budget)

    def fault(self) -> None:
        self._out("fault_at", self.step.offset, self._left())

    def leave(self, reason: int, argument: Value | int = 0, *, after: bool = False) -> None:
        step = self.step
        self.set("exit_reason", reason)
        self.set("exit_argument", argument)
        if after:
            self._out("leave_at", step.offset + step.length, self._left())
        else:
            self._out("leave_at", step.offset, self._left() + 1)


SYMBOL = "region"
BASE = "base"
"""The symbol whose value is the first of the kernel's addresses in a region."""


def region_module(region: Region) -> str:
    """LLVM IR of a region, whose function is :data:`SYMBOL`."""
    b = RegionBuilder(region)
    body = b.write()
    text = function("tailcc", "void", SYMBOL, HANDLER_PARAMETERS, body)
    return "\n".join([*sorted(b.used), text, METADATA])
