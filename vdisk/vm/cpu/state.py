"""What a vCPU is while it runs: one block of memory that native code and Python share.

Fields are named here once; generated code, the system instructions in Python and the debugger
use the same offsets.  Registers come first, so that a record names one by a 16-bit offset::

    0      rax … r15 (8 bytes each, encoding order)
    128    zero            always 0: the base or index that an address does not have
    136    code_page       linear address of the page being executed (rip-relative addresses)
    144    t0 … t3         results of one micro-op for the next
    …      flags, segments, control registers, MSRs, x87, SSE
    …      tlb             two sets (supervisor, user) of data and code entries

Arithmetic flags are lazy: ``cc_op`` says which operation made them and how wide it was, ``cc_dst``
and ``cc_src`` what from (:mod:`vdisk.vm.cpu.flags`).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

GPRS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
SYSTEM_SEGMENTS = ("ldtr", "tr")

TLB_ENTRIES = 1024
"""Of each table: pages that are 4 MiB apart are in each other's way."""
TLB_ENTRY = 16  # tag, addend (for code: address of the page's code array)
READ_TLB, WRITE_TLB, CODE_TLB = (TLB_ENTRIES * TLB_ENTRY * table for table in range(3))
"""Where a set's tables begin."""
TLB_SET = 3 * TLB_ENTRIES * TLB_ENTRY
TLB_NOTES = 128
"""How many entries made since the last flush are noted: emptying these alone is quicker than
writing all (100 KiB), and systems often flush after very few."""
NO_TAG = (1 << 64) - 1
"""The tag of an empty entry: not page-aligned, so no address has it."""


class Field(NamedTuple):
    """Where a field stands: ``offset`` in bytes, ``type`` i8 … i128."""

    offset: int
    type: str


def _layout() -> tuple[dict[str, Field], int]:
    fields: dict[str, Field] = {}
    offset = 0

    def add(kind: str, *names: str) -> None:
        nonlocal offset
        width = int(kind[1:]) // 8
        for name in names:
            offset = -(-offset // width) * width
            fields[name] = Field(offset, kind)
            offset += width

    add("i64", *GPRS, "zero", "code_page", "t0", "t1", "t2", "t3")
    add("i64", "cc_dst", "cc_src", "cc_src2", "cf_dst", "cf_src", "cf_src2", "rip", "budget")
    add("i64", "kick", "irq_pending")  # kick: negative when run() has to look at something
    add("i32", "cc_op", "cf_op", "eflags", "cpl")
    add("i64", "direction")  # 1 or -1: what DF says
    add("i64", "exit_argument", "fault_address", "fault_record", "tlb_current")
    add("i32", "exit_reason", "fault_vector", "fault_error", "pending", "code_dropped")
    add("i32", "sse_fault", "mmx_fault", "x87_fault", "simd_unmasked", "simd_flags", "fpu_host")
    add("i32", "x87_live")  # the host's x87 registers are the guest's
    add("i32", "nmi_blocked")  # an NMI's handler runs: until IRET
    add("i32", "bus_owned", "processors", "pauses_left")  # for more processors than one
    add("i32", "tlb_made")  # entries since the last flush
    add("i64", "large_address", "large_mask")  # a range with all large pages met since then
    for name in (*SEGMENTS, *SYSTEM_SEGMENTS):
        add("i64", f"{name}_base")
        add("i32", f"{name}_limit", f"{name}_attributes", f"{name}_selector")
    add("i64", "gdt_base", "idt_base")
    add("i32", "gdt_limit", "idt_limit", "mode", "flat")
    add("i32", "careful", "watching", "debug_hits")  # see vdisk.vm.cpu.debug
    add("i64", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "a20_mask")
    add("i64", *(f"pdpte{number}" for number in range(4)))  # PAE paging, outside long mode
    add("i64", *(f"dr{number}" for number in range(8)))
    add("i64", "star", "lstar", "cstar", "sfmask", "kernel_gs_base", "tsc_aux", "pat", "apic_base")
    add("i64", "misc_enable")
    add("i64", "apic_id_place", "apic_id")  # what the APIC's ID register was read as, and where
    add("i64", "sysenter_cs", "sysenter_esp", "sysenter_eip", "tsc_offset", "tsc_virtual")
    add("i64", "memory", "memory_top", "kinds", "code_masks", "code_table", "arena", "vcpu")
    add("i64", "mode_number")  # of the arena
    add("i64", "mmio_read", "mmio_write", "code_written", "port_read", "port_write")
    add("i64", "acknowledge")
    add("i32", "mxcsr", "fpu_control", "fpu_status", "fpu_tag", "fpu_opcode", "fpu_top")
    add("i64", "fpu_ip", "fpu_dp", "host_mxcsr")
    add(
        "i128",
        "scratch0",
        "scratch1",
        "scratch2",
        "scratch3",
        *(f"st{number}" for number in range(8)),
        *(f"x87_image{number}" for number in range(7)),  # for FRSTOR and FNSAVE
    )
    add("i128", *(f"xmm{number}" for number in range(16)))
    offset = -(-offset // 64) * 64
    fields["tlb"] = Field(offset, "i64")
    offset += 2 * TLB_SET
    fields["tlb_notes"] = Field(offset, "i32")
    return fields, offset + 4 * TLB_NOTES


FIELDS, STATE_SIZE = _layout()
TLB_SUPERVISOR = FIELDS["tlb"].offset
TLB_USER = TLB_SUPERVISOR + TLB_SET

MASKS = {f"i{bits}": (1 << bits) - 1 for bits in (1, 8, 16, 32, 64, 128)}


C_TYPES = {"i32": ctypes.c_uint32, "i64": ctypes.c_uint64}


def _c_fields() -> list[tuple[str, type]]:
    """Each narrow field at its offset, with bytes between them for what is none."""
    found: list[tuple[str, type]] = []
    end = 0
    for name, (offset, kind) in FIELDS.items():
        if kind in C_TYPES:
            if offset > end:
                found.append((f"_{end}", ctypes.c_uint8 * (offset - end)))
            found.append((name, C_TYPES[kind]))
            end = offset + ctypes.sizeof(C_TYPES[kind])
    return found


class _Block(ctypes.Structure):
    """The fields as the host's C has them: quicker by far than slices of bytes."""

    __slots__ = ()
    _fields_ = _c_fields()


class CpuState(_Block):
    """The block itself, with its fields as attributes (integers, unsigned)."""

    __slots__ = ("address", "view")

    def __new__(cls) -> CpuState:
        owner = (ctypes.c_uint8 * (STATE_SIZE + 64))()
        skip = -ctypes.addressof(owner) % 64
        state = cls.from_buffer(owner, skip)
        state.address = ctypes.addressof(owner) + skip
        state.view = memoryview(owner).cast("B")[skip : skip + STATE_SIZE]
        return state

    address: int
    view: memoryview

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> int: ...

        def __setattr__(self, name: str, value: object) -> None: ...

    def gpr(self, number: int) -> int:
        """General register ``number`` in encoding order, 64 bits."""
        return int.from_bytes(self.view[8 * number : 8 * number + 8], "little")

    def set_gpr(self, number: int, value: int) -> None:
        """Set all 64 bits of a general register."""
        self.view[8 * number : 8 * number + 8] = (value & MASKS["i64"]).to_bytes(8, "little")

    def flush_tlb(self) -> None:
        """Forget every translation, data and code, of both sets."""
        self.view[TLB_SUPERVISOR : TLB_SUPERVISOR + 2 * TLB_SET] = _EMPTY_TLB
        self.tlb_made = 0
        self.large_address = NO_TAG


def _wide_field(offset: int) -> property:
    """An attribute for 128 bits, which C's types have not."""
    place = slice(offset, offset + 16)

    def get(state: CpuState) -> int:
        return int.from_bytes(state.view[place], "little")

    def put(state: CpuState, value: int) -> None:
        state.view[place] = (value & MASKS["i128"]).to_bytes(16, "little")

    return property(get, put)


for _name, (_offset, _kind) in FIELDS.items():
    if _kind == "i128":
        setattr(CpuState, _name, _wide_field(_offset))

_EMPTY_TLB = b"\xff" * (2 * TLB_SET)
