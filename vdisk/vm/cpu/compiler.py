"""LLVM: from its assembly language to code that can be linked; here, or in a process of its own.

LLVM is used by one thread of a process at a time (llvmlite has one lock for all of it), and a vCPU
that needs a new handler must not wait for a region that takes a tenth of a second; nor is the text
of a region written for nothing, in Python, which its threads take turns in.  So what can wait is
done elsewhere: an order (:mod:`vdisk.vm.cpu.orders`) goes in, what comes of it comes out, pickled,
each behind its length (4 bytes, little-endian).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from enum import IntEnum
from struct import Struct
from typing import IO, Any

from vdisk.vm.cpu.linker import LinkError, piece

LENGTH = Struct("<I")
NICENESS = 5
"""For what is compiled beside the guest, not instead of it."""
TRIPLE = "x86_64-unknown-linux-gnu"


class Level(IntEnum):
    """How much work goes into code; milliseconds of processor time for a usual handler."""

    ROUGH = 0
    """0.4: what a vCPU waits for.  Instructions are chosen and registers given out in one go."""
    QUICK = 1
    """0.9: what regions are first.  As rough, but registers are given out with care."""
    FINE = 2
    """2.0: what handlers are in the end."""
    BEST = 3
    """Regions in the end, and the run-time."""


SPEED = {Level.FINE: 1, Level.BEST: 2}
"""LLVM's own levels, of its passes."""


class CompilerProcess:
    """The other end; :meth:`compile` is for one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],  # never from the current directory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # Ctrl-C is for whoever reads the answers
        )

    def carry_out(self, order: Any) -> Any:
        """What comes of an order; None where the process has nothing to give (any more)."""
        source, result = self._process.stdin, self._process.stdout
        assert source is not None
        assert result is not None
        data = pickle.dumps(order)
        try:
            source.write(LENGTH.pack(len(data)) + data)
            source.flush()
            answer = _receive(result)
        except (OSError, ValueError):
            return None
        return pickle.loads(answer) if answer else None

    def give_way(self) -> None:
        """Have it leave processors to those who are waited for."""
        if self._process.poll() is None:
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of what was still to be written
                    pipe.close()
        self._process.wait()


def _receive(pipe: IO[bytes]) -> bytes:
    """One message; empty at the end of the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return b""
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    return data if len(data) == length else b""


class Compiler:
    """LLVM for this host."""

    def __init__(self) -> None:
        from llvmlite import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        self._llvm = llvm
        self._machines: dict[Level, Any] = {}

    def compile(self, text: str, level: Level) -> bytes:
        """Packed code of a module."""
        machine, module = self._machine(level), self._llvm.parse_assembly(text)
        if level not in SPEED:
            self._tidy(machine, module)
        else:
            options = self._llvm.create_pipeline_tuning_options(speed_level=SPEED[level])
            passes = self._llvm.create_pass_builder(machine, options)
            passes.getModulePassManager().run(module, passes)
        return piece(machine.emit_object(module)).pack()

    def _machine(self, level: Level) -> Any:
        machine = self._machines.get(level)
        if machine is None:
            if level is Level.QUICK:  # for all of the process, but the others do so anyway
                self._llvm.set_option("vdisk", "-optimize-regalloc")
            machine = self._machines[level] = self._llvm.Target.from_triple(
                TRIPLE
            ).create_target_machine(
                cpu=self._llvm.get_host_cpu_name(),
                features=self._llvm.get_host_cpu_features().flatten(),
                opt=2 if level in SPEED else 0,
                reloc="pic",
                codemodel="small",
            )
        return machine

    def _tidy(self, machine: Any, module: Any) -> None:
        """What costs next to nothing: variables become registers, empty blocks go."""
        options = self._llvm.create_pipeline_tuning_options(speed_level=1)
        builder = self._llvm.create_pass_builder(machine, options)
        passes = self._llvm.create_new_function_pass_manager()
        passes.add_sroa_pass()
        passes.add_simplify_cfg_pass()
        for function in module.functions:
            if not function.is_declaration:
                passes.run(function, builder)


def serve() -> None:
    """Carry out what comes on standard input until it ends."""
    compiler = Compiler()
    while data := _receive(sys.stdin.buffer):
        try:
            result = pickle.loads(data).carry_out(compiler)
        except (RuntimeError, LinkError) as error:  # LLVM's, or about what it gave
            print(error, file=sys.stderr)
            result = None
        answer = pickle.dumps(result)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
            sys.stdout.buffer.flush()
            continue
        os._exit(0)  # nobody reads any more; a flush at exit would say so


if __name__ == "__main__":
    from vdisk.vm.cpu.compiler import serve as _serve  # as the module that orders name

    _serve()
