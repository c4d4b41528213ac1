"""Does this host's KVM run guests, and at the speed of a processor?

That /dev/kvm opens says little: nested and paravirtual ones emulate what a kernel does while it
boots at a millionth of the speed, or lack it.  So a small guest is run once: 32-bit code under
paging (what every boot goes through), an SSE instruction, and a loop that a processor is through
within milliseconds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vdisk.errors import VdiskError
from vdisk.vm.accel.base import Registers, Segment, SystemRegisters, VcpuExit
from vdisk.vm.accel.kvm import KvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.memory import GuestMemory

if TYPE_CHECKING:
    from vdisk.vm.accel.kvm_vcpu import KvmVcpu

PAYLOAD = bytes.fromhex(
    "b9 80 84 1e 00"  # mov ecx, 2_000_000
    "49 75 fd"  # dec ecx; jnz back to dec
    "0f 28 c1"  # movaps xmm0, xmm1
    "f4"  # hlt
)
PATIENCE = 0.25
"""Seconds for four million instructions; a processor needs a few milliseconds."""
CODE, PAGE_DIRECTORY = 0x1000, 0x2000
CODE_32, DATA_32 = 0xC09B, 0xC093  # present, ring 0, 32 bits, 4 KiB granularity
CR0_PE_PG, CR4_PSE_OSFXSR = 1 << 31 | 1 << 4 | 1, 1 << 4 | 1 << 9
PRESENT_WRITABLE_4_MIB = 0x83

_answer: list[str | None] = []


def problem() -> str | None:
    """Why KVM is not used by itself on this host; None: it is good.  Asks the host once."""
    if not _answer:
        try:
            _answer.append(_run_payload())
        except VdiskError as error:
            _answer.append(str(error))
    return _answer[0]


def available() -> bool:
    """True where KVM really runs a guest."""
    return problem() is None


def _run_payload() -> str | None:
    memory = GuestMemory(64 << 10)
    memory.write(CODE, PAYLOAD)
    memory.write(PAGE_DIRECTORY, PRESENT_WRITABLE_4_MIB.to_bytes(4, "little"))
    accelerator = KvmAccelerator(memory, Bus())
    vcpu = accelerator.vcpu(0)
    try:
        _set_up(vcpu)
        timer = threading.Timer(PATIENCE, vcpu.request_exit)
        timer.start()
        result = vcpu.run()
        timer.cancel()
        return _judge(vcpu, result)
    finally:
        vcpu.close()
        accelerator.close()


def _set_up(vcpu: KvmVcpu) -> None:
    vcpu.reset()
    data = Segment(16, 0, 0xFFFF_FFFF, DATA_32)
    code = Segment(8, 0, 0xFFFF_FFFF, CODE_32)
    system = SystemRegisters(es=data, cs=code, ss=data, ds=data, fs=data, gs=data)
    system.cr0, system.cr3, system.cr4 = CR0_PE_PG, PAGE_DIRECTORY, CR4_PSE_OSFXSR
    vcpu.set_system_registers(system)
    vcpu.set_registers(Registers(rip=CODE))


def _judge(vcpu: KvmVcpu, result: VcpuExit) -> str | None:
    if result is VcpuExit.HLT:
        return None
    if result is VcpuExit.INTERRUPTED:
        return "KVM emulates kernel code here, far below a processor's speed"
    return vcpu.error or "KVM does not run a 32-bit guest with paging here"
