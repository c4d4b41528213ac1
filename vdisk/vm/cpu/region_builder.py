"""Writes a region of the second tier (:mod:`vdisk.vm.cpu.hot`) as one function."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu.builder import Value
from vdisk.vm.cpu.context import ENDS_ITSELF, SEMANTICS, Context
from vdisk.vm.cpu.forwarding import ForwardingBuilder
from vdisk.vm.cpu.hot import Step
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, function
from vdisk.vm.cpu.native import KNOWN
from vdisk.vm.cpu.records import PARAMS
from vdisk.vm.cpu.state import FIELDS
from vdisk.vm.cpu.translate import block_end_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.hot import Place, Plan, Region

ZERO = FIELDS["zero"].offset
SYMBOL = "region"
BASE = "base"
"""The symbol whose value is the first of the kernel's addresses in a region."""
BUDGET = -16
"""By what the budget is found among what is known: no field of the state."""
REPEATED = {"movs", "stos", "lods", "scas", "cmps"}
"""Operations that may be done again and again."""


class Way(NamedTuple):
    """From where, and with what, control gets to one of the region's ends."""

    label: str
    offset: int
    budget: str
    place: int


class RegionBuilder(ForwardingBuilder):
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
        self._outs: dict[str, list[Way]] = {}
        """By what is left for: the ends that are written once."""

    def write(self) -> str:
        """The whole function's body."""
        live = self.region.live_in()
        self._enter()
        for plan in self.region.blocks.values():
            self.place_label(f"b{plan.offset}")
            self._write_block(plan, self.region.steps(plan, live))
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

    def _write_block(self, plan: Plan, steps: list[Step]) -> None:
        self.budget()  # for all that leave it
        for step in steps:
            self._write_step(step)
            if self.has_ended():
                return  # nothing gets to what follows
        self._write_end(plan, steps[-1])

    def _write_step(self, step: Step) -> None:
        self._step, self._stores = step, False
        self._here, self._next = "", self.new_label()
        if step.shape.operation in REPEATED:
            self._here = self.new_label()
            self._place(self._here, again=True)
        SEMANTICS[step.shape.operation](Context(self, step.shape))
        if step.shape.operation not in ENDS_ITSELF:
            self.next()
        self._join()
        if self._next in self._arriving:
            self.place_label(self._next, again=False)

    def _write_end(self, plan: Plan, last: Step) -> None:
        """Behind the last instruction: on with the next block."""
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
        found = self._facts.get(BUDGET)
        if found is None:
            found = self._facts[BUDGET] = self._budget.get()
        return found

    def _set_budget(self, budget: Value) -> None:
        self._budget.set(budget)
        self._facts[BUDGET] = budget

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
        self._join()
        self._outs.setdefault(name, []).append(Way(self._block, offset, budget.text, place))
        self.end(f"br label %to_{name}")

    def _write_out(self, name: str) -> None:
        self.place_label(f"to_{name}")
        ways = self._outs[name]
        offset = self._phi([(str(way.offset), way.label) for way in ways])
        budget = self._phi([(way.budget, way.label) for way in ways])
        place = self._phi([(str(way.place), way.label) for way in ways])
        if name == "region_stopped":  # and who it is
            self.set("exit_argument", Value(self, "i64", f"ptrtoint (ptr @{SYMBOL} to i64)"))
        given = [self._linear(offset), budget, self.tlb()]
        if name == "resume":
            given.append(place)
        self.used.add(f"declare tailcc void @{name}(ptr{', i64' * len(given)})")
        text = ", ".join(f"i64 {each.text}" for each in given)
        self.end(f"musttail call tailcc void @{name}(ptr %st, {text})", "ret void")

    def _phi(self, ways: list[tuple[str, str]]) -> Value:
        """One of these, by the label that control comes from."""
        first, _ = ways[0]
        if all(text == first for text, _ in ways) and not first.startswith("%"):
            return self.const("i64", int(first))
        return self.assign("i64", "phi i64 " + ", ".join(f"[ {a}, %{b} ]" for a, b in ways))

    def _go(self, target: int, budget: Value) -> None:
        """On at another place of the page."""
        if target not in self.region.blocks:
            self._out("goto", target, budget)
            return
        self._stop_if(budget, target)
        self._set_budget(budget)
        self.end(f"br label %b{target}")

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
        self._set_budget(budget)
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


def region_module(region: Region) -> str:
    """LLVM IR of a region, whose function is :data:`SYMBOL`."""
    b = RegionBuilder(region)
    body = b.write()
    text = function("dso_local tailcc", "void", SYMBOL, HANDLER_PARAMETERS, body)
    return "\n".join([*sorted(b.used), text, METADATA])
