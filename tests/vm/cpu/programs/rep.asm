; REP string instructions that fault in the middle: registers say how far they came, and they go on.
%include "common.inc"
%include "long.inc"

MAPPED equ 0x40000000                   ; two pages, the second comes and goes

start64:
        mov qword [PDPT + 8], PD + 0x2000 | P | W
        mov qword [PD + 0x2000], PT | P | W
        mov qword [PT], 0x200000 | P | W
        SET_GATE 14, on_fault, 0x8e00
        SAY "STOSD: "
        mov edi, MAPPED + 0xff0
        mov ecx, 9
        mov eax, 0x11223344
        rep stosd
;= STOSD: #02 cr2 0000000040001000 cx 05 si 0000 di 1000
        SAY "goes on: "
        NUMBER 2, rcx
        NUMBER 4, rdi
        SAY " "
        NUMBER 8, [0x200ffc]
        NUMBER 8, [0x300010]
        LINE
;= goes on: 001014 1122334411223344
        SAY "MOVSB backwards: "
        call unmap
        std
        mov esi, MAPPED + 0x1003
        mov edi, MAPPED + 0xffb
        mov ecx, 8
        rep movsb
        cld
;= MOVSB backwards: #00 cr2 0000000040001003 cx 08 si 1003 di 0ffb
        SAY "MOVSQ, the target: "
        call unmap
        mov esi, MAPPED + 0x800
        mov edi, MAPPED + 0xff8
        mov ecx, 3
        rep movsq
;= MOVSQ, the target: #02 cr2 0000000040001000 cx 02 si 0808 di 1000
        SAY "MOVSQ across the border: "
        call unmap
        mov qword [0x300000], -1
        mov esi, MAPPED + 0x800
        mov edi, MAPPED + 0xffc
        mov ecx, 1
        rep movsq
;= MOVSQ across the border: #02 cr2 0000000040001000 cx 01 si 0800 di 0ffc
        SAY "CMPSB: "
        call unmap
        mov esi, MAPPED + 0xffe
        mov edi, same
        mov word [0x200ffe], 0x4141
        mov dword [0x300000], 0x42414141
        mov ecx, 100
        repe cmpsb
;= CMPSB: #00 cr2 0000000040001000 cx 62 si 1000 di same+2
        SAY "ends where it differs: "
        NUMBER 2, rcx
        LINE
;= ends where it differs: 5e
        SAY "SCASB: "
        call unmap
        mov edi, MAPPED + 0xffe
        mov ecx, 100
        mov al, 0x42
        repne scasb
;= SCASB: #00 cr2 0000000040001000 cx 62 si 0000 di 1000
        NUMBER 2, rcx
        LINE
;= 5e
        SAY "LODSB: "
        call unmap
        mov esi, MAPPED + 0xffe
        mov ecx, 3
        rep lodsb
;= LODSB: #00 cr2 0000000040001000 cx 01 si 1000 di 0000
        SAY "no count, no fault: "
        call unmap
        xor ecx, ecx
        mov edi, MAPPED + 0x1000
        mov esi, edi
        rep movsb
        SAY "right", 10
;= no count, no fault: right
        SAY "32-bit addresses: "
        mov rcx, 0x500000000
        mov rdi, 0x500000000 | 0x200000
        a32 rep stosb
        NUMBER 16, rcx
        SAY " "
        NUMBER 16, rdi
        LINE
;= 32-bit addresses: 0000000500000000 0000000500200000
        mov rcx, 0x500000002
        a32 rep stosb
        NUMBER 16, rcx
        SAY " "
        NUMBER 16, rdi
        LINE
;= 0000000000000000 0000000000200002
        SAY "overlapping: "
        mov rax, 0x8877665544332211
        mov [0x200000], rax
        mov esi, 0x200000
        mov edi, 0x200001
        mov ecx, 7
        rep movsb
        NUMBER 16, [0x200000]
        SAY " "
        mov [0x200000], rax
        mov esi, 0x200000
        mov edi, 0x200003
        mov ecx, 5
        rep movsb
        NUMBER 16, [0x200000]
        LINE
;= overlapping: 1111111111111111 2211332211332211
        END

unmap:  mov qword [PT + 8], 0
        invlpg [MAPPED + 0x1000]
        xor esi, esi
        xor edi, edi
        ret

on_fault:                               ; note the registers, map the page, try again
        mov r8, rcx
        mov r9, rsi
        mov r10, rdi
        pushf
        cld
        SAY "#"
        NUMBER 2, [rsp + 24]
        SAY " cr2 "
        push rax
        mov rax, cr2
        NUMBER 16, rax
        pop rax
        SAY " cx "
        NUMBER 2, r8
        SAY " si "
        NUMBER 4, r9
        SAY " di "
        mov r11, r10
        sub r11, same + 2
        jnz .number
        SAY "same+2"
        jmp .printed
.number:
        NUMBER 4, r10
.printed:
        LINE
        mov qword [PT + 8], 0x300000 | P | W
        invlpg [MAPPED + 0x1000]
        popf
        add rsp, 8
        iretq

same:   times 16 db 0x41
        times 100 db 0x43
        IMAGE_END
