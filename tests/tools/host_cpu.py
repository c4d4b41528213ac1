"""The host's own processor as the truth about x86: what does it make of this code and state?

::

    with HostCpu() as host:
        outcomes = host.run(cases)          # of one mode: 16, 32 or 64 bits

The cases run in a process of their own (``host_cpu_worker``), at more than 20,000 a second with
all of this packing in Python; faults are outcomes like others.  Only unprivileged code, on
x86-64 Linux.  Not covered: FS and GS (the process needs them), RFLAGS other than the arithmetic
flags, DF, TF and AC.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.tools.cpu_state import (
    ARENA,
    CODE,
    CODE_SIZE,
    HLT,
    IF,
    LONGEST_CODE,
    RF,
    WINDOW_SIZE,
    Case,
    Outcome,
    State,
    abridged_tag,
    base_of,
    ended,
    full_tag,
)
from tests.tools.host_cpu_worker import LINEAR, SELECTORS, STRIDE
from tests.tools.patience import PATIENCE
from vdisk.vm.accel.base import FpuState, Registers

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 1024
ROOT = Path(__file__).resolve().parents[2]

GREGS_ORDER = (8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1, 4)
"""Encoding numbers of the registers in the order of struct sigcontext_64."""
FROM_GREGS = tuple(GREGS_ORDER.index(number) for number in range(16))
SETTABLE_FLAGS = 0x5_4DD5  # RF AC OF DF TF SF ZF AF PF CF: what sigreturn takes
MXCSR_MASK = 0xFFFF
SIGPROF = 27

_GREGS = struct.Struct("<23Q")
_FX = struct.Struct("<HHBxHQQII128s256s")


class HostCpu:
    """A worker process, started at once; use as a context manager or :meth:`close` it."""

    def __init__(self) -> None:
        self._file = os.memfd_create("host-cpu")
        size = BATCH * STRIDE
        os.ftruncate(self._file, size)
        self._shared = mmap.mmap(self._file, size)
        self._records = [
            memoryview(self._shared)[start : start + STRIDE] for start in range(0, size, STRIDE)
        ]
        words = [sys.executable, "-m", "tests.tools.host_cpu_worker", str(self._file), str(size)]
        self._worker = subprocess.Popen(
            words,
            pass_fds=[self._file],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    @staticmethod
    def available() -> bool:
        """True on x86-64 Linux."""
        return sys.platform == "linux" and platform.machine() == "x86_64"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        assert self._worker.stdin is not None and self._worker.stdout is not None
        self._worker.stdin.close()
        self._worker.wait(timeout=PATIENCE)
        self._worker.stdout.close()
        for record in self._records:
            record.release()
        self._shared.close()
        os.close(self._file)

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Execute each case by itself; all must be of one mode."""
        outcomes: list[Outcome] = []
        for start in range(0, len(cases), BATCH):
            outcomes += self._run_batch(cases[start : start + BATCH])
        return outcomes

    def _run_batch(self, cases: Sequence[Case]) -> list[Outcome]:
        mode = cases[0].mode
        for case, record in zip(cases, self._records, strict=False):
            if case.mode != mode:
                raise ValueError("cases of different modes in one batch")
            _pack(case, record)
        assert self._worker.stdin is not None
        self._worker.stdin.write(f"{mode} {len(cases)}\n")
        self._worker.stdin.flush()
        self._expect("done")
        return [_unpack(case, record) for case, record in zip(cases, self._records, strict=False)]

    def _expect(self, word: str) -> None:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline().strip()
        if line != word:
            code = self._worker.wait(timeout=PATIENCE)
            raise RuntimeError(f"the process of the host CPU ended with {code}: {line!r}")


def _pack(case: Case, record: memoryview) -> None:
    registers, fpu, gprs = case.state.registers, case.state.fpu, case.state.registers.gprs
    code, stack = SELECTORS[case.mode]
    flags = registers.rflags & SETTABLE_FLAGS | IF | 2
    _GREGS.pack_into(
        record,
        0,
        *[gprs[number] for number in GREGS_ORDER],
        registers.rip,
        flags,
        code | stack << 48,
        *(0, 0, 0, 0),
    )
    record[192 : 192 + LONGEST_CODE] = case.code.ljust(LONGEST_CODE, bytes([HLT]))
    record[672 : 672 + WINDOW_SIZE] = case.state.memory
    linear = registers.rip + base_of(case.mode)
    room = min(LONGEST_CODE, ARENA + CODE + CODE_SIZE - linear)
    struct.pack_into("<QQ", record, LINEAR, linear, room)
    pack_fx(fpu, record[256:672])


def _unpack(case: Case, record: memoryview) -> Outcome:
    gregs = _GREGS.unpack_from(record)
    rip, flags, _, error, vector, _, address = gregs[16:]
    registers = Registers([gregs[i] for i in FROM_GREGS], rip, flags & ~(RF | IF))
    memory = bytes(record[672 : 672 + WINDOW_SIZE])
    state = State(registers, unpack_fx(record[256:672]), memory)
    if record[184] == SIGPROF:
        return Outcome(state, timed_out=True)
    if vector == 13 and ended(case, rip):
        return Outcome(state)
    return Outcome(state, vector, error, address if vector == 14 else 0)


def pack_fx(fpu: FpuState, target: memoryview) -> None:
    """Write the first 416 bytes of an FXSAVE image."""
    _FX.pack_into(
        target,
        0,
        fpu.control,
        fpu.status,
        abridged_tag(fpu.tag),
        fpu.opcode,
        fpu.instruction_pointer,
        fpu.data_pointer,
        fpu.mxcsr & MXCSR_MASK,
        0,
        b"".join([value.to_bytes(16, "little") for value in fpu.st]),
        b"".join([value.to_bytes(16, "little") for value in fpu.xmm]),
    )


def unpack_fx(source: memoryview) -> FpuState:
    """The state in the first 416 bytes of an FXSAVE image."""
    control, status, tag, opcode, ip, dp, mxcsr, _, st_bytes, xmm_bytes = _FX.unpack_from(source)
    st = [int.from_bytes(st_bytes[i : i + 10], "little") for i in range(0, 128, 16)]
    xmm = [int.from_bytes(xmm_bytes[i : i + 16], "little") for i in range(0, 256, 16)]
    full = full_tag(tag, st, status)
    return FpuState(st, control, status, full, opcode, ip, dp, xmm, mxcsr)
