"""Small guests for whole machines: programs that nasm assembles into a BIOS image of their own.

A program is 16-bit code at F000:0000 that begins after a reset::

    assemble_bios(tmp_path, "mov al, 'x' \\n mov dx, 0x3f8 \\n out dx, al \\n hlt")

:data:`PRELUDE` gives it ``putc`` (AL to COM1), ``puts`` (what DS:SI points to, up to a zero) and
``hang``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import peers
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Make = Callable[..., Machine]

BIOS_SIZE = 64 << 10
MEMORY = 4 << 20
SEABIOS = "/usr/share/seabios/bios.bin"

either_firmware = pytest.mark.parametrize(
    "bios",
    [None, pytest.param(SEABIOS, marks=requires_peer(SEABIOS))],
    ids=["ours", "SeaBIOS"],
)
"""For a test that takes ``bios`` as :class:`~vdisk.vm.Machine` does."""

PRELUDE = """
bits 16
org 0
    jmp start
putc:
    push dx
    mov dx, 0x3f8
    out dx, al
    pop dx
    ret
puts:
    cs lodsb
    test al, al
    jz puts.done
    call putc
    jmp puts
puts.done:
    ret
hang:
    cli
    hlt
    jmp hang
start:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
"""

TIMER = """
    mov word [0x20], tick       ; vector 8
    mov word [0x22], cs
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34                ; counter 0, rate generator, 1193 -> 1 ms
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 4
    out 0x40, al
"""
"""The 8259 lets IRQ 0 through, the 8254 raises it each millisecond; the program has a ``tick``."""

ECHO = """
again:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz again
    mov dx, 0x3f8
    in al, dx
    xor al, 0x20
    call putc
    jmp again
"""
"""Sends back what it receives, its case changed."""

SMP = """
    ; a start-up routine at 0x8000: each processor counts itself, in its own time
    mov si, trampoline
    mov di, 0x8000
    mov cx, trampoline.end - trampoline
    cs rep movsb
    mov word [0x7f00], 0
    ; flat segments for the local APIC: unreal mode
    mov dword [0x7f10], 0
    mov dword [0x7f14], 0
    mov dword [0x7f18], 0x0000ffff
    mov dword [0x7f1c], 0x00cf9300
    mov word [0x7f20], 15
    mov dword [0x7f22], 0x7f10
    lgdt [0x7f20]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 8
    mov ds, bx
    and al, 0xfe
    mov cr0, eax
    xor bx, bx
    mov esi, 0xfee00000
    mov dword [esi + 0xf0], 0x1ff
    mov dword [esi + 0x300], 0xc4500     ; INIT to all others
    mov dword [esi + 0x300], 0xc4608     ; start-up at 8000h
    mov dword [esi + 0x300], 0xc4608
    mov ds, bx
more:
    cmp word [0x7f00], OTHERS
    jb more
    mov al, '*'
    call putc
    jmp hang
trampoline:
    xor ax, ax
    mov ds, ax
    lock inc word [0x7f00]
    cli
    hlt
trampoline.end:
"""
"""Starts the OTHERS, and says ``*`` when all have counted themselves at 7F00h."""

RESET_VECTOR = """
times 0xfff0 - ($ - $$) db 0
    jmp 0xf000:0
times 0x10000 - ($ - $$) db 0
"""


BOOT_SECTOR = """
bits 16
org 0x7c00
    mov dx, 0x3f8
    mov al, {letter}
    out dx, al
    cli
    hlt
times 510 - ($ - $$) db 0
dw 0xaa55
"""


def assemble(tmp_path: Path, source: str, name: str = "guest") -> bytes:
    """The binary that nasm makes of ``source``."""
    text, binary = tmp_path / f"{name}.asm", tmp_path / f"{name}.bin"
    text.write_text(source)
    peers.run("nasm", "-f", "bin", "-o", binary, text)
    return binary.read_bytes()


def assemble_bios(tmp_path: Path, source: str, name: str = "bios") -> str:
    """The path of a BIOS image that runs ``source``."""
    image = assemble(tmp_path, PRELUDE + source + RESET_VECTOR, name)
    assert len(image) == BIOS_SIZE
    return str(tmp_path / f"{name}.bin")


def boot_disk(tmp_path: Path, letter: str, interface: str = "ide") -> str:
    """A disk whose boot sector says a letter (for nasm) on COM1, as a machine takes it."""
    sector = assemble(tmp_path, BOOT_SECTOR.format(letter=letter))
    (tmp_path / "disk.raw").write_bytes(sector + bytes(1 << 20))
    return f"{tmp_path}/disk.raw,if={interface},format=raw"


def accelerators() -> list[object]:
    """The accelerators that work here, each a parameter of a test; without any, a named skip."""
    usable: list[object] = []
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        usable.append("kvm")
    if importlib.util.find_spec("vdisk.vm.accel.llvm") is not None:
        usable.append("llvm")
    if not usable:
        reason = "no accelerator: /dev/kvm cannot be opened, llvmlite is not installed"
        usable.append(pytest.param("none", marks=pytest.mark.skip(reason=reason)))
    return usable


@contextlib.contextmanager
def maker(tmp_path: Path, accel: str) -> Iterator[Make]:
    """``make(source, **options)``: a small machine of that firmware; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(source: str, **options: Any) -> Machine:
            bios = assemble_bios(tmp_path, source)
            settings: dict[str, Any] = {"memory": MEMORY, "accel": accel, "bios": bios}
            machine = Machine(**{**settings, **options})
            stack.callback(machine.close)
            return machine

        yield make
