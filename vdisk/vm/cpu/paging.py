"""The page walker: from a linear address to a physical one, by tables in guest memory.

SDM volume 3, chapter 4; AMD APM volume 2, chapter 5.  Entries are marked (A, D) as the processor
does, when a walk has found its page; a walk that ends in a fault describes it and marks none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.faults import NON_CANONICAL, PF
from vdisk.vm.cpu.routines import raise_fault, routine
from vdisk.vm.cpu.state import FIELDS, NO_TAG
from vdisk.vm.memory import PageKind

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value, Variable

READ, WRITE, EXECUTE = 0, 1, 2
NOWHERE = (1 << 64) - 1
"""What ``walk`` gives instead of a physical address after it has described a fault."""

PHYSICAL_BITS = 40
"""What CPUID reports; higher address bits of an entry are reserved."""

P, RW, US, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
ADDRESS = ((1 << PHYSICAL_BITS) - 1) & ~0xFFF
RESERVED = ((1 << 52) - 1) & ~((1 << PHYSICAL_BITS) - 1)
PDPTE_RESERVED = ((1 << 64) - 1) & ~((1 << PHYSICAL_BITS) - 1) | 0x1E6
PDPTES = FIELDS["pdpte0"].offset
CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE = 1 << 4, 1 << 5
EFER_LMA, EFER_NXE = 1 << 10, 1 << 11


def is_set(value: Value, bit: Value | int) -> Value:
    """True if any of these bits of ``value`` is set."""
    return (value & bit).ne(0)


def _page_fault(b: Builder, linear: Value, access: Value, user: Value, present: int) -> None:
    """Describe #PF and return; the error code is that of SDM volume 3, figure 4-12."""
    error = b.variable("i32", present)
    with b.if_(access.eq(WRITE)):
        error.set(error.get() | 2)
    with b.if_(user.ne(0)):
        error.set(error.get() | 4)
    no_execute = is_set(b.get("cr4"), CR4_PAE) & is_set(b.get("efer"), EFER_NXE)
    with b.if_(access.eq(EXECUTE) & no_execute):
        error.set(error.get() | 16)
    b.set("fault_address", linear)
    raise_fault(b, PF, error.get())
    b.return_(b.const("i64", NOWHERE))


def is_ram(b: Builder, physical: Value) -> Value:
    """True if an aligned entry at ``physical`` is in RAM."""
    inside = b.variable("i1", 0)
    with b.if_(physical.ult(b.get("memory_top"))):
        inside.set(b.load_table("kinds", physical >> 12, "i8").eq(PageKind.RAM))
    return inside.get()


@routine("i64", "i64", "i64")
def load_entry(b: Builder, physical: Value, wide: Value) -> None:
    """A page-table entry of 8 (``wide``) or 4 bytes; 0 where there is no RAM."""
    with b.if_(is_ram(b, physical)):
        host = physical + b.get("memory")
        with b.if_(wide.ne(0)):
            b.return_(b.load_host(host, "i64"))
        b.return_(b.load_host(host, "i32").zext("i64"))
    b.return_(b.const("i64", 0))


@routine("i64", "i64", "i64", "i64", "i64")
def mark_entry(b: Builder, physical: Value, entry: Value, marks: Value, wide: Value) -> None:
    """Set A and D in an entry, as the processor does: atomically, and only if it is unchanged.

    0 if another processor has changed it: the walk has to begin again, or a page would be written
    to whose entry never says that it is dirty.
    """
    wanted = entry | marks
    with b.if_(wanted.ne(entry) & is_ram(b, physical)):
        host, done = physical + b.get("memory"), b.variable("i1", 0)
        with b.if_(wide.ne(0)):
            done.set(b.exchange_host(host, entry, wanted)[1])
        with b.else_():
            done.set(b.exchange_host(host, entry.trunc("i32"), wanted.trunc("i32"))[1])
        b.return_(done.get().zext("i64"))
    b.return_(b.const("i64", 1))


@routine("i64", "i64")
def apply_a20(b: Builder, physical: Value) -> None:
    """The address that leaves the processor while A20M# may be asserted."""
    b.return_(physical & b.get("a20_mask"))


def not_canonical(b: Builder, linear: Value) -> None:
    b.set("fault_address", linear)
    raise_fault(b, NON_CANONICAL)


@routine("void", "i64", "i64")
def note_large_page(b: Builder, linear: Value, page_bits: Value) -> None:
    """Widen the range with all large pages, for ``flush_page``: no entry knows of its page's size.

    The range is aligned, and a power of two long.
    """
    ones = b.const("i64", (1 << 64) - 1)
    with b.if_(b.get("large_address").eq(NO_TAG)):
        b.set("large_address", linear)
        b.set("large_mask", ones)
    mask = b.variable("i64", b.get("large_mask") & (ones << page_bits))
    differ = (b.get("large_address") ^ linear) & mask.get()
    with b.if_(differ.ne(0)):
        mask.set(~(ones >> b.unary("ctlz", differ)))
    b.set("large_mask", mask.get())
    b.return_()


class _Walk:
    """The loop of the walker: one entry a round, rights and'ed on the way down."""

    def __init__(self, b: Builder, name: str, linear: Value, access: Value, user: Value) -> None:
        self.name, self.wide = name, b.const("i64", int(name == "walk_long"))
        self.b, self.linear, self.access, self.user = b, linear, access, user
        self.table: Variable = b.variable("i64")  # physical address of the table
        self.shift: Variable = b.variable("i64")  # bits of the linear address below the index
        self.rights: Variable = b.variable("i64", RW | US)
        self.no_execute: Variable = b.variable("i1", 0)
        self.entry: Variable = b.variable("i64")
        self.where: Variable = b.variable("i64")
        levels = 1 if name == "walk_short" else 3
        self.above = [(b.variable("i64", A), b.variable("i64")) for _ in range(levels)]
        """Entries that led here, the last one first, and where they are."""

    def fault(self, present: int) -> None:
        _page_fault(self.b, self.linear, self.access, self.user, present)

    def check_rights(self) -> None:
        """Refuse what the entries together do not allow (SDM volume 3, section 4.6)."""
        b, rights = self.b, self.rights.get()
        with b.if_(self.user.ne(0) & ~is_set(rights, US)):
            self.fault(1)
        protected = self.user.ne(0) | is_set(b.get("cr0"), CR0_WP)
        with b.if_(self.access.eq(WRITE) & protected & ~is_set(rights, RW)):
            self.fault(1)
        with b.if_(self.access.eq(EXECUTE) & self.no_execute.get()):
            self.fault(1)

    def descend(self) -> None:
        """Keep the present entry in mind: a walk that ends in a fault marks none."""
        new = self.entry.get(), self.where.get()
        for kept in self.above:
            old = kept[0].get(), kept[1].get()
            kept[0].set(new[0])
            kept[1].set(new[1])
            new = old

    def mark(self, where: Value, entry: Value, marks: Value) -> None:
        """Mark an entry; if it is another one by now, walk from the top."""
        b = self.b
        done = b.call("mark_entry", where, entry, marks, self.wide)
        with b.if_(done.eq(0), unlikely=True):
            b.return_(b.call(self.name, self.linear, self.access, self.user))

    def finish(self, page_bits: Value, address: Value) -> None:
        """Mark the entries and return the physical address."""
        b = self.b
        for entry, where in self.above:
            with b.if_(~is_set(entry.get(), A), unlikely=True):
                self.mark(where.get(), entry.get(), b.const("i64", A))
        dirty = b.select(self.access.eq(WRITE), D, b.const("i64", 0))
        self.mark(self.where.get(), self.entry.get(), dirty | A)
        with b.if_(page_bits.ne(12)):
            b.call("note_large_page", self.linear, page_bits)
        inside = self.linear & ((b.const("i64", 1) << page_bits) - 1)
        b.return_(b.call("apply_a20", address + inside))


@routine("i64", "i64", "i64", "i64")
def walk_long(b: Builder, linear: Value, access: Value, user: Value) -> None:
    """4-level and PAE paging: 8-byte entries, 9 bits of the address a level."""
    walk = _Walk(b, "walk_long", linear, access, user)
    walk.table.set(b.get("cr3") & ADDRESS)
    walk.shift.set(39)
    with b.if_(~is_set(b.get("efer"), EFER_LMA)):
        pointer = b.load_state(((linear >> 30) & 3) * 8 + PDPTES, "i64")
        with b.if_(~is_set(pointer, P), unlikely=True):
            walk.fault(0)
        walk.table.set(pointer & ADDRESS)
        walk.shift.set(21)
    reserved = b.variable("i64", RESERVED | NX)
    with b.if_(is_set(b.get("efer"), EFER_NXE)):
        reserved.set(RESERVED)
    with b.loop():
        shift = walk.shift.get()
        index = (linear >> shift) & 0x1FF
        walk.where.set(walk.table.get() + index * 8)
        walk.entry.set(b.call("load_entry", walk.where.get(), b.const("i64", 1)))
        entry = walk.entry.get()
        with b.if_(~is_set(entry, P), unlikely=True):
            walk.fault(0)
        with b.if_(is_set(entry, reserved.get()), unlikely=True):
            walk.fault(9)
        walk.rights.set(walk.rights.get() & entry)
        walk.no_execute.set(walk.no_execute.get() | is_set(entry, NX))
        with b.if_(is_set(entry, PS) & shift.ugt(21), unlikely=True):
            walk.fault(9)  # no pages of 1 GiB
        large = is_set(entry, PS) & shift.eq(21)
        with b.if_(large | shift.eq(12)):
            frame = b.variable("i64", entry & ADDRESS)
            with b.if_(shift.ne(12)):
                low = (b.const("i64", 1) << shift) - 1
                with b.if_(is_set(entry, low & ~0x1FFF), unlikely=True):
                    walk.fault(9)
                frame.set(frame.get() & ~low)
            walk.check_rights()
            walk.finish(shift, frame.get())
        walk.descend()
        walk.table.set(entry & ADDRESS)
        walk.shift.set(shift - 9)


@routine("i64", "i64")
def load_pdptes(b: Builder, cr3: Value) -> None:
    """The four entries that CR3 points to with PAE: kept until it is loaded again.

    0, and nothing is changed, if a reserved bit of one is set (SDM volume 3, section 4.4.1).
    """
    where = cr3 & 0xFFFF_FFE0
    entries = [b.call("load_entry", where + 8 * n, b.const("i64", 1)) for n in range(4)]
    for entry in entries:
        with b.if_(is_set(entry, P) & is_set(entry, PDPTE_RESERVED), unlikely=True):
            b.return_(b.const("i64", 0))
    for number, entry in enumerate(entries):
        b.set(f"pdpte{number}", entry)
    b.return_(b.const("i64", 1))


@routine("i64", "i64", "i64", "i64")
def walk_short(b: Builder, linear: Value, access: Value, user: Value) -> None:
    """32-bit paging: 4-byte entries, two levels, 4 MiB pages with CR4.PSE (and PSE-36)."""
    walk = _Walk(b, "walk_short", linear, access, user)
    narrow = b.const("i64", 0)
    walk.where.set((b.get("cr3") & 0xFFFF_F000) + ((linear >> 22) & 0x3FF) * 4)
    walk.entry.set(b.call("load_entry", walk.where.get(), narrow))
    entry = walk.entry.get()
    with b.if_(~is_set(entry, P), unlikely=True):
        walk.fault(0)
    walk.rights.set(walk.rights.get() & entry)
    with b.if_(is_set(entry, PS) & is_set(b.get("cr4"), CR4_PSE)):
        with b.if_(is_set(entry, 1 << 21), unlikely=True):
            walk.fault(9)
        walk.check_rights()
        high = (entry & 0x1F_E000) << 19
        walk.finish(b.const("i64", 22), (entry & 0xFFC0_0000) | high)
    walk.descend()
    walk.where.set((entry & 0xFFFF_F000) + ((linear >> 12) & 0x3FF) * 4)
    walk.entry.set(b.call("load_entry", walk.where.get(), narrow))
    last = walk.entry.get()
    with b.if_(~is_set(last, P), unlikely=True):
        walk.fault(0)
    walk.rights.set(walk.rights.get() & last)
    walk.check_rights()
    walk.finish(b.const("i64", 12), last & 0xFFFF_F000)


@routine("i64", "i64", "i64", "i64")
def walk(b: Builder, linear: Value, access: Value, user: Value) -> None:
    """The physical address of ``linear``, or NOWHERE after describing the fault."""
    with b.if_(~is_set(b.get("cr0"), CR0_PG)):
        b.return_(b.call("apply_a20", linear & 0xFFFF_FFFF))
    with b.if_(~is_set(b.get("cr4"), CR4_PAE)):
        b.return_(b.call("walk_short", linear, access, user))
    with b.if_(is_set(b.get("efer"), EFER_LMA)):
        upper = linear.ashr(47)
        with b.if_(upper.ne(0) & upper.ne(-1), unlikely=True):
            not_canonical(b, linear)
            b.return_(b.const("i64", NOWHERE))
    b.return_(b.call("walk_long", linear, access, user))
