; 32-bit task switches: by JMP, CALL, a task gate, an interrupt; what they save, load and mark.
%include "common.inc"
%include "protected.inc"

OTHER equ SPARE                         ; the other task's TSS
TASKGATE equ SPARE + 8
USERTASK equ SPARE + 16

%macro REPORT_TASK 1                    ; text: TR, NT, TS, back link of this task's TSS at EBP
        SAY %1
        str eax
        NUMBER 4, eax
        pushf
        pop eax
        shr eax, 14
        NUMBER 1, eax
        smsw ax
        shr eax, 3
        and eax, 1
        NUMBER 1, eax
        LINE
%endmacro

start32:
        SET_DESCRIPTOR OTHER, L(other), 0x67, 0x0089
        SET_DESCRIPTOR TASKGATE, (OTHER << 16), 0, 0x0085
        mov dword [gdt + TASKGATE], OTHER << 16
        mov dword [gdt + TASKGATE + 4], 0x8500
        clts
        REPORT_TASK "first: "
;= first: 002800
        mov ebx, 0x11111111
        mov esi, 0x22222222
        jmp dword OTHER:0
        SAY "back by JMP "
        NUMBER 8, ebx
        NUMBER 8, esi
        LINE
;= in the other: 004001
;= its registers cafe0001cafe0006
;= first is not busy: 89, this one is: 8b
;= EIP and EBX of the first 00111111111
;= back by JMP 1111111122222222
        clts
        call dword OTHER:0
;= called: 004011
;= its back link 0028, the first is busy: 8b
        REPORT_TASK "back by IRET: "
;= back by IRET: 002801
        SAY "the other is not busy: "
        movzx eax, byte [gdt + OTHER + 5]
        NUMBER 2, eax
        LINE
;= the other is not busy: 89
        clts
        call dword TASKGATE:0
;= called: 004011
;= its back link 0028, the first is busy: 8b
        REPORT_TASK "back: "
;= back: 002801
        clts
        mov dword [idt + 0x31 * 8], OTHER << 16
        mov dword [idt + 0x31 * 8 + 4], 0x8500
        int 0x31
;= called: 004011
;= its back link 0028, the first is busy: 8b
        REPORT_TASK "back from the interrupt: "
;= back from the interrupt: 002801
        SAY "an exception with an error code, by a task gate: "
        mov dword [idt + 13 * 8], OTHER << 16
        mov dword [idt + 13 * 8 + 4], 0x8500
        mov dword [other + 32], with_error
        mov eax, 0x7f8
        mov ds, eax
        SAY "next", 10
;= an exception with an error code, by a task gate: 07f8 next
        mov dword [idt + 13 * 8], CODE32 << 16 | (L(stubs) + 13 * 16) & 0xffff
        mov dword [idt + 13 * 8 + 4], (L(stubs) & 0xffff0000) | 0x8e00
        SAY "an interrupt to a task with the T flag: "
        or byte [other + 100], 1
        mov dword [other + 32], traced_task
        clts
        SET_GATE 1, CODE32, on_debug, 0x8e00
        int 0x31
        SAY "an exception to such a task: "
        mov dword [idt + 13 * 8], OTHER << 16
        mov dword [idt + 13 * 8 + 4], 0x8500
        mov dword [other + 32], with_error
        mov eax, 0x7f8
        mov ds, eax
        mov dword [idt + 13 * 8], CODE32 << 16 | (L(stubs) + 13 * 16) & 0xffff
        mov dword [idt + 13 * 8 + 4], (L(stubs) & 0xffff0000) | 0x8e00
        LINE
        and byte [other + 100], ~1
        SET_GATE 1, CODE32, stubs + 16, 0x8e00
;= an interrupt to a task with the T flag: BT 8000 in TR 0040 at 000, on with it
;q an interrupt to a task with the T flag: on with it
;= an exception to such a task: BT 8000 in TR 0040 at fff, 07f8 
;q an exception to such a task: 07f8 
        SAY "busy: "
        or byte [gdt + OTHER + 5], 2
        TRY jmp dword OTHER:0
;= busy: #0d(0040) +00
        and byte [gdt + OTHER + 5], ~2
        SAY "absent: "
        and byte [gdt + OTHER + 5], ~0x80
        TRY jmp dword OTHER:0
;= absent: #0b(0040) +00
        or byte [gdt + OTHER + 5], 0x80
        SAY "too small: "
        mov byte [gdt + OTHER], 0x66
        TRY jmp dword OTHER:0
;= too small: #0a(0040) +00
        mov byte [gdt + OTHER], 0x67
        SAY "back link to no TSS: "
        mov word [tss], DATA32
        pushf
        or dword [esp], 0x4000
        popf
        TRY iret
        pushf
        and dword [esp], ~0x4000
        popf
;= back link to no TSS: #0a(0010) +00
        END

other_task:
        REPORT_TASK "in the other: "
        SAY "its registers "
        NUMBER 8, ebx
        NUMBER 8, edi
        LINE
        SAY "first is not busy: "
        movzx eax, byte [gdt + TSS32 + 5]
        NUMBER 2, eax
        SAY ", this one is: "
        movzx eax, byte [gdt + OTHER + 5]
        NUMBER 2, eax
        LINE
        SAY "EIP and EBX of the first "
        mov eax, [tss + 32]
        shr eax, 16
        NUMBER 3, eax
        NUMBER 8, [tss + 52]
        LINE
        clts
        jmp dword TSS32:0
.again: REPORT_TASK "called: "
        SAY "its back link "
        NUMBER 4, [other]
        SAY ", the first is busy: "
        movzx eax, byte [gdt + TSS32 + 5]
        NUMBER 2, eax
        LINE
        clts
        iret
        jmp .again

on_debug:                               ; what TSS.T ends in, before the first instruction
        SAY "BT "
        push eax
        mov eax, dr6
        and eax, 0xe00f
        NUMBER 4, eax
        mov eax, 0
        mov dr6, eax
        SAY " in TR "
        str eax
        NUMBER 4, eax
        SAY " at "
        mov eax, [esp + 4]
        sub eax, traced_task
        cmp eax, with_error - traced_task
        jne .there
        mov eax, 0xfff
.there: NUMBER 3, eax
        SAY ", "
        pop eax
        iret
traced_task:
        SAY "on with it", 10
        clts
        iret

with_error:
        pop eax
        NUMBER 4, eax
        SAY " "
        mov eax, [tss + 32]
        add eax, 2
        mov [tss + 32], eax
        iret

        align 16
other:  dd 0, 0, 0, 0, 0, 0, 0, 0
        dd other_task, 2
        dd 0xcafe0000, 0xcafe0003, 0xcafe0002, 0xcafe0001, 0x9c000, 0xcafe0004, 0xcafe0005, 0xcafe0006
        dd DATA32, CODE32, DATA32, DATA32, DATA32, DATA32, 0
        dw 0, 0x68
        IMAGE_END
