; Control registers in long mode refuse what would make no sense.
; not in QEMU: it takes all of this and hangs
%include "common.inc"
%include "long.inc"

start64:
        SAY "reserved bit of EFER: "
        mov ecx, EFER
        mov eax, 0xd03
        xor edx, edx
        TRY wrmsr
;= reserved bit of EFER: #0d(0000) +00
        SAY "LME off: "
        mov ecx, EFER
        mov eax, 0xc01
        xor edx, edx
        TRY wrmsr
;= LME off: #0d(0000) +00
        SAY "PAE off: "
        mov rax, cr4
        and eax, ~0x20
        TRY mov cr4, rax
;= PAE off: #0d(0000) +00
        SAY "reserved bit of CR4: "
        mov rax, cr4
        bts rax, 63
        TRY mov cr4, rax
;= reserved bit of CR4: #0d(0000) +00
        SAY "PG without PE: "
        mov rax, cr0
        and eax, ~1
        TRY mov cr0, rax
;= PG without PE: #0d(0000) +00
        SAY "NW without CD: "
        mov rax, cr0
        bts rax, 29
        TRY mov cr0, rax
;= NW without CD: #0d(0000) +00
        SAY "upper half of CR0: "
        mov rax, cr0
        bts rax, 32
        TRY mov cr0, rax
;= upper half of CR0: #0d(0000) +00
        SAY "reserved bit of CR3: "
        mov rax, PML4
        bts rax, 62
        TRY mov cr3, rax
;= reserved bit of CR3: #0d(0000) +00
        SAY "CR8 of more than 4 bits: "
        mov eax, 16
        TRY mov cr8, rax
;= CR8 of more than 4 bits: #0d(0000) +00
        SAY "CR1: "
        TRY db 0x0f, 0x20, 0xc8
;= CR1: #06(0000) +00
        SAY "upper half of DR7: "
        mov rax, 1 << 32 | 0x400
        TRY mov dr7, rax
;= upper half of DR7: #0d(0000) +00
        SAY "DR4 is DR6: "
        TRY db 0x0f, 0x21, 0xe0
;= DR4 is DR6: none
        SAY "with CR4.DE it is not: "
        mov rax, cr4
        or eax, 8
        mov cr4, rax
        TRY db 0x0f, 0x21, 0xe0
;= with CR4.DE it is not: #06(0000) +00
        SAY "MXCSR bit: "
        TRY ldmxcsr [mxcsr]
;= MXCSR bit: #0d(0000) +00
        SAY "LTR null: "
        xor eax, eax
        TRY ltr ax
;= LTR null: #0d(0000) +00
        END

mxcsr:  dd 0x80001f80
        IMAGE_END
