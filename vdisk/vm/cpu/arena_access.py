"""How routines of the run-time reach the fields of the arena (:mod:`vdisk.vm.cpu.arena`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu import arena

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Builder, Value


def counter(b: Builder, name: str) -> Value:
    """A field of the header (:data:`~vdisk.vm.cpu.arena.COUNTERS`)."""
    return b.arena_load(arena.HEADER_FIELDS[name], "i64")


def set_counter(b: Builder, name: str, value: Value) -> None:
    """The counterpart of :func:`counter`."""
    b.arena_store(arena.HEADER_FIELDS[name], value)


def wide(b: Builder, where: Value | int, kind: str) -> Value:
    """A field that is narrower than what is computed with it."""
    return b.arena_load(where, kind).zext("i64")


def mode_place(mode: Value) -> Value:
    """Where the mapping says what is fixed for a mode."""
    return mode * arena.MODE_SIZE + arena.MODES


def page_place(b: Builder, number: Value) -> Value:
    """Where the entry of a physical page is in the mapping."""
    return counter(b, "pages") + number * arena.PAGE_ENTRY
