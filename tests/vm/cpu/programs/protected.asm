; Segmentation in 32-bit protected mode: limits, types, privilege, gates.
%include "common.inc"
%include "protected.inc"

SMALL equ SPARE                         ; 0..0xfff, data
DOWN equ SPARE + 8                      ; expand-down: 0x1000..0xffffffff
ABSENT equ SPARE + 16
READONLY equ SPARE + 24
EXECONLY equ SPARE + 32
CONFORMING equ SPARE + 40
CALLGATE equ SPARE + 48                 ; DPL 3, two parameters
CALLGATE0 equ SPARE + 56                ; DPL 0
BIG equ SPARE + 64                      ; page granular, 0..0x1fff
LDT1 equ SPARE + 72

start32:
        SET_DESCRIPTOR SMALL, 0x50000, 0xfff, 0x0093
        SET_DESCRIPTOR DOWN, 0, 0xfff, 0x4097
        SET_DESCRIPTOR ABSENT, 0, 0xfff, 0x4013
        SET_DESCRIPTOR READONLY, 0, 0xfffff, 0xc091
        SET_DESCRIPTOR EXECONLY, 0, 0xfffff, 0xc099
        SET_DESCRIPTOR CONFORMING, 0, 0xfffff, 0xc09f
        SET_DESCRIPTOR BIG, 0x50000, 1, 0x8093
        SET_DESCRIPTOR LDT1, L(ldt1), 15, 0x0082
        mov dword [gdt + CALLGATE], CODE32 << 16 | (L(gated) & 0xffff)
        mov dword [gdt + CALLGATE + 4], 0xec02 | (L(gated) & 0xffff0000)
        mov dword [gdt + CALLGATE0], CODE32 << 16 | (L(gated) & 0xffff)
        mov dword [gdt + CALLGATE0 + 4], 0x8c02 | (L(gated) & 0xffff0000)

        SAY "limit, byte at the end: "
        mov eax, SMALL
        mov fs, eax
        TRY mov al, [fs:0xfff]
;= limit, byte at the end: none
        SAY "limit, word across the end: "
        TRY mov ax, [fs:0xfff]
;= limit, word across the end: #0d(0000) +00
;q limit, word across the end: none
        SAY "limit, dword that wraps: "
        TRY mov eax, [fs:0xfffffffe]
;= limit, dword that wraps: #0d(0000) +00
;q limit, dword that wraps: none
        SAY "page granular limit: "
        mov eax, BIG
        mov fs, eax
        TRY mov eax, [fs:0x1ffc]
;= page granular limit: none
        SAY "page granular limit, past it: "
        TRY mov eax, [fs:0x1ffd]
;= page granular limit, past it: #0d(0000) +00
;q page granular limit, past it: none
        SAY "expand-down, below: "
        mov eax, DOWN
        mov fs, eax
        TRY mov al, [fs:0xfff]
;= expand-down, below: #0d(0000) +00
;q expand-down, below: none
        SAY "expand-down, above: "
        TRY mov al, [fs:0x1000]
;= expand-down, above: none
        SAY "stack limit: "
        TRY call small_stack
;= stack limit: #0c(0000) +far
;q stack limit: #06(0000) +far
        SAY "null selector loaded: "
        TRY mov fs, [zero]
;= null selector loaded: none
        SAY "null selector used: "
        TRY mov al, [fs:0]
;= null selector used: #0d(0000) +00
;q null selector used: none
        SAY "null into SS: "
        TRY mov ss, [zero]
;= null into SS: #0d(0000) +00
        SAY "absent into FS: "
        mov eax, ABSENT
        TRY mov fs, eax
;= absent into FS: #0b(0050) +00
        SAY "absent into SS: "
        mov eax, ABSENT
        TRY mov ss, eax
;= absent into SS: #0c(0050) +00
        SAY "beyond the table: "
        mov eax, 0x7fb
        TRY mov es, eax
;= beyond the table: #0d(07f8) +00
        SAY "of no LDT: "
        mov eax, 0x0c
        TRY mov es, eax
;= of no LDT: #0d(000c) +00
        SAY "LDT loaded: "
        mov eax, LDT1
        TRY lldt ax
;= LDT loaded: none
        SAY "of the LDT: "
        mov eax, 0x0c
        TRY mov es, eax
;= of the LDT: none
        SAY "beyond the LDT: "
        mov eax, 0x14
        TRY mov es, eax
;= beyond the LDT: #0d(0014) +00
        SAY "write to read-only: "
        mov eax, READONLY
        mov fs, eax
        TRY mov [fs:0x50000], al
;= write to read-only: #0d(0000) +00
;q write to read-only: none
        SAY "read of execute-only: "
        mov eax, EXECONLY
        TRY mov fs, eax
;= read of execute-only: #0d(0060) +00
        SAY "write to code: "
        TRY mov [cs:0x50000], al
;= write to code: #0d(0000) +00
;q write to code: none
        SAY "RPL above DPL: "
        mov eax, DATA32 | 3
        TRY mov fs, eax
;= RPL above DPL: #0d(0010) +00
        SAY "jump to data: "
        TRY jmp dword DATA32:0
;= jump to data: #0d(0010) +00
        SAY "jump to absent code: "
        SET_DESCRIPTOR ABSENT, 0, 0xfffff, 0xc01b
        TRY jmp dword ABSENT:0
;= jump to absent code: #0b(0050) +00
        SAY "jump beyond the limit: "
        SET_DESCRIPTOR ABSENT, 0, 0xfff, 0x409b
        TRY jmp dword ABSENT:0x1000
;= jump beyond the limit: #0d(0000) +00
        SAY "jump to a null selector: "
        TRY jmp dword 0:0
;= jump to a null selector: #0d(0000) +00

        SAY "LAR of code: "
        mov ecx, CODE32
        lar eax, ecx
        and eax, 0xf0ff00
        NUMBER 8, eax
        LINE
;= LAR of code: 00c09b00
        SAY "LSL of code: "
        lsl eax, ecx
        NUMBER 8, eax
        LINE
;= LSL of code: ffffffff
        SAY "LAR of null sets ZF: "
        xor ecx, ecx
        lar eax, ecx
        setz al
        NUMBER 1, eax
        LINE
;= LAR of null sets ZF: 0
        SAY "VERR VERW of code: "
        mov ecx, CODE32
        verr cx
        setz al
        NUMBER 1, eax
        verw cx
        setz al
        NUMBER 1, eax
        LINE
;= VERR VERW of code: 10
        SAY "ARPL: "
        mov ecx, 0x10
        mov edx, 3
        arpl cx, dx
        setz al
        NUMBER 1, eax
        NUMBER 4, ecx
        LINE
;= ARPL: 10013

        SAY "HLT in ring 3: "
        TRY3 user_hlt
;= HLT in ring 3: #0d(0000) +00
        SAY "CLI in ring 3: "
        TRY3 user_cli
;= CLI in ring 3: #0d(0000) +00
        SAY "port in ring 3: "
        TRY3 user_port
;= port in ring 3: #0d(0000) +00
        SAY "port in ring 3, allowed by the map: "
        mov word [tss + 102], 0x68
        mov word [gdt + TSS32], 0x68 + 17
        and byte [gdt + TSS32 + 5], ~2
        mov eax, TSS32
        ltr ax
        TRY3 user_port
;= port in ring 3, allowed by the map: #06(0000) +02
        SAY "next port is not: "
        TRY3 user_port2
;= next port is not: #0d(0000) +00
        SAY "INT 20 of DPL 0 in ring 3: "
        TRY3 user_int
;= INT 20 of DPL 0 in ring 3: #0d(0102) +00
        SAY "INT 21 of DPL 3 in ring 3: "
        SET_GATE 0x21, CODE32, int21, 0xee00
        TRY3 user_int21
;= INT 21 of DPL 3 in ring 3: CS 001b CPL 0 FLAGS 0002 SS 0023; #06(0000) +02
        SAY "POPF keeps IF and IOPL in ring 3: "
        TRY3 user_popf
        NUMBER 4, [flags]
        LINE
;= POPF keeps IF and IOPL in ring 3: #06(0000) +0d
;= 0cd7
        SAY "data of DPL 0 in ring 3: "
        TRY3 user_data
;= data of DPL 0 in ring 3: #0d(0010) +05
        SAY "call to ring 0 code: "
        TRY3 user_far
;= call to ring 0 code: #0d(0008) +00
        SAY "call to conforming code: "
        TRY3 user_conforming
        NUMBER 4, [flags]
        LINE
;= call to conforming code: #06(0000) +0d
;= 006b
        SAY "call gate of DPL 0: "
        TRY3 user_gate0
;= call gate of DPL 0: #0d(0078) +01
        SAY "call gate: "
        TRY3 user_gate
;= call gate: 1111 2222 CS 001b; #06(0000) +11
        SAY "return to ring 3 clears DS of ring 0: "
        mov eax, L(leaving)
        mov [gdt + CALLGATE], ax
        TRY3 user_gate_ds
;= return to ring 3 clears DS of ring 0: #0d(0000) +11
;q return to ring 3 clears DS of ring 0: #06(0000) +16
        END

small_stack:                            ; a stack of 4 KiB, read past its end
        mov eax, SMALL
        mov ss, eax
        mov esp, 0x800
        mov eax, [ss:0x1000]
        ud2

leaving:
        mov eax, DATA32
        mov ds, eax
        retf 8

gated:  push ds
        push ebp
        mov ebp, esp
        push eax
        mov eax, DATA32
        mov ds, eax
        NUMBER 4, [ebp + 20]
        SAY " "
        NUMBER 4, [ebp + 16]
        SAY " CS "
        NUMBER 4, [ebp + 12]
        SAY "; "
        pop eax
        pop ebp
        pop ds
        retf 8

int21:  push eax
        mov eax, DATA32
        mov ds, eax
        SAY "CS "
        NUMBER 4, [esp + 16]
        SAY " CPL "
        mov eax, cs
        and eax, 3
        NUMBER 1, eax
        SAY " FLAGS "
        NUMBER 4, [esp + 20]
        SAY " SS "
        NUMBER 4, [esp + 28]
        SAY "; "
        mov eax, USERDATA32
        mov ds, eax
        pop eax
        iret

user_hlt:
        hlt
user_cli:
        cli
user_port:
        in al, 0x80
        ud2
user_port2:
        in al, 0x81
user_int:
        int 0x20
user_int21:
        int 0x21
        ud2
user_popf:
        push dword 0x3ed7 & ~0x100
        popf
        pushf
        pop dword [flags]
        ud2
user_data:
        mov eax, DATA32
        mov ds, eax
user_far:
        call dword CODE32:0
user_conforming:
        call dword CONFORMING:conforming
conforming:
        mov [flags], cs
        ud2
user_gate0:
        push eax
        call dword CALLGATE0:0
user_gate:
        push dword 0x1111
        push dword 0x2222
        call dword CALLGATE | 3:0
        ud2
user_gate_ds:
        push dword 0x1111
        push dword 0x2222
        call dword CALLGATE | 3:0
        mov al, [zero]
        ud2

zero:   dd 0
flags:  dd 0
        align 8
ldt1:   dq 0
        DESCRIPTOR 0, 0xfffff, 0xc093
        IMAGE_END
