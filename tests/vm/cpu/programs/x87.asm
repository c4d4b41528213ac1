; x87 registers through what happens between instructions: ports, faults, interrupts, MMX, FXSAVE,
; exceptions that are unmasked and masked again.  QEMU 7.2 knows no stack overflow, and no unmasked
; exceptions but some.
%include "common.inc"
%include "long.inc"

%macro STATUS 0                         ; the status word
        fnstsw ax
        movzx eax, ax
        NUMBER 4, rax
%endmacro
%macro WHOLE 1                          ; pop ST(0) as an integer and print that many digits
        fistp qword [cell]
        NUMBER %1, [cell]
%endmacro

start64:
        mov rax, cr0
        or eax, 0x20                    ; NE
        mov cr0, rax
        fninit
        SAY "across a port: "
        fld1
        fldpi
        fldpi
        SAY "fmul "
        fmulp
        SAY "fadd "
        faddp
        STATUS
        SAY " "
        WHOLE 4
        LINE
;= across a port: fmul fadd 3820 000b
        fnclex
        SAY "a loop: "
        xor ecx, ecx
        fldz
.loop:  mov [cell], rcx
        fild qword [cell]
        fadd dword [half]
        fstp qword [cell + 8]
        fadd qword [cell + 8]
        fld st0
        fstp tword [cell + 16]
        fstp st0
        fld tword [cell + 16]
        inc ecx
        cmp ecx, 200
        jb .loop
        WHOLE 8
        LINE
;= a loop: 00004e20
        SAY "conditions: "
        fld1
        fldpi
        xor ebx, ebx
        mov ecx, 300
.compare:
        fcomi st1
        seta al
        movzx eax, al
        add ebx, eax
        fxch
        fcom st1
        fnstsw ax
        sahf
        adc ebx, 0
        fcmovb st1
        fcmovnb st1
        fstp st1
        fld1
        fxch
        dec ecx
        jnz .compare
        NUMBER 4, rbx
        SAY " "
        fcompp
        STATUS
        LINE
;= conditions: 0258 0000
        SAY "a store that faults: "
        fld1
        fldpi
        TRY fistp qword [-0x100]
        STATUS
        SAY " "
        WHOLE 4
        WHOLE 4
        LINE
;= a store that faults: #0e(0002) +00 cr2 ffffffffffffff00
;= 3000 00030001
;q 3020 00030001
        SAY "a load that faults: "
        fnclex
        fldpi
        TRY fadd qword [0x7fffffffffff0000 >> 8]
        STATUS
        SAY " "
        WHOLE 4
        LINE
;= a load that faults: #0e(0000) +00 cr2 ffffffffffffff00
;= 3800 0003
        SAY "TS comes and goes: "
        fnclex
        fldpi
        mov rax, cr0
        or eax, 8
        mov cr0, rax
        TRY fadd st0
        clts
        fadd st0
        WHOLE 4
        LINE
;= TS comes and goes: #07(0000) +00
;= 0006
        SAY "MMX after x87: "
        fnclex
        fldpi
        movq mm1, [mmx]
        paddd mm1, mm1
        movq [cell], mm1
        NUMBER 16, [cell]
        SAY " "
        fnstenv [env]
        NUMBER 4, [env + 8]
        STATUS
        emms
        fldpi
        SAY " "
        WHOLE 4
        LINE
;= MMX after x87: 2222222244444444 01590000 0003
        SAY "the image of FXSAVE: "
        fninit
        fld1
        fldpi
        fxsave [area]
        NUMBER 16, [area]
        NUMBER 16, [area + 32]
        NUMBER 16, [area + 48]
        fninit
        fldz
        fxrstor [area]
        faddp
        SAY " "
        WHOLE 4
        LINE
;= the image of FXSAVE: 000000c03000037fc90fdaa22168c2358000000000000000 0004
        SAY "divide, then unmask: "
        fninit
        fld1
        fldz
        fdivp
        fldcw [zero_divide]
        STATUS
        LINE
        TRY fwait
        TRY fld1
        fnclex
        fld1
        faddp
        STATUS
        LINE
;= divide, then unmask: b884
;q divide, then unmask: 3804
;= #10(0000) +00
;q none
;= #10(0000) +00
;q none
;= 3800
;q 3000
        SAY "unmasked from the beginning: "
        fninit
        fldcw [zero_divide]
        fldpi
        fldz
        fdivp
        STATUS
        TRY fld1
        fnclex
        STATUS
        fldcw [all_masked]
        fdivrp
        SAY " "
        WHOLE 4
        LINE
;= unmasked from the beginning: b084#10(0000) +00
;q unmasked from the beginning: b884none
;= 3000 0000
        SAY "overflow unmasked: "
        fninit
        fldcw [overflow]
        fld tword [largest]
        fmul st0
        STATUS
        fnclex
        SAY " "
        fstp tword [cell]
        NUMBER 4, [cell + 8]
        NUMBER 16, [cell]
        LINE
;= overflow unmasked: b8a8 5ffefffffffffffffffe
;q overflow unmasked: b8a8 7fff8000000000000000
        SAY "the stack overflows: "
        fninit
%rep 9
        fld1
%endrep
        STATUS
        fstp tword [cell]
        NUMBER 4, [cell + 8]
        NUMBER 16, [cell]
        LINE
;= the stack overflows: 3a41ffffc000000000000000
;q the stack overflows: 38003fff8000000000000000
        SAY "rounding by FLDCW: "
        fninit
        mov ecx, 4
.round: mov eax, ecx
        dec eax
        shl eax, 10
        or eax, 0x37f
        mov [cell], eax
        fldcw [cell]
        fld qword [two_and_a_half]
        fchs
        WHOLE 2
        fnstcw [cell]
        NUMBER 4, [cell]
        SAY " "
        dec ecx
        jnz .round
        STATUS
        LINE
;= rounding by FLDCW: fe0f7f fe0b7f fd077f fe037f 0020
        END

        align 16
half:   dd 0.5
        align 8
two_and_a_half: dq 2.5
mmx:    dq 0x1111111122222222
largest: dd -1, -1
        dw 0x7ffe
zero_divide: dw 0x37b
overflow: dw 0x377
all_masked: dw 0x37f
        align 16
cell:   times 4 dq 0
env:    times 28 db 0
        align 16
area:   times 512 db 0
        IMAGE_END
