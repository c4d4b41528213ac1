"""What can be compiled by somebody else: each order has all that it takes, and can be pickled."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from vdisk.vm.cpu.arena import Arena
from vdisk.vm.cpu.codegen import handlers_module
from vdisk.vm.cpu.compiler import Level
from vdisk.vm.cpu.context import Shape
from vdisk.vm.cpu.decoder import Decoder
from vdisk.vm.cpu.hot import REGION_LIMIT, Region
from vdisk.vm.cpu.known_store import InstructionStore, content
from vdisk.vm.cpu.native import runtime_module
from vdisk.vm.cpu.region_builder import region_module
from vdisk.vm.cpu.semantics import load_all
from vdisk.vm.cpu.translate import Translator
from vdisk.vm.memory import PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vdisk.vm.cpu.common import Common
    from vdisk.vm.cpu.compiler import Compiler
    from vdisk.vm.cpu.decode import Mode


@functools.cache
def decoder(mode: Mode) -> Decoder:
    """A decoder for whoever carries orders out."""
    load_all()
    return Decoder(mode)


class HandlersOrder(NamedTuple):
    """Handlers for these shapes."""

    shapes: list[Shape]
    level: Level = Level.FINE

    def carry_out(self, compiler: Compiler) -> bytes:
        """Their packed code."""
        load_all()
        return compiler.compile(handlers_module(self.shapes), self.level)


class RuntimeOrder(NamedTuple):
    """The run-time, as it is in the end."""

    def carry_out(self, compiler: Compiler) -> bytes:
        """Its packed code."""
        load_all()
        return compiler.compile(runtime_module(), Level.BEST)


class InstructionsOrder(NamedTuple):
    """What there is to know of these instructions, beside what is kept already."""

    found: list[Common]
    directory: str | None
    digest: str

    def carry_out(self, _compiler: Compiler) -> list[bytes]:
        """The parts of a file of :class:`~vdisk.vm.cpu.known_store.InstructionStore`."""
        load_all()
        arena = Arena(GuestMemory(PAGE_SIZE))
        translator = Translator(arena, _Nowhere.of, lambda at, length: b"", lambda page: None)
        InstructionStore(self.directory, self.digest).load(translator)
        for each in self.found:
            translator.learn(each.code, each.mode, each.variants)
        return content(translator)


class _Nowhere(dict[Shape, int]):
    """Addresses of handlers, where none is needed."""

    @classmethod
    def of(cls, shapes: Iterable[Shape]) -> dict[Shape, int]:
        return cls.fromkeys(shapes, 0)


class CompiledRegion(NamedTuple):
    """What comes of a :class:`RegionOrder`."""

    spans: tuple[tuple[int, int], ...]
    """The bytes [start, end) of each block in the page."""
    entries: tuple[int, ...]
    """Offsets of the blocks by which it is entered."""
    fields: tuple[int, ...]
    """Where in the page 32 bits stand that may all be larger by some number."""
    code: bytes
    """Packed code."""


class RegionOrder(NamedTuple):
    """The region around a block of a page."""

    mode: Mode
    head: int
    """Offset of the block."""
    content: bytes
    """The page."""
    translated: frozenset[int]
    """Offsets of the blocks that are translated."""
    limit: int = REGION_LIMIT
    level: Level = Level.QUICK
    enter: bool = False
    """Let the block itself be an entry: that there is a region around it already is not enough."""
    entries: tuple[int, ...] = ()
    """If there are any: make the region of just these blocks, with these entries, again."""

    def carry_out(self, compiler: Compiler) -> CompiledRegion | None:
        """None where there is nothing to gain."""
        region = Region(decoder(self.mode), self.mode, self.translated, self.head, self.limit)
        if self.entries:
            found = region.take(self.content, self.entries)
        else:
            found = region.gather(self.content, enter=self.enter)
        if not found:
            return None
        code = compiler.compile(region_module(region), self.level)
        return CompiledRegion(region.spans(), region.entries, tuple(region.fields), code)


Order = HandlersOrder | RuntimeOrder | InstructionsOrder | RegionOrder
