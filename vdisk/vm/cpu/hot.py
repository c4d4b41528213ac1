"""The second tier: hot regions of a page as one native function each.

A region begins at a block that samples have found often and takes in the blocks of the same page
that direct jumps lead to, so loops become loops.  It is written by the same semantic functions,
with the parameters of the records as constants: LLVM folds them, forwards registers and flags
from instruction to instruction, and no record is dispatched in between.

A region is entered like a handler: it *is* the handler of its first record.  Everything rare
(faults, exits, jumps out of the region) goes on with the records of the first tier, which are
still there; so nothing else has to know that the second tier exists.

A store that changes translated code drops the records it hits.  Whoever executes them stops at
once, but a region has no records to stop at: after the slow way of a store it looks whether
anything was dropped (``code_dropped``) and goes on with the next record if so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu import flags
from vdisk.vm.cpu.builder import Value
from vdisk.vm.cpu.context import ENDS_ITSELF, SEMANTICS, Context
from vdisk.vm.cpu.decode import FALL_THROUGH
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.native import KNOWN
from vdisk.vm.cpu.records import PARAMS, RECORD_SIZE
from vdisk.vm.cpu.state import FIELDS
from vdisk.vm.cpu.translate import BLOCK_LIMIT, KEEPS, LINKED, block_end_shape, may_link

if TYPE_CHECKING:
    from vdisk.vm.cpu.arena import Arena
    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Decoded, Decoder, Mode, Op

REGION_LIMIT = 192
"""Instructions; LLVM needs about half a millisecond for each."""
ZERO = FIELDS["zero"].offset
NOT_HOT = {"system", "undefined", "crossing", "stale", "hlt"}


class Step(NamedTuple):
    """One micro-op of a region."""

    op: Op
    shape: Shape
    offset: int
    length: int
    number: int
    """How many instructions of its block end with it."""
    record: int
    """Address of its record in the first tier."""


class Plan(NamedTuple):
    """One block of a region."""

    offset: int
    decoded: list[Decoded]
    record: int
    """Address of its first record."""
    successors: tuple[int, ...]
    """Offsets of the blocks in the page that may follow directly."""
    end: int


class Region:
    """The blocks around a hot one."""

    def __init__(self, arena: Arena, decoder: Decoder, mode: Mode, codes: int, head: int) -> None:
        self.arena, self.decoder, self.mode, self.codes, self.head = (
            *(arena, decoder, mode, codes),
            head,
        )
        self.blocks: dict[int, Plan] = {}

    def gather(self, code: bytes) -> bool:
        """Find the blocks; False if there is nothing to gain."""
        waiting, size = [self.head], 0
        while waiting:
            offset = waiting.pop(0)
            entry = self.arena.entry(self.codes, offset)
            if offset in self.blocks or not entry:
                continue
            decoded = self.decoder.decode_block(code, offset, BLOCK_LIMIT)
            size += len(decoded)
            if not decoded or (size > REGION_LIMIT and self.blocks):
                continue
            plan = self._plan(offset, decoded, self.arena.record_address(entry))
            self.blocks[offset] = plan
            waiting += plan.successors
        head = self.blocks.get(self.head)
        return head is not None and head.decoded[0].name not in NOT_HOT

    def _plan(self, offset: int, decoded: list[Decoded], record: int) -> Plan:
        last = decoded[-1]
        end = offset + sum(each.length for each in decoded)
        successors = []
        goes_on = last.jump is not None and last.name != "call"
        if goes_on and may_link(last, end + (last.jump or 0), self.mode):
            successors.append(end + (last.jump or 0))
        if (not last.ends or last.falls_through) and end < 0x1000:
            successors.append(end)
        return Plan(offset, decoded, record, tuple(successors), end)

    def live_in(self) -> dict[int, int]:
        """The flags that are looked at from each block's beginning on, to a fixed point."""
        live = dict.fromkeys(self.blocks, 0)
        changed = True
        while changed:
            changed = False
            for offset, plan in self.blocks.items():
                now = self.live_out(plan, live)
                for decoded in reversed(plan.decoded):
                    now = decoded.reads | (now & ~decoded.kills)
                if now != live[offset]:
                    live[offset], changed = now, True
        return live

    def live_out(self, plan: Plan, live: dict[int, int]) -> int:
        """The flags that are looked at after a block; all, where it leaves the region."""
        last = plan.decoded[-1]
        ways = 2 if last.name in FALL_THROUGH else 1
        inside = [live[successor] for successor in plan.successors if successor in live]
        if len(inside) < ways or (last.ends and last.jump is None):
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
            now = decoded.reads | (now & ~decoded.kills)
        wanted.reverse()
        steps: list[Step] = []
        offset, record, known = plan.offset, plan.record, -1
        for count, (decoded, live_after) in enumerate(zip(plan.decoded, wanted, strict=True), 1):
            for op in decoded.ops:
                shape = op.shape._replace(
                    flags=live_after & decoded.writes != 0,
                    known=known if decoded.needs_known else -1,
                )
                if op.jump is not None:
                    target = offset + decoded.length + op.jump
                    if may_link(decoded, target, self.mode):
                        shape = shape._replace(variant=shape.variant | LINKED)
                if decoded.name in {"inc", "dec"} and not live_after & flags.CF:
                    shape = shape._replace(variant=CARRY_DEAD)
                steps.append(Step(op, shape, offset, decoded.length, count, record))
                record += RECORD_SIZE
            known = _known_after(decoded, known)
            offset += decoded.length
        return steps


CARRY_DEAD = 1
"""Variant of INC and DEC: nobody will look at CF, so it need not be kept."""


def _known_after(decoded: Decoded, known: int) -> int:
    if decoded.leaves >= 0:
        return decoded.leaves
    if decoded.leaves != KEEPS:
        return -1
    return 0 if known < 0 and decoded.is_condition else known


class RegionBuilder(LlvmBuilder):
    """Writes a region: parameters are constants, and blocks of the region are labels."""

    def __init__(self, region: Region) -> None:
        super().__init__(KNOWN)
        self.region = region
        self._budget = self.variable("i64", Value(self, "i64", "%bud"))
        self._dropped = self.variable("i1", 0)
        self._step: Step | None = None
        self._next = ""
        self._last = False

    def write(self) -> str:
        """The whole function's body."""
        live = self.region.live_in()
        self.jump_to_label(f"b{self.region.head}")
        for plan in self.region.blocks.values():
            steps = self.region.steps(plan, live)
            for place, step in enumerate(steps):
                label = f"b{plan.offset}" if place == 0 else self._next
                self.place_label(label)
                self._next = self.new_label()
                self._write_step(step)
            self._write_end(plan, steps[-1])
        return self.body()

    def _write_step(self, step: Step) -> None:
        self._step = step
        if self.reaches_slow_store(step.shape):
            self._dropped.set(0)
        SEMANTICS[step.shape.operation](Context(self, step.shape))
        if step.shape.operation not in ENDS_ITSELF:
            self.next()

    @staticmethod
    def reaches_slow_store(shape: Shape) -> bool:
        """True for what may write memory."""
        return "m" in shape.operands or shape.operation in STORING

    def _write_end(self, plan: Plan, last: Step) -> None:
        """What stands behind the last instruction: where it may fall through, the next block."""
        self.place_label(self._next)
        decoded = plan.decoded[-1]
        if decoded.ends and not decoded.falls_through:
            self.end("unreachable")
            return
        shape = block_end_shape(self.region.mode)
        self._step = Step(last.op, shape, plan.end, 0, len(plan.decoded), last.record + RECORD_SIZE)
        if plan.end in self.region.blocks:
            self._stay(plan.end)
        else:
            self._to_record(self.record(), self.budget())

    def _stay(self, target: int) -> None:
        """To another block of the region."""
        budget = self._left()
        record = self._pointer_to(self.region.blocks[target].record)
        self._interrupted_if((budget | self.poll("kick")).slt(0), record, budget)
        self._budget.set(budget)
        self.jump_to_label(f"b{target}")

    # -- what a record is here -----------------------------------------------------------------

    @property
    def step(self) -> Step:
        """The micro-op that is being written."""
        assert self._step is not None
        return self._step

    def _pointer_to(self, address: int) -> str:
        return self.assign("ptr", f"inttoptr i64 {address} to ptr").text

    def record(self) -> str:
        return self._pointer_to(self.step.record)

    def budget(self) -> Value:
        return self._budget.get()

    def param(self, name: str) -> Value:
        step, op = self.step, self.step.op
        if name == "disp":
            number = op.disp + (step.offset if op.rip_relative else 0)
        elif name == "wide":
            number = op.wide or 0
        elif name in {"off", "len", "count"}:
            number = {"off": step.offset, "len": step.length, "count": step.number}[name]
        else:
            number = getattr(op, name) * PARAMS[name].scaled
        return self.const("i64", number)

    def load_state(self, offset: Value | int, kind: str) -> Value:
        where = offset.const if isinstance(offset, Value) else offset
        if where == ZERO:
            return self.const(kind, 0)
        return super().load_state(offset, kind)

    def call(self, routine: str, *arguments: Value) -> Value:
        result = super().call(routine, *arguments)
        if routine in {"slow_store", "stored"}:
            self._dropped.set(self.poll("code_dropped").ne(0))
        return result

    def elsewhere(self) -> bool:
        """By the first tier's record, unless that record is this very region."""
        if self.step.record == self.region.blocks[self.region.head].record:
            return False
        self._to_record(self.record(), self.budget())
        return True

    # -- ends ------------------------------------------------------------------------------------

    def next(self) -> None:
        if self.has_ended():
            return
        if self.reaches_slow_store(self.step.shape):
            with self.if_(self._dropped.get(), unlikely=True):
                self.set("code_dropped", 0)
                following = self._pointer_to(self.step.record + RECORD_SIZE)
                self._to_record(following, self.budget())
        self.jump_to_label(self._next)

    def follow(self) -> None:
        step = self.step
        assert step.op.jump is not None
        target = step.offset + step.length + step.op.jump
        if target in self.region.blocks:
            self._stay(target)
        else:
            super().follow()


STORING = {
    *("push", "push_selector", "pusha", "call", "call_indirect", "enter", "pushf", "stos", "movs"),
}
"""Operations that write memory without naming it as an operand."""


def region_module(region: Region, symbol: str) -> str:
    """LLVM IR of a region."""
    b = RegionBuilder(region)
    body = b.write()
    text = function("tailcc", "void", symbol, HANDLER_PARAMETERS, body)
    return "\n".join([*sorted(b.used), text, METADATA])
