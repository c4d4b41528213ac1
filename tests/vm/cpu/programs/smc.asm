; Self-modifying code: a store to code is seen by the instructions that follow it.
%include "common.inc"
%include "long.inc"

SECOND equ 0x40000000                   ; the image's memory again, at another address
ACROSS equ 0x300ffe                     ; the end of a page

%macro RESULT 1
        SAY %1
        NUMBER 8, rax
        LINE
%endmacro

start64:
        mov dword [.next + 1], 0x1111
.next:  mov eax, 0
        RESULT "the next instruction: "
;= the next instruction: 00001111
        xor eax, eax
        mov ecx, 5
.loop:  add eax, 1
        inc byte [.loop + 2]            ; the immediate of ADD
        dec ecx
        jnz .loop
        RESULT "a loop that changes itself: "
;= a loop that changes itself: 0000000f
        mov byte [.loop + 2], 1
        call subroutine
        mov byte [subroutine + 1], 0x22
        call subroutine
        RESULT "a subroutine in this page: "
;= a subroutine in this page: 00000022
        mov ebx, far_away
        call rbx
        mov dword [far_away + 1], 0x3333
        call rbx
        RESULT "one in another page: "
;= one in another page: 00003333
        mov esi, patched
        mov edi, copied
        mov ecx, patched_end - patched
        rep movsb
        call copied
        mov esi, patched2
        mov edi, copied
        mov ecx, patched_end - patched
        rep movsb
        call copied
        RESULT "by REP MOVSB: "
;= by REP MOVSB: 00005555
        mov qword [PDPT + 8], PD + 0x2000 | P | W
        mov qword [PD + 0x2000], 0 | P | W | PS
        call copied
        mov dword [SECOND + copied + 1], 0x6666
        call copied
        RESULT "through another address: "
;= through another address: 00006666
        mov byte [ACROSS], 0xb8         ; mov eax, imm32 from one page to the next
        mov dword [ACROSS + 1], 0x7777
        mov byte [ACROSS + 5], 0xc3
        mov ebx, ACROSS
        call rbx
        mov byte [ACROSS + 3], 0x12
        call rbx
        RESULT "an instruction in two pages: "
;= an instruction in two pages: 00127777
        mov r15, rsp
        lea rsp, [.pushed + 8]
        mov rax, 0x90c0ff9090909090     ; five NOPs, one INC EAX, one NOP
        mov ecx, 0x88
        push rax
.pushed:
        times 4 inc ecx
        mov rsp, r15
        lea eax, [rax + rcx]
        RESULT "by a push: "
;= by a push: 90909119
        xor edx, edx
        lock xadd [.locked + 1], edx
        mov edx, 0x99
        lock xadd [.locked + 1], edx
.locked:
        mov eax, 0
        RESULT "by LOCK XADD: "
;= by LOCK XADD: 00000099
        xor eax, eax
        mov ebp, 20000
.hot:   call target
        dec ebp
        jnz .hot
        RESULT "20000 turns: "
;= 20000 turns: 00004e20
        mov byte [target + 2], 3        ; ADD EAX, 3
        xor eax, eax
        mov ebp, 20000
.hot2:  call target
        dec ebp
        jnz .hot2
        RESULT "after a change: "
;= after a change: 0000ea60
        END

subroutine:
        mov al, 0x21
        movzx eax, al
        ret
patched:
        mov eax, 0x4444
        ret
patched_end:
patched2:
        mov eax, 0x5555
        ret
copied: times 16 nop
target: add eax, 1
        ret
        align 4096
far_away:
        mov eax, 0
        ret
        IMAGE_END
