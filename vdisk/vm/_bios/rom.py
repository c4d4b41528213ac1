"""The ROM: 64 KiB at F0000, built when it is asked for.

::

    F000:0000   data: fonts, mode tables, texts                   (rom_data)
    F000:8000   room for what POST writes: SMBIOS, MP, ACPI, $PIR (TABLES)
    F000:E05B   code, its entry points where PCs have always had them
    F000:FFF0   reset vector, date, model byte

The entry points are those of the IBM AT that programs jump to directly; everything else is
reached through the interrupt vectors.  A handler that traps finds the carry flag set if it has
to wait for an interrupt and trap again, and the zero flag if it shall not even wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from vdisk.vm._bios.assembler import Assembler

ROM_BASE = 0xF0000
ROM_SIZE = 0x10000
ROM_SEGMENT = 0xF000
DATA = 0x0000
TABLES = 0x8000
CODE = 0xE000

TRAP_PORT = 0xE6
"""An I/O port at which no PC has a device and that ``out imm8, al`` reaches."""

SOURCE = """
org 0xE05B
post:
    cli
    cld
    xor ax, ax
    mov ss, ax
    mov sp, 0x7000
    trap post
    jc post.resume              ; DS is the EBDA's segment
post.scan:                      ; option ROMs: far pointers, one at a time
    trap option_rom
    jnc post.boot               ; DS is the EBDA's segment
    call far [0x80]
    jmp post.scan
post.boot:
    int 0x19
post.resume:                    ; behind S3: the system's own code
    jmp far [0x80]

boot_failed:                    ; int 18h: try the next device
    trap boot_failed
    jmp bootstrap.go
bootstrap:                      ; int 19h: begin with the first
    trap boot_again
bootstrap.go:
    cli
    xor ax, ax
    mov ss, ax
    mov sp, 0x7000
bootstrap.next:
    trap bootstrap
    jc bootstrap.wait
    iret                        ; into the boot sector: the service has made the frame
bootstrap.wait:
    sti
    jz bootstrap.again
    hlt
bootstrap.again:
    cli
    jmp bootstrap.next

irq_rtc:                        ; int 70h
    push ax
    trap rtc_interrupt
    jnc irq_rtc.done
    int 0x4A
irq_rtc.done:
    cli
    mov al, 0x20
    out 0xA0, al
    out 0x20, al
    pop ax
    iret

irq_redirected:                 ; int 71h: IRQ 9, which was IRQ 2 on the PC
    push ax
    mov al, 0x20
    out 0xA0, al
    pop ax
    int 0x0A
    iret

irq_mouse:                      ; int 74h
    pushad
    push ds
    push es
    trap mouse_interrupt        ; DS becomes the EBDA's segment
    jnc irq_mouse.done
    push word [0x90]            ; status, X, Y, Z
    push word [0x92]
    push word [0x94]
    push 0
    call far [0x22]
    add sp, 8
irq_mouse.done:
    cli
    mov al, 0x20
    out 0xA0, al
    out 0x20, al
    pop es
    pop ds
    popad
    iret

irq_fpu:                        ; int 75h
    push ax
    xor al, al
    out 0xF0, al
    mov al, 0x20
    out 0xA0, al
    out 0x20, al
    pop ax
    int 0x02
    iret

irq_other:
    trap other_interrupt
    iret

irq_disk:                       ; int 76h
    trap disk_interrupt
    iret

org 0xE2C3
    iret                        ; NMI

org 0xE3FE
    jmp disk
org 0xE6F2
    jmp bootstrap

org 0xE6F5
configuration:                  ; int 15h AH=C0h: model FC (AT), two PICs, RTC, keyboard hook, EBDA
    dw 8
    db 0xFC, 0x01, 0x00, 0x74, 0x40, 0, 0, 0

org 0xE729
baud_rates:                     ; divisors for 110 to 9600 baud
    dw 0x417, 0x300, 0x180, 0xC0, 0x60, 0x30, 0x18, 0x0C

org 0xE739
serial:
    trap serial
    jc serial.wait
    iret
serial.wait:
    sti
    nop
    cli
    jmp serial

org 0xE82E
keyboard:
    trap keyboard
    jc keyboard.wait
    iret
keyboard.wait:
    sti
    hlt
    cli
    jmp keyboard

org 0xE987
irq_keyboard:                   ; int 09h
    push ax
    in al, 0x60
    mov ah, 0x4F
    stc
    int 0x15                    ; carry clear: somebody else has dealt with it
    jnc irq_keyboard.done
    cli
    trap scan_code              ; AL becomes what remains to be done
    cmp al, 0x05
    je irq_keyboard.print
    cmp al, 0x1B
    je irq_keyboard.break
    cmp al, 0x85
    je irq_keyboard.request
    cmp al, 0x13
    je irq_keyboard.pause
irq_keyboard.done:
    cli
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
irq_keyboard.print:
    mov al, 0x20
    out 0x20, al
    int 0x05
    pop ax
    iret
irq_keyboard.break:
    mov al, 0x20
    out 0x20, al
    int 0x1B
    pop ax
    iret
irq_keyboard.request:
    mov al, 0x20
    out 0x20, al
    mov al, ah
    mov ah, 0x85
    int 0x15
    pop ax
    iret
irq_keyboard.pause:
    mov al, 0x20
    out 0x20, al
    push ds
    mov ax, 0x40
    mov ds, ax
irq_keyboard.paused:
    sti
    hlt
    test byte [0x18], 0x08
    jnz irq_keyboard.paused
    pop ds
    pop ax
    iret

org 0xEC59
disk:
    trap disk
    jc disk                     ; the disk had failed, and the machine stood still
    iret

org 0xEF57
    jmp irq_other
org 0xEFC7
diskette_parameters:            ; 1.44 MB: step and head times, 512 bytes, 18 sectors, gaps, F6
    db 0xAF, 0x02, 0x25, 0x02, 0x12, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08

org 0xEFD2
printer:
    trap printer
    iret

org 0xF065
video:
    trap video
    iret

org 0xF841
memory_size:
    trap memory_size
    iret

org 0xF84D
equipment:
    trap equipment
    iret

org 0xF859
system:
    trap system
    jc system.wait
    iret
system.wait:
    sti
    jz system.spin
    hlt
    jmp system.again
system.spin:
    push cx
    mov cx, 200
system.spinning:
    loop system.spinning
    pop cx
system.again:
    cli
    trap system_wait
    jc system.wait
    iret

vbe_window:                     ; a far call
    trap vbe_window
    retf

protected_mode_call:            ; 32-bit code: the PCI BIOS through BIOS32 (a far call)
    trap pci_bios
    db 0xCB
bios32_directory:
    trap bios32_directory
    db 0xCB

org 0xFE6E
time_of_day:
    trap time_of_day
    jc time_of_day.wait
    iret
time_of_day.wait:
    sti
    nop
    cli
    jmp time_of_day

org 0xFEA5
irq_timer:                      ; int 08h
    push ds
    push ax
    mov ax, 0x40
    mov ds, ax
    inc dword [0x6C]
    cmp dword [0x6C], 0x1800B0  ; 24 hours of 1193182 / 65536 Hz
    jb irq_timer.chain
    mov dword [0x6C], 0
    inc byte [0x70]
irq_timer.chain:
    int 0x1C
    cli
    mov al, 0x20
    out 0x20, al
    pop ax
    pop ds
    iret

org 0xFF53
nothing:
    iret
org 0xFF54
print_screen:
    trap print_screen
    iret

org 0xFFF0
    jmp 0xF000:post
    db 0x31, 0x31, 0x2F, 0x32, 0x36, 0x2F, 0x32, 0x36
    db 0, 0xFC, 0
"""

VECTORS: dict[int, str] = {
    0x02: "nothing",
    0x05: "print_screen",
    0x08: "irq_timer",
    0x09: "irq_keyboard",
    **dict.fromkeys(range(0x0A, 0x10), "irq_other"),
    0x10: "video",
    0x11: "equipment",
    0x12: "memory_size",
    0x13: "disk",
    0x14: "serial",
    0x15: "system",
    0x16: "keyboard",
    0x17: "printer",
    0x18: "boot_failed",
    0x19: "bootstrap",
    0x1A: "time_of_day",
    0x40: "disk",
    0x42: "video",
    0x70: "irq_rtc",
    0x71: "irq_redirected",
    0x72: "irq_other",
    0x73: "irq_other",
    0x74: "irq_mouse",
    0x75: "irq_fpu",
    0x76: "irq_disk",
    0x77: "irq_other",
}
"""Interrupt vectors that lead to code; all others lead to ``nothing``."""


@dataclass
class Rom:
    """``image``: the bytes from F0000 on.  ``labels``: offsets.  ``traps``: offset to name."""

    image: bytearray
    labels: dict[str, int]
    traps: dict[int, str] = field(default_factory=dict)

    def far(self, label: str) -> int:
        """The far pointer (segment << 16 | offset) to a label."""
        return ROM_SEGMENT << 16 | self.labels[label]


@cache
def build() -> Rom:
    """Assemble the code and lay out the data beside it."""
    from vdisk.vm._bios.rom_data import pieces

    program = Assembler(CODE, ROM_SIZE, TRAP_PORT).assemble(SOURCE)
    image = bytearray(ROM_SIZE)
    image[CODE:] = program.code
    labels = dict(program.labels)
    offset = DATA
    for name, data in pieces():
        labels[name] = offset
        image[offset : offset + len(data)] = data
        offset += -(-len(data) // 16) * 16
    if offset > TABLES:
        raise AssertionError(f"{offset - TABLES} bytes of ROM data too many")
    parameters = ROM_SEGMENT << 16 | labels["mode_parameters"]
    image[labels["save_area"] : labels["save_area"] + 4] = parameters.to_bytes(4, "little")
    image[-1] = -sum(image[:-1]) & 0xFF
    return Rom(image, labels, program.traps)
