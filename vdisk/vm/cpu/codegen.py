"""Native code: handlers are compiled when a translation first needs them, and kept.

A handler's machine code depends only on its shape, this source and the host, so compiled code goes
into a cache (:mod:`vdisk.vm.cpu.cache`) that later runs use at once.  A first run makes what most
guests need before it begins (:mod:`vdisk.vm.cpu.ahead`).  A vCPU waits for any other handler, so
that one is compiled roughly first; whoever has time (the second tier's compiler) makes a fine one
of it, which the next run finds.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from vdisk.vm.cpu import host, native
from vdisk.vm.cpu.cache import CodeCache, Entry, default_directory, digest, prune
from vdisk.vm.cpu.compiler import Compiler, Level
from vdisk.vm.cpu.context import Shape, write_handler
from vdisk.vm.cpu.known_store import InstructionStore
from vdisk.vm.cpu.linker import CodeMemory, Piece
from vdisk.vm.cpu.llvm_builder import HANDLER_PARAMETERS, METADATA, LlvmBuilder, function
from vdisk.vm.cpu.region_store import RegionStore
from vdisk.vm.cpu.semantics import load_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.vm.cpu.ahead import Ahead

    Progress = Callable[[int, int], None]

RUNTIME = "enter"
"""The symbol by which the run-time is known in the cache."""
COMPLETE = "complete"
"""What the cache has instead of a symbol when all that is made ahead is in it."""
KNOWN = {32: "instructions of 32 bits", 64: "instructions of 64 bits"}
"""And when kernels' instructions are known."""
BATCH = 32
"""Handlers that are made fine at a time, so that regions need not wait long."""


def handlers_module(shapes: Iterable[Shape]) -> str:
    """LLVM IR of the handlers of these shapes."""
    definitions, used = [], set()
    for shape in shapes:
        b = LlvmBuilder(native.KNOWN)
        write_handler(b, shape)
        definitions.append(function("tailcc", "void", shape.symbol, HANDLER_PARAMETERS, b.body()))
        used |= b.used
    return "\n".join([*sorted(used), *definitions, METADATA])


def c_function(name: str) -> int:
    """The address of a function of the C library."""
    return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0


class NativeCode:
    """The compiled run-time, and the handlers compiled so far.

    One for the whole process: generated code knows nothing of the machine it serves.
    """

    def __init__(
        self,
        cache_directory: str | None,
        level: Level = Level.ROUGH,
        *,
        ahead: Progress | None = None,
        bits: int = 64,
    ) -> None:
        """``level``: how handlers are compiled that are not in the cache.

        ``ahead``: if this is a first run, begin with those that most guests need, and tell this
        function how many there are and how many are waited for.  ``bits``: of the guest's kernel.
        """
        load_all()
        self.digest = digest(host.llvm(), host.processor())
        self.directory, self._level = cache_directory, level
        self._compiler: Compiler | None = None
        self._lock = threading.RLock()
        self.memory = CodeMemory(c_function)
        self.regions = RegionStore(self.memory, cache_directory, self.digest)
        self.handlers: dict[Shape, int] = {}
        self._rough: dict[str, Shape] = {}
        self._cache = CodeCache(cache_directory, f"code-{self.digest}")
        self._kept: dict[str, tuple[Level, Entry]] = {}
        prune(cache_directory)
        self._find_kept()
        self._ahead: Ahead | None = None
        self._junctions: dict[str, int] = {}
        self._is_complete = ahead is None or RUNTIME not in self._kept or COMPLETE in self._kept
        has_runtime = self._add_runtime()
        if not has_runtime or (ahead is not None and self.lacks_instructions(bits)):
            self._begin(ahead, bits)
        self._bind()

    # -- the run-time --------------------------------------------------------------------------

    def _begin(self, progress: Progress | None, bits: int) -> None:
        """The first run: compile the run-time, and begin with what is to be made ahead."""
        if progress is None:
            self._compile(native.runtime_module(), Level.BEST, [RUNTIME])
            return
        from vdisk.vm.cpu.ahead import Ahead, works

        ahead = self._ahead = Ahead(works(self, self._kept, bits), progress, self._completed)
        try:
            ahead.start()
            with self._lock:
                if RUNTIME not in self.memory.symbols and not self._add_runtime():
                    self._compile_rough_runtime()
                    self._add_runtime()
            ahead.wait()
        except BaseException:
            ahead.close()
            raise

    def _compile_rough_runtime(self) -> None:
        """A run-time for the beginning of the first run, which costs a fifth of the real one."""
        code = self.compiler.compile(native.runtime_module(), Level.ROUGH)
        self.take([RUNTIME], code, Level.ROUGH)

    def _add_runtime(self) -> bool:
        """Put the run-time in place, and a rough one so that the real one can be exchanged for
        it; False if there is none."""
        level, entry = self._kept.get(RUNTIME, (Level.BEST, None))
        code = None if entry is None else entry.code()
        if level is not Level.ROUGH or code is None:
            return self._add_kept(RUNTIME)
        added = Piece.unpack(code)
        base, junction = self.memory.add(added), self.memory.add_junction
        self._junctions = {name: junction(base + at) for name, at in added.symbols.items()}
        self.memory.symbols.update(self._junctions)
        return True

    def _exchange_runtime(self, code: bytes) -> None:
        """Let all that uses the rough run-time use this one, whoever may be in it."""
        added = Piece.unpack(code)
        base = self.memory.add(added)
        for name, junction in self._junctions.items():
            self.memory.turn(junction, base + added.symbols[name])
        self.memory.symbols.update((name, base + at) for name, at in added.symbols.items())

    def _bind(self) -> None:
        addresses = self.memory.symbols
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        self.enter = ctypes.CFUNCTYPE(None, pointer)(addresses[RUNTIME])
        self.enter_at = ctypes.CFUNCTYPE(None, pointer, pointer)(addresses["enter_at"])
        self.routines: dict[str, Any] = {}
        for name in native.C_ROUTINES:
            called = native.KNOWN[name]
            result = None if called.result == "void" else u64
            # Soon done, and without a lock: waiting for the interpreter's again takes longer.
            kind = ctypes.PYFUNCTYPE if name in native.SHORT else ctypes.CFUNCTYPE
            # Pointers, so that bytes may be given as well as numbers.
            prototype = kind(result, *([pointer] * (1 + len(called.arguments))))
            self.routines[name] = prototype(addresses[f"c_{name}"])

    # -- what is kept ----------------------------------------------------------------------------

    def _find_kept(self) -> None:
        """Of a symbol that was compiled more than once the best counts, or the last."""
        kept = self._kept
        for entry in self._cache.load():
            level = Level(entry.label[0])
            for name in entry.label[1:].decode().split("\n"):
                if name not in kept or level >= kept[name][0]:
                    kept[name] = level, entry

    def _add_kept(self, name: str) -> bool:
        """Put code from the cache in place; False if there is none for the symbol."""
        if name not in self._kept:
            return False
        entry = self._kept[name][1]
        code = entry.code()
        if code is None:
            return False
        added = Piece.unpack(code)
        base = self.memory.add(added)
        for symbol, offset in added.symbols.items():
            kept = self._kept.get(symbol)
            if kept is None or kept[1] is entry:  # a part of the run-time, or not compiled better
                self.memory.symbols[symbol] = base + offset
        return True

    # -- compiling -------------------------------------------------------------------------------

    def _compile(self, text: str, level: Level, names: list[str]) -> None:
        """Compile a module here, now, and keep it under the names of its symbols."""
        self._add(self.compiler.compile(text, level), level, names)

    def _add(self, code: bytes, level: Level, names: list[str]) -> None:
        """Put new code in place, and keep it under these names."""
        self.keep(names, code, level)
        added = Piece.unpack(code)
        base = self.memory.add(added)
        self.memory.symbols.update((name, base + at) for name, at in added.symbols.items())

    def carry_out(self, order: Any) -> Any:
        """What comes of an order (:mod:`vdisk.vm.cpu.orders`), here and now."""
        with self._lock:
            return order.carry_out(self.compiler)

    @property
    def compiler(self) -> Compiler:
        """LLVM, from the first time on that it is needed."""
        if self._compiler is None:
            self._compiler = Compiler()
        return self._compiler

    def keep(self, names: Iterable[str], code: bytes, level: Level) -> Entry:
        """Let later runs have what was compiled."""
        return self._cache.append(bytes([level]) + "\n".join(names).encode(), code)

    def take(self, names: Iterable[str], code: bytes, level: Level) -> None:
        """Let this run have it as well, as if it had been there."""
        entry = self.keep(names, code, level)
        with self._lock:
            self._kept.update((name, (level, entry)) for name in names)

    def take_runtime(self, code: bytes) -> None:
        """The same for the run-time."""
        self.take([RUNTIME], code, Level.BEST)
        with self._lock:
            if self._junctions:
                self._exchange_runtime(code)

    def take_instructions(self, bits: int, parts: list[bytes]) -> None:
        """Let machines of this run and later ones know what they would have to learn."""
        if InstructionStore(self.directory, self.digest).write(parts):
            self.take([KNOWN[bits]], b"", Level.ROUGH)

    def lacks_instructions(self, bits: int) -> bool:
        """True if it is not known what kernels of so many bits execute, and could be."""
        return self.directory is not None and KNOWN[bits] not in self._kept

    def prepare(self, shapes: Iterable[Shape]) -> None:
        """Make sure that these handlers exist."""
        missing = [shape for shape in shapes if shape not in self.handlers]
        if not missing:
            return
        with self._lock:
            wanted = {shape: shape.symbol for shape in missing if shape not in self.handlers}
            self._make(wanted)
            addresses = self.memory.symbols
            self.handlers.update((shape, addresses[name]) for shape, name in wanted.items())

    def _make(self, wanted: dict[Shape, str]) -> None:
        """Handlers, with their symbols, from the cache, or compiled."""
        known = self.memory.symbols
        absent = []
        for shape, symbol in wanted.items():
            if symbol not in known and not self._add_kept(symbol):
                absent.append(shape)
            elif self._kept[symbol][0] is Level.ROUGH:  # no shape is made twice in a run
                self._rough[symbol] = shape
        if absent:
            names = [wanted[shape] for shape in absent]
            self._compile(handlers_module(absent), self._level, names)
            if self._level is Level.ROUGH:
                self._rough.update(zip(names, absent, strict=True))

    def _completed(self) -> None:
        self.take([COMPLETE], b"", Level.ROUGH)
        self._ahead = None

    def next_rough(self) -> list[Shape]:
        """Handlers of this run that only exist in rough; each is given once.

        Then those that were to be made ahead by an earlier run, which was ended before.
        """
        with self._lock:
            if self._ahead is not None:
                return []  # which is more urgent
            if not self._rough and not self._is_complete:
                self._rough = self._missing()
            symbols = list(self._rough)[:BATCH]
            return [self._rough.pop(symbol) for symbol in symbols]

    def lacks_runtime(self) -> bool:
        """True if there is only a rough run-time, or none, and nobody makes the real one."""
        with self._lock:
            is_rough = RUNTIME not in self._kept or self._kept[RUNTIME][0] is Level.ROUGH
            return is_rough and self._ahead is None

    def _missing(self) -> dict[str, Shape]:
        from vdisk.vm.cpu.ahead import missing

        self._is_complete = True
        shapes = missing(self._kept)
        if not shapes:
            self._completed()
        return {shape.symbol: shape for shape in shapes}


_shared: NativeCode | None = None
_shared_lock = threading.Lock()


def _silent(_done: int, _total: int) -> None:
    """A progress that nobody looks at."""


def native_code(progress: Progress | None = None, bits: int = 64) -> NativeCode:
    """The process's :class:`NativeCode`; ``progress`` and ``bits``: see ``ahead`` there."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = NativeCode(default_directory(), ahead=progress or _silent, bits=bits)
        return _shared
