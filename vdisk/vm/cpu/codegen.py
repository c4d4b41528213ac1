"""Native code: handlers are compiled when a translation first needs them, and kept.

A handler's machine code depends only on its shape, this source and the host, so compiled objects
go into a cache file that later runs load at once.  llvmlite lets go of the GIL while it compiles.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from llvmlite import binding as llvm

from vdisk.vm.cpu import native
from vdisk.vm.cpu.context import Shape, write_handler
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.routines import ROUTINES
from vdisk.vm.cpu.semantics import load_all

if TYPE_CHECKING:
    from collections.abc import Iterable

HANDLER_LEVEL = 1
"""LLVM's optimisation of handlers: they are short, and there are thousands of them."""
RUNTIME_LEVEL = 2


def handlers_module(shapes: Iterable[Shape]) -> str:
    """LLVM IR of the handlers of these shapes."""
    definitions, used = [], set()
    for shape in shapes:
        b = LlvmBuilder(native.KNOWN)
        write_handler(b, shape)
        definitions.append(function("tailcc", "void", shape.symbol, HANDLER_PARAMETERS, b.body()))
        used |= b.used
    return "\n".join([*sorted(used), *definitions, METADATA])


class NativeCode:
    """The compiled run-time, and the handlers compiled so far.

    One for the whole process: generated code knows nothing of the machine it serves.
    """

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        load_all()
        target = llvm.Target.from_default_triple()
        self._machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=2,
            jit=True,
        )
        self._engines: list[llvm.ExecutionEngine] = []
        self.handlers: dict[Shape, int] = {}
        engine = self._compile(native.runtime_module(), RUNTIME_LEVEL)
        for name in (*native.KNOWN, *native.TAILS):
            llvm.add_symbol(name, engine.get_function_address(name))
        self._functions(engine)

    def _functions(self, engine: llvm.ExecutionEngine) -> None:
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        self.enter = ctypes.CFUNCTYPE(None, pointer)(engine.get_function_address("enter"))
        at = engine.get_function_address("enter_at")
        self.enter_at = ctypes.CFUNCTYPE(None, pointer, pointer)(at)
        self.routines = {}
        for name in native.C_ROUTINES:
            called = native.KNOWN[name]
            result = None if called.result == "void" else u64
            prototype = ctypes.CFUNCTYPE(result, pointer, *([u64] * len(called.arguments)))
            self.routines[name] = prototype(engine.get_function_address(f"c_{name}"))

    def _compile(self, text: str, level: int) -> llvm.ExecutionEngine:
        module = llvm.parse_assembly(text)
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        passes = llvm.create_pass_builder(self._machine, options)
        passes.getModulePassManager().run(module, passes)
        engine = llvm.create_mcjit_compiler(module, self._machine)
        engine.finalize_object()
        self._engines.append(engine)  # owns the code
        return engine

    def prepare(self, shapes: Iterable[Shape]) -> None:
        """Make sure that these handlers exist."""
        missing = list(dict.fromkeys(shape for shape in shapes if shape not in self.handlers))
        if not missing:
            return
        engine = self._compile(handlers_module(missing), HANDLER_LEVEL)
        for shape in missing:
            self.handlers[shape] = engine.get_function_address(shape.symbol)


_shared: NativeCode | None = None


def native_code() -> NativeCode:
    """The process's :class:`NativeCode`."""
    global _shared
    if _shared is None:
        _shared = NativeCode()
    return _shared
