"""Native code: handlers are compiled when a translation first needs them, and kept.

A handler's machine code depends only on its shape, this source and the host, so compiled objects
go into a cache (:mod:`vdisk.vm.cpu.cache`) that later runs load at once.  llvmlite lets go of the
GIL while it compiles.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import llvmlite
from llvmlite import binding as llvm

from vdisk.vm.cpu import native
from vdisk.vm.cpu.cache import CodeCache, default_directory, digest
from vdisk.vm.cpu.compiler import REGION_LEVEL, compile_module, target_machine
from vdisk.vm.cpu.context import Shape, write_handler
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.semantics import load_all

if TYPE_CHECKING:
    from collections.abc import Iterable

HANDLER_LEVEL = 1
"""LLVM's optimisation of handlers: they are short, and there are thousands of them."""
RUNTIME_LEVEL = 2
RUNTIME = "enter"
"""The symbol by which the entry of the run-time is known."""


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

    def __init__(self, cache_directory: str | None) -> None:
        self._machine = target_machine()
        load_all()
        processor, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        self._lock = threading.Lock()
        self._engines: list[llvm.ExecutionEngine] = []  # they own the code
        self._loaded: dict[str, int] = {}
        self.handlers: dict[Shape, int] = {}
        name = digest(llvmlite.__version__, str(llvm.llvm_version_info), processor, features)
        self._cache = CodeCache(cache_directory, name)
        entries = list(self._cache.load())
        runtime = next((code for names, code in entries if RUNTIME in names), None)
        self._start(runtime)
        self._load_handlers(entries)

    # -- the run-time --------------------------------------------------------------------------

    def _start(self, compiled: bytes | None) -> None:
        names = (*native.KNOWN, *native.TAILS)
        if compiled is None:
            text = native.runtime_module()
            engine = self._compile(text, RUNTIME_LEVEL, [RUNTIME, *names])
        else:
            engine = self._link([compiled])
        for name in names:
            llvm.add_symbol(name, engine.get_function_address(name))
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        self.enter = ctypes.CFUNCTYPE(None, pointer)(engine.get_function_address(RUNTIME))
        at = engine.get_function_address("enter_at")
        self.enter_at = ctypes.CFUNCTYPE(None, pointer, pointer)(at)
        self.routines: dict[str, Any] = {}
        for name in native.C_ROUTINES:
            called = native.KNOWN[name]
            result = None if called.result == "void" else u64
            prototype = ctypes.CFUNCTYPE(result, pointer, *([u64] * len(called.arguments)))
            self.routines[name] = prototype(engine.get_function_address(f"c_{name}"))

    # -- compiling and linking -------------------------------------------------------------------

    def _compile(self, text: str, level: int, names: Iterable[str] | None) -> llvm.ExecutionEngine:
        """Compile a module, and keep it under the names of its symbols, if it has lasting ones."""
        code = compile_module(self._machine, text, level)
        if names is not None:
            self._cache.append(names, code)
        return self._link([code])

    def _link(self, objects: Iterable[bytes]) -> llvm.ExecutionEngine:
        """Load object code; its symbols are found in the engine."""
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), self._machine)
        for code in objects:
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        self._engines.append(engine)
        return engine

    def compile_region(self, text: str, symbol: str) -> int:
        """Compile one region; its address."""
        engine = self._compile(text, REGION_LEVEL, None)
        address: int = engine.get_function_address(symbol)
        return address

    def link_region(self, code: bytes, symbol: str) -> int:
        """Load a region that was compiled elsewhere; its address."""
        address: int = self._link([code]).get_function_address(symbol)
        return address

    def _load_handlers(self, entries: list[tuple[list[str], bytes]]) -> None:
        """Link what earlier runs have compiled; of symbols defined twice the first counts."""
        known: set[str] = set()
        objects = []
        for names, code in entries:
            if RUNTIME not in names and not known & set(names):
                known |= set(names)
                objects.append(code)
        if objects:
            engine = self._link(objects)
            self._loaded = {name: engine.get_function_address(name) for name in known}

    def prepare(self, shapes: Iterable[Shape]) -> None:
        """Make sure that these handlers exist."""
        handlers = self.handlers
        missing = []
        for shape in shapes:
            if shape not in handlers:
                address = self._loaded.get(shape.symbol)
                if address is None:
                    missing.append(shape)
                else:
                    handlers[shape] = address
        if not missing:
            return
        with self._lock:
            compiled = [shape for shape in dict.fromkeys(missing) if shape not in handlers]
            if compiled:
                names = [shape.symbol for shape in compiled]
                engine = self._compile(handlers_module(compiled), HANDLER_LEVEL, names)
                for shape in compiled:
                    handlers[shape] = engine.get_function_address(shape.symbol)


_shared: NativeCode | None = None
_shared_lock = threading.Lock()


def native_code() -> NativeCode:
    """The process's :class:`NativeCode`."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = NativeCode(default_directory())
        return _shared
