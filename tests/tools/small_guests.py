"""Small guests for whole machines: programs that nasm assembles into a BIOS image of their own.

A program is 16-bit code at F000:0000 that begins after a reset::

    assemble_bios(tmp_path, "mov al, 'x' \\n mov dx, 0x3f8 \\n out dx, al \\n hlt")

:data:`PRELUDE` gives it ``putc`` (AL to COM1), ``puts`` (what DS:SI points to, up to a zero) and
``hang``.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from tests.tools import peers

if TYPE_CHECKING:
    from pathlib import Path

BIOS_SIZE = 64 << 10
SEABIOS = "/usr/share/seabios/bios.bin"

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
