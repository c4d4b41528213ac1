"""Repeated INS and OUTS: through a disk's data register, and to a serial line."""

from __future__ import annotations

from pathlib import Path

import pytest

import vdisk
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.vm import Machine

pytestmark = requires_peer("nasm")

PROGRAM = """
    mov al, 0xe0
    mov bx, 0x0320              ; read sectors from 3
    call command
    mov di, 0x8ff1              ; over the end of a page, and odd
    mov dx, 0x1f0
    mov cx, 256
    rep insw
    call wait_drq
    mov dx, 0x1f0
    mov cx, 128
    rep insd
    mov si, 0x8ff1
    mov dx, 0x3f8
    mov cx, 30
    rep outsb
    mov si, 0x8ff1 + 512
    mov cx, 3
    rep outsb
    mov bx, 0x0730              ; write sectors from 7
    call command
    mov si, 0x8ff1
    mov dx, 0x1f0
    mov cx, 256
    rep outsw
    call wait_drq
    mov dx, 0x1f0
    mov cx, 128
    rep outsd
    mov di, 0x9800              ; downwards, where nobody answers
    std
    mov dx, 0x5555
    mov cx, 5
    rep insb
    cld
    cmp di, 0x9800 - 5
    jne hang
    cmp cx, 0
    jne hang
    mov si, done
    call puts
    jmp hang
done: db '|done', 13, 10, 0
command:
    mov dx, 0x1f2
    mov al, 2
    out dx, al
    inc dx
    mov al, bh
    out dx, al
    xor al, al
    inc dx
    out dx, al
    inc dx
    out dx, al
    inc dx
    mov al, 0xe0
    out dx, al
    inc dx
    mov al, bl
    out dx, al
wait_drq:
    mov dx, 0x1f7
    in al, dx
    test al, 0x80
    jnz wait_drq
    test al, 8
    jz wait_drq
    ret
"""


@pytest.mark.parametrize("accel", guests.accelerators())
def test_sectors_through_the_data_register(tmp_path: Path, accel: str) -> None:
    path = tmp_path / "disk.img"
    first, second = bytes(range(33, 63)).ljust(512, b"x"), b"2nd".ljust(512, b"y")
    path.write_bytes((bytes(3 * 512) + first + second).ljust(1 << 20, b"\0"))
    bios = guests.assemble_bios(tmp_path, PROGRAM)
    disk = f"{path},format=raw"
    with Machine(memory=4 << 20, accel=accel, bios=bios, disks=[disk]) as machine:
        machine.start()
        said = machine.run_until(serial="|done\r\n", timeout=PATIENCE)
    assert said == first[:30] + b"2nd|done\r\n"
    with vdisk.open(path, format="raw") as image:
        assert image.read(7 * 512, 1024) == first + second
