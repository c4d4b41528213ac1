; The 16-bit TSS: switches between it and a 32-bit one, from virtual-8086 mode too.
; not in QEMU: version 7.2 takes the selectors of a 16-bit TSS from the places of a 32-bit one's
%include "common.inc"
%include "protected.inc"

SMALL equ SPARE                         ; the TSS
V86_SEGMENT equ BASE >> 4

start32:
        mov byte [gdt + TSS32], 0x68
        SET_DESCRIPTOR SMALL, L(small), 0x2b, 0x0081
        mov dword [idt + 0x31 * 8], SMALL << 16
        mov dword [idt + 0x31 * 8 + 4], 0xe500

        SAY "called: "
        call dword SMALL:0
        call shown
;= called: registers ffff1111 ffff2222 ffffee00 flags 00004002 selectors 0010 0010 0000 0000 link 0028
        SAY "saved: "
        mov eax, [small + 14]
        sub eax, O(task16.end)
        NUMBER 4, eax
        SAY " "
        NUMBER 4, [small + 18]
        SAY " and nothing behind it: "
        NUMBER 4, [small + 44]
        LINE
;= saved: 0000 4321 and nothing behind it: cafe

        SAY "by an interrupt, with all flags: "
        mov word [small + 14], O(task16)
        push dword 0x240002             ; ID, AC
        popf
        int 0x31
        pushf
        pop ebx
        call shown
;= by an interrupt, with all flags: registers ffff4321 ffff2222 ffffee00 flags 00004002 selectors 0010 0010 0000 0000 link 0028
        SAY "they come back: "
        NUMBER 8, ebx
        LINE
;= they come back: 00240002
        push dword 2
        popf

        SAY "from virtual-8086 mode: "
        mov word [small + 14], O(task16)
        mov dword [resume], .after
        mov dword [origin], v86 - boot
        mov [resume_sp], esp
        push dword 0                    ; GS FS DS ES
        push dword 0
        push dword 0
        push dword 0
        push dword V86_SEGMENT          ; SS:SP
        push dword 0xe000
        push dword 0x23002
        push dword V86_SEGMENT
        push dword v86 - boot
        iret
.after: call shown
;= from virtual-8086 mode: #06(0000) +02
;= registers ffff4321 ffff2222 ffffee00 flags 00004002 selectors 0010 0010 0000 0000 link 0028
        END

shown:  SAY "registers "
        NUMBER 8, [was_eax]
        SAY " "
        NUMBER 8, [was_edi]
        SAY " "
        NUMBER 8, [was_esp]
        SAY " flags "
        NUMBER 8, [was_flags]
        SAY " selectors "
        NUMBER 4, [was_ds]
        SAY " "
        NUMBER 4, [was_es]
        SAY " "
        NUMBER 4, [was_fs]
        SAY " "
        NUMBER 4, [was_gs]
        SAY " link "
        NUMBER 4, [small]
        LINE
        ret

        bits 16
v86:    int 0x31
        ud2

task16: mov [dword was_eax], eax
        mov [dword was_edi], edi
        mov [dword was_esp], esp
        pushfd
        pop dword [dword was_flags]
        mov [dword was_ds], ds
        mov [dword was_es], es
        mov [dword was_fs], fs
        mov [dword was_gs], gs
        clts
        mov eax, 0x87654321
        iret
.end:
        bits 32
        align 8
was_eax: dd 0
was_edi: dd 0
was_esp: dd 0
was_flags: dd 0
was_ds: dw 0
was_es: dw 0
was_fs: dw 0
was_gs: dw 0
small:  dw 0, 0, 0, 0, 0, 0, 0
        dw O(task16), 2
        dw 0x1111, 0, 0, 0, 0xee00, 0, 0, 0x2222        ; AX CX DX BX SP BP SI DI
        dw DATA32, CODE16P, DATA16P, DATA32, 0
        dw 0xcafe
        IMAGE_END
