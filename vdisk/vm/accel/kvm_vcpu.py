"""One vCPU of KVM: the loop around KVM_RUN, and its register sets.

The kernel executes until it needs us; struct kvm_run, mapped from the vCPU's file, says for what.
Port and memory-mapped I/O go to the bus, and the next KVM_RUN completes the instruction.

Interrupt controllers are ours, so KVM delivers one vector at a time: KVM_INTERRUPT where the
guest is ready for it, and a request_interrupt_window exit where it is not yet.

**Kicks.**  The kicking thread sends a signal (SIGURG, harmless where it is not expected) that
the vCPU's thread keeps blocked but while in KVM_RUN (KVM_SET_SIGNAL_MASK): it interrupts KVM_RUN
also if it came just before, needs no handler, and is eaten afterwards.  A vCPU that leaves
completes an instruction that waits for its I/O first (immediate_exit; api.rst, 5).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import threading
from typing import TYPE_CHECKING

from vdisk.errors import DeviceError
from vdisk.vm.accel import kvm_abi as abi
from vdisk.vm.accel import kvm_cpuid, kvm_state
from vdisk.vm.accel.base import FpuState, Registers, Segment, SystemRegisters, Vcpu, VcpuExit
from vdisk.vm.memory import PAGE_SIZE, PageKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.vm.bus import Bus
    from vdisk.vm.memory import GuestMemory

KICK = signal.SIGURG
_KICKS = frozenset({KICK})
APIC_ENABLED = 1 << 11
APIC_BASE_MASK = 0xF_FFFF_FFFF_F000
EFER = 0xC000_0080


class KvmVcpu(Vcpu):
    """Made by :meth:`~vdisk.vm.accel.kvm.KvmAccelerator.vcpu`."""

    def __init__(
        self, index: int, file: int, run_size: int, memory: GuestMemory, bus: Bus,
        supported: list[kvm_cpuid.Leaf],
    ) -> None:  # fmt: skip
        self.index = index
        self._file = file
        self._memory = memory
        self._bus = bus
        self._supported = supported
        self._run = mmap.mmap(file, run_size)
        self._prepared = False
        self._thread: int | None = None  # set while the thread is in, or about to enter, KVM_RUN
        self._kicked = False  # a signal was sent that has not been eaten
        self._kick_lock = threading.Lock()
        self._exit_requested = False
        self._nmi = False
        self._io_waits = False
        self._handlers: dict[int, Callable[[], VcpuExit | None]] = {
            abi.EXIT_IO: self._port_io,
            abi.EXIT_MMIO: self._mmio,
            abi.EXIT_HLT: lambda: VcpuExit.HLT,
            abi.EXIT_IRQ_WINDOW_OPEN: lambda: None,
            abi.EXIT_INTR: lambda: None,
            abi.EXIT_SET_TPR: lambda: None,
            abi.EXIT_SHUTDOWN: lambda: VcpuExit.SHUTDOWN,
            abi.EXIT_FAIL_ENTRY: self._fail_entry,
            abi.EXIT_INTERNAL_ERROR: self._internal_error,
        }
        self._msrs: list[int] = []
        self._reset_msrs: dict[int, int] = {}

    # -- running ---------------------------------------------------------------------------------

    def run(self, budget: int | None = None) -> VcpuExit:
        """Execute; ``budget`` has no effect, since KVM does not count instructions."""
        self._prepare()
        signal.pthread_sigmask(signal.SIG_BLOCK, _KICKS)
        while True:
            with self._kick_lock:
                self._thread = threading.get_ident()
            if self._exit_requested:
                return self._leave()
            self._offer_interrupts()
            self.enter()
            exit_reason = abi.RUN_EXIT_REASON.unpack_from(self._run, abi.RUN_EXIT_REASON_OFFSET)[0]
            handler = self._handlers.get(exit_reason)
            result = handler() if handler else self._fail(f"KVM left for reason {exit_reason}")
            if result is not None:
                self._out_of_guest()
                return result

    def kick(self) -> None:
        own = threading.get_ident()  # its thread looks again anyway when it is done with an exit
        with self._kick_lock:
            if self._thread not in (None, own) and not self._kicked:
                assert self._thread is not None
                self._kicked = True
                signal.pthread_kill(self._thread, KICK)

    def request_exit(self) -> None:
        self._exit_requested = True
        self.kick()

    def inject_nmi(self) -> None:
        self._nmi = True
        self.kick()

    @property
    def nmi_waits(self) -> bool:
        return self._nmi

    def _leave(self) -> VcpuExit:
        """End :meth:`run` on request, between two instructions."""
        if self._io_waits:
            self._run[abi.RUN_IMMEDIATE_EXIT] = 1
            self.enter()
            self._run[abi.RUN_IMMEDIATE_EXIT] = 0
        self._exit_requested = False
        self._out_of_guest()
        return VcpuExit.INTERRUPTED

    def _out_of_guest(self) -> None:
        with self._kick_lock:
            self._thread = None
        self._eat_kick()

    def _eat_kick(self) -> None:
        with self._kick_lock:
            if self._kicked:
                signal.sigtimedwait(_KICKS, 0)
                self._kicked = False

    def enter(self) -> None:
        """KVM_RUN once; an exit reason of EXIT_INTR stands for a kick."""
        self._io_waits = False
        try:
            fcntl.ioctl(self._file, abi.RUN, 0)
        except OSError as error:
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise DeviceError(f"KVM_RUN failed: {error.strerror}", path="/dev/kvm") from error
            abi.RUN_EXIT_REASON.pack_into(self._run, abi.RUN_EXIT_REASON_OFFSET, abi.EXIT_INTR)
            self._eat_kick()
        self._take_apic_state()

    def _offer_interrupts(self) -> None:
        """Give KVM what it shall deliver, and our TPR."""
        run = self._run
        if self._nmi:
            self._nmi = False
            fcntl.ioctl(self._file, abi.NMI, 0)
        if self.interrupts is None:
            return
        with self._bus.lock:
            ready = run[abi.RUN_READY_FOR_INTERRUPT] and run[abi.RUN_IF_FLAG]
            if ready and self.interrupts.pending():
                vector = abi.INTERRUPT.pack(self.interrupts.acknowledge())
                fcntl.ioctl(self._file, abi.INTERRUPT_REQUEST, vector)
            run[abi.RUN_REQUEST_INTERRUPT_WINDOW] = self.interrupts.pending()
            if self.apic is not None:
                abi.RUN_CR8_APIC_BASE.pack_into(
                    run, abi.RUN_CR8_OFFSET, self.apic.task_priority, self._apic_base
                )

    _apic_base = 0

    def _take_apic_state(self) -> None:
        """CR8 and IA32_APIC_BASE as the guest left them."""
        apic = self.apic
        if apic is None:
            return
        cr8, base = abi.RUN_CR8_APIC_BASE.unpack_from(self._run, abi.RUN_CR8_OFFSET)
        if cr8 != apic.task_priority or base != self._apic_base:
            with self._bus.lock:
                apic.task_priority = cr8
                if base != self._apic_base:
                    apic.write_msr(abi.MSR_APIC_BASE, base)
                    self._apic_base = base

    # -- exits -----------------------------------------------------------------------------------

    def _port_io(self) -> None:
        direction, size, port, count, offset = abi.RUN_IO.unpack_from(self._run, abi.RUN_UNION)
        run, ports = self._run, self._bus.ports
        self._io_waits = True
        end = offset + size * count  # INS, OUTS: many at once
        with self._bus.lock:
            if direction == abi.EXIT_IO_IN:
                run[offset:end] = ports.read_many(port, size, count)
            else:
                ports.write_many(port, size, bytes(run[offset:end]))

    def _mmio(self) -> None:
        address, data, length, is_write = abi.RUN_MMIO.unpack_from(self._run, abi.RUN_UNION)
        self._io_waits = True
        with self._bus.lock:
            if is_write:
                self._mmio_write(address, data[:length])
            else:
                value = self._mmio_read(address, length).to_bytes(length, "little")
                start = abi.RUN_MMIO_DATA_OFFSET
                self._run[start : start + length] = value

    def _mmio_read(self, address: int, length: int) -> int:
        if self._is_apic(address):
            assert self.apic is not None
            return self.apic.mmio_read(address & PAGE_SIZE - 1, length)
        if self._memory.kind(address) is not PageKind.MMIO:  # its slot is just being replaced
            return int.from_bytes(self._memory.read(address, length), "little")
        return self._bus.mmio.read(address, length)

    def _mmio_write(self, address: int, data: bytes) -> None:
        if self._is_apic(address):
            assert self.apic is not None
            value = int.from_bytes(data, "little")
            self.apic.mmio_write(address & PAGE_SIZE - 1, len(data), value)
            return
        kind = self._memory.kind(address)
        if kind is PageKind.RAM:
            self._memory.write(address, data)
        elif kind is PageKind.MMIO:
            self._bus.mmio.write(address, len(data), int.from_bytes(data, "little"))

    def _is_apic(self, address: int) -> bool:
        if self.apic is None or not self._apic_base & APIC_ENABLED:
            return False
        return address & ~(PAGE_SIZE - 1) == self._apic_base & APIC_BASE_MASK

    def _fail(self, text: str) -> VcpuExit:
        self.error = text
        return VcpuExit.ERROR

    def _fail_entry(self) -> VcpuExit:
        (reason,) = abi.RUN_FAIL_ENTRY.unpack_from(self._run, abi.RUN_UNION)
        return self._fail(f"KVM cannot enter the guest: hardware reason {reason:#x}")

    def _internal_error(self) -> VcpuExit:
        suberror, ndata, flags, size, code = abi.RUN_INTERNAL_ERROR.unpack_from(
            self._run, abi.RUN_UNION
        )
        text = abi.INTERNAL_ERRORS.get(suberror, f"internal error {suberror}")
        if suberror == abi.INTERNAL_ERROR_EMULATION and ndata and flags & abi.EMULATION_HAS_BYTES:
            text += f" ({code[: min(size, 15)].hex(' ')})"
        return self._fail(f"KVM cannot go on at rip {self.get_registers().rip:#x}: {text}")

    # -- state -----------------------------------------------------------------------------------

    def _get(self, request: int, size: int) -> bytearray:
        buffer = bytearray(size)
        fcntl.ioctl(self._file, request, buffer, True)
        return buffer

    def _set(self, request: int, data: bytes | bytearray, what: str) -> None:
        try:
            fcntl.ioctl(self._file, request, bytearray(data), True)
        except OSError as error:
            message = f"KVM refuses these {what}: {error.strerror}"
            raise DeviceError(message, path="/dev/kvm", errno=error.errno) from error

    def _prepare(self) -> None:
        """What must be told once, as soon as it is known whether there is an APIC."""
        if self._prepared:
            return
        self._prepared = True
        leaves = kvm_cpuid.for_vcpu(self._supported, self.index, has_apic=self.apic is not None)
        self._leaves = leaves
        self._set(abi.SET_CPUID2, kvm_cpuid.pack(leaves), "CPUID leaves")
        # Everything but the kick is as the thread has it; a signal's bit is its number minus one.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) - _KICKS
        mask = sum(1 << int(number) - 1 for number in blocked)
        self._set(abi.SET_SIGNAL_MASK, abi.SIGNAL_MASK.pack(8, mask), "signal mask")
        self._apic_base = self.get_system_registers().apic_base
        for index in abi.SAVED_MSRS:  # which of them there are depends on CPUID
            value = self._read_msr(index)
            if value is not None and self._write_msr(index, value):
                self._msrs.append(index)
                self._reset_msrs[index] = value
        self._reset_msrs.pop(abi.MSR_TSC, None)  # RESET# zeroes it, but all TSCs must agree

    def reset(self) -> None:
        self._prepare()
        with self._bus.lock:
            base = self.apic.read_msr(abi.MSR_APIC_BASE) if self.apic is not None else None
        signature = next((leaf.eax for leaf in self._leaves if leaf.function == 1), 0)
        system = SystemRegisters(cs=Segment(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B))
        if base is not None:
            system.apic_base = base
        elif self.index:
            system.apic_base &= ~0x100  # not the bootstrap processor
        registers = Registers(rip=0xFFF0)
        registers.gprs[2] = signature  # EDX
        self.set_system_registers(system)
        self.set_registers(registers)
        self.set_msrs(self._reset_msrs)
        self._set(abi.SET_XSAVE, bytes(abi.XSAVE_SIZE), "extended registers")
        self.set_fpu(FpuState())
        self._set(abi.SET_VCPU_EVENTS, bytes(abi.EVENTS_SIZE), "events")
        self._nmi = self._io_waits = False
        self._run[abi.RUN_READY_FOR_INTERRUPT] = 0

    def get_registers(self) -> Registers:
        return kvm_state.registers_from(self._get(abi.GET_REGS, abi.REGS.size))

    def set_registers(self, registers: Registers) -> None:
        self._prepare()
        self._set(abi.SET_REGS, kvm_state.registers_to(registers), "registers")
        self._run[abi.RUN_READY_FOR_INTERRUPT] = 0  # IF may have changed: ask anew

    def get_system_registers(self) -> SystemRegisters:
        debug = self._get(abi.GET_DEBUGREGS, abi.DEBUGREGS.size)
        return kvm_state.system_from(self._get(abi.GET_SREGS, abi.SREGS_SIZE), debug)

    def set_system_registers(self, registers: SystemRegisters) -> None:
        self._prepare()
        system, debug = kvm_state.system_to(registers)
        self._set(abi.SET_SREGS, system, "system registers")
        self._set(abi.SET_DEBUGREGS, debug, "debug registers")
        self._apic_base = registers.apic_base
        cr8 = self.apic.task_priority if self.apic is not None else registers.cr8
        abi.RUN_CR8_APIC_BASE.pack_into(self._run, abi.RUN_CR8_OFFSET, cr8, self._apic_base)

    def get_fpu(self) -> FpuState:
        return kvm_state.fpu_from(self._get(abi.GET_XSAVE, abi.XSAVE_SIZE))

    def set_fpu(self, state: FpuState) -> None:
        xsave = self._get(abi.GET_XSAVE, abi.XSAVE_SIZE)
        kvm_state.put_fpu(state, xsave)
        self._set(abi.SET_XSAVE, xsave, "floating-point registers")

    def get_msrs(self) -> dict[int, int]:
        self._prepare()
        values = {index: self._read_msr(index) for index in self._msrs}
        return {index: value for index, value in values.items() if value is not None}

    def set_msrs(self, msrs: dict[int, int]) -> None:
        for index, value in msrs.items():
            if not self._write_msr(index, value):
                raise DeviceError(f"KVM refuses {value:#x} for MSR {index:#x}", path="/dev/kvm")

    def _read_msr(self, index: int) -> int | None:
        entry = bytearray(abi.MSRS_HEADER.pack(1) + abi.MSR_ENTRY.pack(index, 0))
        if fcntl.ioctl(self._file, abi.GET_MSRS, entry, True) != 1:
            return None
        value: int = abi.MSR_ENTRY.unpack_from(entry, abi.MSRS_HEADER.size)[1]
        return value

    def _write_msr(self, index: int, value: int) -> bool:
        entry = bytearray(abi.MSRS_HEADER.pack(1) + abi.MSR_ENTRY.pack(index, value))
        written: int = fcntl.ioctl(self._file, abi.SET_MSRS, entry, True)
        return written == 1

    def get_extra(self) -> dict[str, int | bytes]:
        """What FXSAVE does not hold (AVX …), XCR0, and events under way."""
        return {
            "xsave": bytes(self._get(abi.GET_XSAVE, abi.XSAVE_SIZE)),
            "xcrs": bytes(self._get(abi.GET_XCRS, abi.XCRS_SIZE)),
            "events": bytes(self._get(abi.GET_VCPU_EVENTS, abi.EVENTS_SIZE)),
        }

    def set_extra(self, extra: dict[str, int | bytes]) -> None:
        requests = {
            "xcrs": (abi.SET_XCRS, abi.XCRS_SIZE),
            "xsave": (abi.SET_XSAVE, abi.XSAVE_SIZE),
            "events": (abi.SET_VCPU_EVENTS, abi.EVENTS_SIZE),
        }
        for name, (request, size) in requests.items():
            data = extra.get(name)
            if not isinstance(data, bytes) or len(data) != size:
                raise DeviceError(f"a saved vCPU without {name} of {size} bytes", path="/dev/kvm")
            self._set(request, data, name)

    def close(self) -> None:
        if self._file >= 0:
            self._run.close()
            os.close(self._file)
            self._file = -1
