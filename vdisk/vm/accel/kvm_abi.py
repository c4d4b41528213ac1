"""The ioctl interface of /dev/kvm: request numbers, constants and structures, nothing else.

Source: Linux, Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h and
arch/x86/include/uapi/asm/kvm.h.  A request number is built as ``_IOC`` does on x86::

    31  30 29               16 15          8 7           0
    +-----+-------------------+-------------+-------------+
    | dir | size of structure |  0xAE (KVM) |   number    |
    +-----+-------------------+-------------+-------------+

``dir``: 1 the kernel reads the structure, 2 it writes it, 3 both.
"""

from __future__ import annotations

from struct import Struct


def _io(number: int) -> int:
    return 0xAE00 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | 0xAE00 | number


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | 0xAE00 | number


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | 0xAE00 | number


API_VERSION = 12

# -- structures: all little-endian, with their padding ----------------------------------------

MEMORY_REGION = Struct("<IIQQQ")
"""kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr."""

REGS = Struct("<18Q")
"""kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8…r15 rip rflags (not the encoding order)."""

SEGMENT = Struct("<QIH9Bx")
"""kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable."""

DTABLE = Struct("<QH6x")
"""kvm_dtable: base, limit."""

SREGS_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
SREGS_TABLES_OFFSET = SEGMENT.size * len(SREGS_SEGMENTS)
SREGS_CONTROL = Struct("<7Q4Q")
"""The rest of kvm_sregs: cr0 cr2 cr3 cr4 cr8 efer apic_base, interrupt_bitmap."""
SREGS_CONTROL_OFFSET = SREGS_TABLES_OFFSET + 2 * DTABLE.size
SREGS_SIZE = SREGS_CONTROL_OFFSET + SREGS_CONTROL.size

FXSAVE = Struct("<HHBxHQQI4x128s256s")
"""What a kvm_xsave begins with (SDM 1, 10.5.1): fcw, fsw, abridged ftw, fop, fip, fdp, mxcsr,
ST0-7, XMM0-15.  (kvm_fpu has the same, but KVM leaves its mxcsr out.)"""
XSTATE_BV = Struct("<Q")
XSTATE_BV_OFFSET = 512
XSTATE_X87_SSE = 3

DEBUGREGS = Struct("<4QQQQ72x")
"""kvm_debugregs: db[4], dr6, dr7, flags."""

MSRS_HEADER = Struct("<I4x")
MSR_ENTRY = Struct("<I4xQ")
"""kvm_msr_entry: index, data."""

CPUID_HEADER = Struct("<I4x")
CPUID_ENTRY = Struct("<7I12x")
"""kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx."""

INTERRUPT = Struct("<I")
SIGNAL_MASK = Struct("<IQ")
"""kvm_signal_mask: length in bytes, then the set as the kernel keeps it."""

EVENTS_SIZE = 64
XSAVE_SIZE = 4096
XCRS_SIZE = 392

# -- requests ------------------------------------------------------------------------------------

GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _iowr(0x05, CPUID_HEADER.size)
CREATE_VCPU = _io(0x41)
SET_USER_MEMORY_REGION = _iow(0x46, MEMORY_REGION.size)
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
RUN = _io(0x80)
GET_REGS = _ior(0x81, REGS.size)
SET_REGS = _iow(0x82, REGS.size)
GET_SREGS = _ior(0x83, SREGS_SIZE)
SET_SREGS = _iow(0x84, SREGS_SIZE)
INTERRUPT_REQUEST = _iow(0x86, INTERRUPT.size)
GET_MSRS = _iowr(0x88, MSRS_HEADER.size)
SET_MSRS = _iow(0x89, MSRS_HEADER.size)
SET_SIGNAL_MASK = _iow(0x8B, 4)
SET_CPUID2 = _iow(0x90, CPUID_HEADER.size)
NMI = _io(0x9A)
GET_VCPU_EVENTS = _ior(0x9F, EVENTS_SIZE)
SET_VCPU_EVENTS = _iow(0xA0, EVENTS_SIZE)
GET_DEBUGREGS = _ior(0xA1, DEBUGREGS.size)
SET_DEBUGREGS = _iow(0xA2, DEBUGREGS.size)
GET_XSAVE = _ior(0xA4, XSAVE_SIZE)
SET_XSAVE = _iow(0xA5, XSAVE_SIZE)
GET_XCRS = _ior(0xA6, XCRS_SIZE)
SET_XCRS = _iow(0xA7, XCRS_SIZE)

# -- capabilities (KVM_CAP_*), flags -------------------------------------------------------------

CAP_USER_MEMORY = 3
CAP_EXT_CPUID = 7
CAP_NR_MEMSLOTS = 10
CAP_VCPU_EVENTS = 41
CAP_XSAVE = 55
CAP_XCRS = 56
CAP_MAX_VCPUS = 66
CAP_READONLY_MEM = 81
CAP_IMMEDIATE_EXIT = 136

MEM_READONLY = 1 << 1
LARGEST_CPUID = 256
"""Entries to offer room for; KVM itself keeps no more (KVM_MAX_CPUID_ENTRIES)."""

# -- struct kvm_run ------------------------------------------------------------------------------

RUN_REQUEST_INTERRUPT_WINDOW = 0
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = Struct("<I")
RUN_EXIT_REASON_OFFSET = 8
RUN_READY_FOR_INTERRUPT = 12
RUN_IF_FLAG = 13
RUN_CR8_APIC_BASE = Struct("<QQ")
RUN_CR8_OFFSET = 16
RUN_UNION = 32
RUN_IO = Struct("<BBHIQ")
"""direction, size, port, count, data_offset (from the start of the structure)."""
RUN_MMIO = Struct("<Q8sIB")
"""phys_addr, data, len, is_write."""
RUN_MMIO_DATA_OFFSET = RUN_UNION + 8
RUN_FAIL_ENTRY = Struct("<Q")
RUN_INTERNAL_ERROR = Struct("<IIQB15s")
"""suberror, ndata, flags, insn_size, insn_bytes (the last three for EMULATION only)."""

EXIT_IO_IN = 0

EXIT_IO = 2
EXIT_DEBUG = 4
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_IRQ_WINDOW_OPEN = 7
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_SET_TPR = 11
EXIT_INTERNAL_ERROR = 17

INTERNAL_ERRORS = {
    1: "its emulator lacks an instruction",
    2: "two exceptions at once",
    3: "an exit while an event was delivered",
    4: "an unexpected exit of the hardware",
}
INTERNAL_ERROR_EMULATION = 1
EMULATION_HAS_BYTES = 1 << 0

# -- what lies at fixed places of guest memory ---------------------------------------------------

TSS_ADDRESS = 0xFEFF_D000
"""Three pages that Intel's VMX needs for real mode; in the hole that no chip of ours uses."""
IDENTITY_MAP_ADDRESS = 0xFEFF_C000

SAVED_MSRS = (
    *(0x10, 0x3B, 0x48),  # TSC, TSC_ADJUST, SPEC_CTRL
    *(0x174, 0x175, 0x176),  # SYSENTER_CS, _ESP, _EIP
    *(0x1A0, 0x1D9, 0xDA0),  # MISC_ENABLE, DEBUGCTL, XSS
    *range(0x200, 0x210),  # MTRRs: variable,
    *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),  # fixed, default type
    0x277,  # PAT
    *(0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084),  # STAR, LSTAR, CSTAR, FMASK
    *(0xC000_0102, 0xC000_0103),  # KERNEL_GS_BASE, TSC_AUX
)
"""What a saved processor needs and KVM's other structures do not hold; MTRR base/mask pairs
before the default type, which enables them."""
MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
