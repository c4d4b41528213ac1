"""What CPUID tells a guest under KVM: what KVM and the processor support, without what is not here.

KVM_GET_SUPPORTED_CPUID lists more than a machine with its interrupt controllers outside the
kernel can keep: x2APIC and the TSC deadline timer belong to KVM's own local APIC, and the
paravirtual leaves (0x4000_0000…) partly too.  They are taken out, and what describes the host's
topology is made to describe ours: each vCPU a package of one core and one thread.
(SDM volume 2, CPUID; AMD APM volume 3, appendix E; KVM api.rst 4.46.)
"""

from __future__ import annotations

from dataclasses import dataclass

from vdisk.vm.accel import kvm_abi as abi

HYPERVISOR_LEAVES = range(0x4000_0000, 0x4001_0000)

X2APIC, TSC_DEADLINE, HYPERVISOR = 1 << 21, 1 << 24, 1 << 31  # leaf 1, ECX
APIC, HTT = 1 << 9, 1 << 28  # leaf 1, EDX
CMP_LEGACY, EXT_APIC_SPACE, SVM, TOPOEXT = 1 << 1, 1 << 3, 1 << 2, 1 << 22  # 8000_0001, ECX
VMX = 1 << 5  # leaf 1, ECX


@dataclass(slots=True)
class Leaf:
    """One entry of KVM's table (kvm_cpuid_entry2)."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def unpack(table: bytes | bytearray) -> list[Leaf]:
    """The entries of a struct kvm_cpuid2."""
    (count,) = abi.CPUID_HEADER.unpack_from(table)
    size, start = abi.CPUID_ENTRY.size, abi.CPUID_HEADER.size
    return [Leaf(*abi.CPUID_ENTRY.unpack_from(table, start + size * i)) for i in range(count)]


def pack(leaves: list[Leaf]) -> bytes:
    """A struct kvm_cpuid2 for KVM_SET_CPUID2."""
    entries = (
        abi.CPUID_ENTRY.pack(f.function, f.index, f.flags, f.eax, f.ebx, f.ecx, f.edx)
        for f in leaves
    )
    return abi.CPUID_HEADER.pack(len(leaves)) + b"".join(entries)


def for_vcpu(supported: list[Leaf], apic_id: int, *, has_apic: bool) -> list[Leaf]:
    """The table of one vCPU.  ``has_apic``: the machine has local APICs."""
    leaves = []
    for leaf in supported:
        if leaf.function in HYPERVISOR_LEAVES:
            continue
        own = Leaf(*(getattr(leaf, name) for name in Leaf.__slots__))
        adapt = _ADAPT.get(leaf.function)
        if adapt is not None:
            adapt(own, apic_id)
        if not has_apic and leaf.function in (1, 0x8000_0001):
            own.edx &= ~APIC
        leaves.append(own)
    return leaves


def _basic_features(leaf: Leaf, apic_id: int) -> None:
    leaf.ebx = leaf.ebx & 0xFFFF | 1 << 16 | apic_id << 24
    leaf.ecx &= ~(X2APIC | TSC_DEADLINE | HYPERVISOR | VMX)
    leaf.edx &= ~HTT
    leaf.edx |= APIC


def _cache_sharing(leaf: Leaf, _apic_id: int) -> None:
    leaf.eax &= 0x3FFF  # no other core, no other thread shares it


def _extended_topology(leaf: Leaf, apic_id: int) -> None:
    leaf.eax, leaf.ebx, leaf.ecx, leaf.edx = 0, 0, leaf.index, apic_id


def _no_performance_counters(leaf: Leaf, _apic_id: int) -> None:
    leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0  # their interrupt goes to KVM's own APIC


def _extended_features(leaf: Leaf, _apic_id: int) -> None:
    leaf.ecx &= ~(CMP_LEGACY | EXT_APIC_SPACE | SVM | TOPOEXT)


def _cores(leaf: Leaf, _apic_id: int) -> None:
    leaf.ecx &= ~0xFFFF  # NC 0: one core; ApicIdCoreIdSize 0


_ADAPT = {
    0x1: _basic_features,
    0x4: _cache_sharing,
    0xA: _no_performance_counters,
    0xB: _extended_topology,
    0x1F: _extended_topology,
    0x8000_0001: _extended_features,
    0x8000_0008: _cores,
}
