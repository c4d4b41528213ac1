; Descriptor tables in long mode: none is loaded from an address that is not canonical.
; not in QEMU: version 7.2 loads them from anywhere
%include "common.inc"
%include "long.inc"

FAR_LDT equ SPARE
FAR_TSS equ SPARE + 16
NEAR_LDT equ SPARE + 32

start64:
        SAY "LGDT: "
        TRY lgdt [far_table]
;= LGDT: #0d(0000) +00
        SAY "LIDT: "
        TRY lidt [far_table]
;= LIDT: #0d(0000) +00
        SAY "the highest that are: "
        sidt [kept]
        TRY lidt [high_table]
        lidt [kept]
;= the highest that are: none
        mov word [gdt + FAR_LDT + 5], 0x82
        mov dword [gdt + FAR_LDT + 8], 0x8000
        mov word [gdt + FAR_TSS], 0x67
        mov word [gdt + FAR_TSS + 5], 0x89
        mov dword [gdt + FAR_TSS + 8], 0xffff7fff
        mov word [gdt + NEAR_LDT + 5], 0x82
        mov dword [gdt + NEAR_LDT + 8], 0xffff8000
        SAY "LLDT: "
        mov eax, FAR_LDT
        TRY lldt ax
;= LLDT: #0d(0048) +00
        SAY "LTR: "
        mov eax, FAR_TSS
        TRY ltr ax
        SAY "and it is not busy: "
        movzx eax, byte [gdt + FAR_TSS + 5]
        NUMBER 2, rax
        LINE
;= LTR: #0d(0058) +00
;= and it is not busy: 89
        SAY "LLDT in the upper half: "
        mov eax, NEAR_LDT
        TRY lldt ax
;= LLDT in the upper half: none
        END

        align 8
far_table:
        dw 0xff
        dq 0x800000000000
high_table:
        dw 0xff
        dq 0xffff800000000000
kept:   dw 0
        dq 0
        IMAGE_END
