; One processor changes code that another one executes, as systems do it: INT3 over the first byte,
; then the others, then the first; after each the other processor has to come by.
; processors: 2
%include "common.inc"
%include "protected.inc"
%include "processors.inc"

TIME equ 300000000                      ; of the time-stamp counter

%macro PATCH 2                          ; which byte of the site becomes what
        mov byte [site + %1], %2
        call passed
%endmacro

start32:
        START_OTHER
        SET_GATE 3, CODE32, on_breakpoint, 0x8e00
        SET_GATE 6, CODE32, on_other, 0x8e00
        mov dword [job], runner
        rdtsc
        mov ebp, eax
.again: PATCH 0, 0xcc
        PATCH 1, 0
        PATCH 0, 0xeb                   ; JMP to what follows
        PATCH 0, 0xcc
        PATCH 1, 0x90
        PATCH 0, 0x66                   ; NOP of two bytes
        rdtsc
        sub eax, ebp
        cmp eax, TIME
        jb .again
        mov dword [stop], 1
        call await
        SAY "trapped: "
        cmp dword [trapped], 0
        setne al
        movzx eax, al
        NUMBER 1, eax
        LINE
;= trapped: 1
        SAY "anything else: "
        NUMBER 8, [other]
        LINE
;= anything else: 00000000
        END

passed: mov ecx, [rounds]               ; until the other processor has been there twice
        add ecx, 2
.wait:  pause
        mov eax, [rounds]
        sub eax, ecx
        js .wait
        ret

runner: call site
        inc dword [rounds]
        cmp dword [stop], 0
        je runner
        ret

on_breakpoint:
        inc dword [trapped]
        mov dword [esp], site + 2
        iret
on_other:
        inc dword [other]
        mov dword [esp], site + 2
        iret

        align 64
site:   db 0x66, 0x90
        ret

        align 64
rounds: dd 0
trapped: dd 0
other:  dd 0
        IMAGE_END
