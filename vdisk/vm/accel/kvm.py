"""The KVM accelerator: guest code runs on the host's processor, by /dev/kvm.

Only processors and memory are KVM's; interrupt controllers, timers and the local APIC are our own
chips, as with every other accelerator.  The guest's memory is given to KVM in slots::

    gpa 0        640K   768K       1M              low_end          4 GiB            high_end
    +------------+      +---+--+---+---------------+                +----------------+
    | RAM        | none |ROM|RAM…  | RAM           | none  LFB  ROM | RAM            |
    +------------+      +---+--+---+---------------+                +----------------+

cut at the limits where a PC changes what answers, so that shadowing the BIOS does not take RAM
in use away from running vCPUs.  What has no slot, and writes to ROM, leave KVM and go to the bus.

KVM has no A20 gate.  While it is closed the odd megabyte above 1 MiB is mapped onto the first,
which is what real-mode programs can see of it; addresses above 2 MiB are not masked.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from vdisk.errors import DeviceError, UnsupportedFeatureError
from vdisk.vm.accel import kvm_abi as abi
from vdisk.vm.accel import kvm_cpuid
from vdisk.vm.accel.base import Accelerator
from vdisk.vm.accel.kvm_vcpu import KvmVcpu
from vdisk.vm.memory import PageKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

PATH = "/dev/kvm"
MIB = 1 << 20
CUTS = (0xA0000, 0xC0000, 0xE0000, MIB, 2 * MIB)
"""A slot never reaches across these: video memory, option ROMs, BIOS, the A20 megabyte."""

NEEDED = {
    abi.CAP_USER_MEMORY: "user memory",
    abi.CAP_EXT_CPUID: "CPUID",
    abi.CAP_READONLY_MEM: "read-only memory",
    abi.CAP_IMMEDIATE_EXIT: "immediate exit",
    abi.CAP_VCPU_EVENTS: "vCPU events",
    abi.CAP_XSAVE: "XSAVE state",
    abi.CAP_XCRS: "XCRs",
}


class Slot(NamedTuple):
    """A run of guest memory as KVM knows it; ``host``: the address of its bytes."""

    start: int
    length: int
    flags: int
    host: int


class KvmAccelerator(Accelerator):
    """Raises :class:`UnsupportedFeatureError` where there is no KVM that could be used."""

    name = "kvm"

    def __init__(self, memory: GuestMemory, bus: Bus) -> None:
        self.memory = memory
        self.bus = bus
        self._a20 = True
        self._slots: dict[Slot, int] = {}
        self._lock = threading.Lock()
        self._system = _open_system()
        try:
            self._check_system()
            self._vm = fcntl.ioctl(self._system, abi.CREATE_VM, 0)
        except BaseException:
            os.close(self._system)
            raise
        self._run_size = fcntl.ioctl(self._system, abi.GET_VCPU_MMAP_SIZE, 0)
        self._supported = self._supported_cpuid()
        self._place_intel_pages()
        self._most_slots = self._extension(abi.CAP_NR_MEMSLOTS)
        self._free_slots = list(range(self._most_slots - 1, -1, -1))
        self._update_slots()
        memory.on_change(lambda _start, _length: self._update_slots())

    def vcpu(self, index: int) -> KvmVcpu:
        """Processor ``index``; raises :class:`UnsupportedFeatureError` where KVM has no more."""
        if index >= self._extension(abi.CAP_MAX_VCPUS):
            raise UnsupportedFeatureError(f"KVM has no vCPU {index}", path=PATH)
        file = fcntl.ioctl(self._vm, abi.CREATE_VCPU, index)
        return KvmVcpu(index, file, self._run_size, self.memory, self.bus, self._supported)

    @property
    def a20(self) -> bool:
        return self._a20

    @a20.setter
    def a20(self, enabled: bool) -> None:
        if enabled != self._a20:
            self._a20 = enabled
            self._update_slots()

    def close(self) -> None:
        if self._system >= 0:
            os.close(self._vm)
            os.close(self._system)
            self._system = self._vm = -1

    # -- what this KVM is ------------------------------------------------------------------------

    def _extension(self, capability: int) -> int:
        return fcntl.ioctl(self._system, abi.CHECK_EXTENSION, capability)

    def _check_system(self) -> None:
        version = fcntl.ioctl(self._system, abi.GET_API_VERSION, 0)
        if version != abi.API_VERSION:
            raise UnsupportedFeatureError(f"KVM API version {version}, not 12", path=PATH)
        for capability, name in NEEDED.items():
            if not self._extension(capability):
                raise UnsupportedFeatureError(f"this KVM has no {name}", path=PATH)

    def _supported_cpuid(self) -> list[kvm_cpuid.Leaf]:
        table = bytearray(abi.CPUID_HEADER.size + abi.LARGEST_CPUID * abi.CPUID_ENTRY.size)
        abi.CPUID_HEADER.pack_into(table, 0, abi.LARGEST_CPUID)
        fcntl.ioctl(self._system, abi.GET_SUPPORTED_CPUID, table, True)
        return kvm_cpuid.unpack(table)

    def _place_intel_pages(self) -> None:
        """Before the first vCPU; without unrestricted guests VMX runs real mode with them."""
        identity = bytearray(abi.IDENTITY_MAP_ADDRESS.to_bytes(8, "little"))
        fcntl.ioctl(self._vm, abi.SET_IDENTITY_MAP_ADDR, identity, True)
        # Not with fcntl: to it an address above 2 GiB is a number that is too large.
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = ctypes.c_ulong(abi.SET_TSS_ADDR), ctypes.c_ulong(abi.TSS_ADDRESS)
        if libc.ioctl(self._vm, *arguments):
            raise DeviceError(f"KVM_SET_TSS_ADDR failed: {os.strerror(ctypes.get_errno())}")

    # -- memory ----------------------------------------------------------------------------------

    def _update_slots(self) -> None:
        """Make KVM's slots what the guest's memory is; those that stay are not touched."""
        with self._lock:
            if self._vm < 0:
                return
            wanted = set(self._wanted_slots())
            for slot in [slot for slot in self._slots if slot not in wanted]:
                number = self._slots.pop(slot)
                self._set_slot(number, slot._replace(length=0))
                self._free_slots.append(number)
            for slot in sorted(wanted - self._slots.keys()):
                if not self._free_slots:
                    raise DeviceError(f"KVM has {self._most_slots} memory slots only", path=PATH)
                number = self._free_slots.pop()
                self._set_slot(number, slot)
                self._slots[slot] = number

    def _wanted_slots(self) -> Iterator[Slot]:
        for start, end, kind in _cut(self.memory.regions()):
            if not self._a20 and MIB <= start < 2 * MIB:
                continue
            yield self._slot(start, start, end, kind)
        if not self._a20:
            for start, end, kind in _cut(self.memory.regions()):
                if start < MIB:
                    yield self._slot(start + MIB, start, end, kind)

    def _slot(self, gpa: int, start: int, end: int, kind: PageKind) -> Slot:
        flags = abi.MEM_READONLY if kind is PageKind.ROM else 0
        return Slot(gpa, end - start, flags, self.memory.host_address + start)

    def _set_slot(self, number: int, slot: Slot) -> None:
        region = abi.MEMORY_REGION.pack(number, slot.flags, slot.start, slot.length, slot.host)
        try:
            fcntl.ioctl(self._vm, abi.SET_USER_MEMORY_REGION, bytearray(region), True)
        except OSError as error:
            message = f"KVM refuses memory {slot.start:#x}+{slot.length:#x}: {error.strerror}"
            raise DeviceError(message, path=PATH, errno=error.errno) from error


def _cut(regions: Iterator[tuple[int, int, PageKind]]) -> Iterator[tuple[int, int, PageKind]]:
    """The same runs as (start, end, kind), cut at :data:`CUTS`."""
    for start, length, kind in regions:
        limits = [start, *(cut for cut in CUTS if start < cut < start + length), start + length]
        for first, end in itertools.pairwise(limits):
            yield first, end, kind


def _open_system() -> int:
    try:
        return os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        message = f"KVM cannot be used: {error.strerror}"
        raise UnsupportedFeatureError(message, path=PATH, errno=error.errno) from error
