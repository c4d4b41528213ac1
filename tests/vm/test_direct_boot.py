"""Kernels booted directly: after our BIOS's power-on self test, in each of their modes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.errors import InvalidRequestError
from vdisk.vm import Machine
from vdisk.vm.monitor.control import RunState

pytestmark = requires_peer("nasm")
MIB = 1 << 20

PUTS = """
hang:
    cli
    hlt
    jmp hang
puts:
    lodsb
    test al, al
    jz done
    call putc
    jmp puts
putc:
    mov dx, 0x3f8
    out dx, al
done:
    ret
"""

MULTIBOOT = (
    """
bits 32
org 0x100000
header:
    dd 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)
    dd header, header, 0, 0, start
start:
    mov esp, 0x90000
    cmp eax, 0x2badb002
    jne wrong
    mov esi, [ebx + 16]         ; the command line
    call puts
    mov ecx, [ebx + 20]         ; modules
    add ecx, '0'
    mov al, cl
    call putc
    mov esi, [ebx + 24]
    mov esi, [esi]
    call puts
    jmp hang
wrong:
    mov al, '!'
    call putc
"""
    + PUTS
)

PVH = (
    """
bits 32
org 0x100000
    db 0x7f, "ELF", 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    dw 2, 3
    dd 1, 0, headers - $$, 0, 0
    dw 52, 32, 2, 0, 0, 0
headers:
    dd 1, 0, $$, $$, end - $$, end - $$, 7, 1
    dd 4, note - $$, 0, 0, end - note, end - note, 4, 4
start:
    mov esp, 0x90000
    cmp dword [ebx], 0x336ec578
    jne hang
    mov esi, [ebx + 24]         ; the command line
    call puts
    mov esi, [ebx + 16]         ; the first module
    mov esi, [esi]
    call puts
    mov esi, [ebx + 32]         ; "RSD PTR "
    call puts
"""
    + PUTS
    + """
note:
    dd 4, 4, 18
    db "Xen", 0
    dd start
end:
"""
)

LINUX = """
bits 16
org 0
    times 0x1f1 - ($ - $$) db 0
    db 1                        ; setup_sects
    times 0x1fe - ($ - $$) db 0
    dw 0xaa55
    jmp short setup
    db "HdrS"
    dw 0x20f                    ; protocol 2.15
    times 0x211 - ($ - $$) db 0
    db 1                        ; LOADED_HIGH
    times 0x22c - ($ - $$) db 0
    dd 0x7fffffff
    dd 0x1000
    db 0, 0
    dw XLOADFLAGS
    dd 255
    times 0x258 - ($ - $$) db 0
    dq 0x100000
    dd 0x10000
    times 0x26c - ($ - $$) db 0
setup:                          ; in real mode DS is the segment of the boot sector
    mov al, 'r'
    mov dx, 0x3f8
    out dx, al
    mov esi, [0x228]
    mov ax, si                  ; 20000h and something
    shr esi, 4
    mov ds, si
    and ax, 15
    mov si, ax
real_puts:
    lodsb
    test al, al
    jz halt
    out dx, al
    jmp real_puts
    times 1024 - ($ - $$) db 0

bits 32                         ; at 1 MiB
    mov al, 'p'
    mov dx, 0x3f8
    out dx, al
    mov esi, [esi + 0x228]
    call line
halt:
    cli
    hlt
    jmp halt
line:
    lodsb
    test al, al
    jz line_end
    out dx, al
    jmp line
line_end:
    ret
    times 1024 + 0x200 - ($ - $$) db 0

bits 64
    mov al, 'l'
    mov edx, 0x3f8
    out dx, al
    cmp byte [rsi + 0x1e8], 3   ; an E820 map of some entries
    jb wrong
    mov rdi, [rsi + 0x70]       ; the RSDP
    cmp dword [rdi], "RSD "
    jne wrong
    mov esi, [rsi + 0x228]
long_line:
    lodsb
    test al, al
    jz done
    out dx, al
    jmp long_line
wrong:
    mov al, '!'
    out dx, al
done:
    cli
    hlt
    jmp done
    times 4096 - ($ - $$) db 0
"""


@pytest.fixture(params=guests.accelerators())
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_pvh_kernel(tmp_path: Path, accel: str) -> None:
    (tmp_path / "vmlinux").write_bytes(guests.assemble(tmp_path, PVH))
    (tmp_path / "initrd").write_bytes(b"(module)\0")
    with Machine(
        memory=16 * MIB,
        accel=accel,
        kernel=str(tmp_path / "vmlinux"),
        initrd=str(tmp_path / "initrd"),
        append="words",
    ) as machine:
        machine.run_until(serial="words(module)RSD PTR ", timeout=PATIENCE)


def test_a_multiboot_kernel_with_a_module(tmp_path: Path, accel: str) -> None:
    guests.assemble(tmp_path, MULTIBOOT, "kernel")
    (tmp_path / "module").write_bytes(b"MODULE\0")
    kernel = str(tmp_path / "kernel.bin")
    with Machine(
        memory=16 * MIB, accel=accel, kernel=kernel, initrd=f"{tmp_path}/module", append="one two"
    ) as machine:
        machine.run_until(serial=f"{kernel} one two1MODULE", timeout=PATIENCE)
        machine.reset()  # POST and loading once more
        machine.run_until(serial=f"{kernel} one two1MODULE", timeout=PATIENCE)


@pytest.mark.parametrize(("bits", "letter"), [(None, "l"), (64, "l"), (32, "p"), (16, "r")])
def test_the_entries_of_linux(tmp_path: Path, accel: str, bits: int | None, letter: str) -> None:
    guests.assemble(tmp_path, LINUX.replace("XLOADFLAGS", "1"), "kernel")
    with Machine(
        memory=16 * MIB, accel=accel, kernel=str(tmp_path / "kernel.bin"),
        append="quiet", kernel_bits=bits,
    ) as machine:  # fmt: skip
        machine.run_until(serial=f"{letter}quiet", timeout=PATIENCE)


def test_a_kernel_without_a_64_bit_entry_begins_in_real_mode(tmp_path: Path, accel: str) -> None:
    guests.assemble(tmp_path, LINUX.replace("XLOADFLAGS", "0"), "kernel")
    with Machine(
        memory=16 * MIB, accel=accel, kernel=str(tmp_path / "kernel.bin"), append="x"
    ) as machine:
        machine.run_until(serial="rx", timeout=PATIENCE)


def test_a_kernel_that_does_not_fit_is_refused_before_the_start(tmp_path: Path, accel: str) -> None:
    data = bytearray(guests.assemble(tmp_path, LINUX.replace("XLOADFLAGS", "1"), "kernel"))
    struct.pack_into("<I", data, 0x260, 64 * MIB)
    (tmp_path / "large").write_bytes(data)
    with pytest.raises(InvalidRequestError, match="needs memory"):
        Machine(memory=16 * MIB, accel=accel, kernel=str(tmp_path / "large"))


def test_a_kernel_that_disappears_stops_the_machine(tmp_path: Path, accel: str) -> None:
    guests.assemble(tmp_path, LINUX.replace("XLOADFLAGS", "1"), "kernel")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"x")
    with Machine(
        memory=16 * MIB, accel=accel, kernel=str(tmp_path / "kernel.bin"), initrd=str(initrd)
    ) as machine:
        initrd.unlink()
        machine.start()
        assert machine.wait(PATIENCE)
        assert machine.state is RunState.INTERNAL_ERROR
        assert "the kernel cannot be booted" in machine.error and str(initrd) in machine.error
