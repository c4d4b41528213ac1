"""LLVM in a process of its own, for the second tier.

LLVM is used by one thread of a process at a time (llvmlite has one lock for all of it), and a vCPU
that needs a new handler must not wait for a region that takes a tenth of a second.  So regions are
compiled elsewhere: text goes in, object code comes out, each behind its length (4 bytes,
little-endian).  An empty answer: it could not be compiled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from struct import Struct
from typing import IO, Any

LENGTH = Struct("<I")
NICENESS = 5
"""Regions are compiled beside the guest, not instead of it."""
REGION_LEVEL = 2


class CompilerProcess:
    """The other end; :meth:`compile` is for one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def compile(self, text: str) -> bytes | None:
        """Object code of a module; None where the process has none to give (any more)."""
        source, result = self._process.stdin, self._process.stdout
        assert source is not None
        assert result is not None
        data = text.encode()
        try:
            source.write(LENGTH.pack(len(data)) + data)
            source.flush()
            return _receive(result) or None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
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


def target_machine() -> Any:
    """LLVM for this host."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=2,
        jit=True,
    )


def compile_module(machine: Any, text: str, level: int) -> bytes:
    """Object code of LLVM IR."""
    from llvmlite import binding as llvm

    module = llvm.parse_assembly(text)
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code


def serve() -> None:
    """Compile what comes on standard input until it ends."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever reads the answers
    machine = target_machine()
    while data := _receive(sys.stdin.buffer):
        try:
            code = compile_module(machine, data.decode(), REGION_LEVEL)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            code = b""
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(LENGTH.pack(len(code)) + code)
            sys.stdout.buffer.flush()
            continue
        os._exit(0)  # nobody reads any more; a flush at exit would say so


if __name__ == "__main__":
    serve()
