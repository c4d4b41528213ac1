; Virtual-8086 mode: segments, what IOPL takes away, how it is left and entered again.
%include "common.inc"
%include "protected.inc"

V86_SEGMENT equ BASE >> 4

%macro V86 1-2 0x20002                  ; label: run it with IOPL of the flags until a fault
        mov dword [resume], %%after
        mov dword [origin], %1 - boot
        mov [resume_sp], esp
        push dword V86_SEGMENT          ; GS FS DS ES
        push dword V86_SEGMENT
        push dword V86_SEGMENT
        push dword V86_SEGMENT
        push dword V86_SEGMENT          ; SS:SP
        push dword 0xe000
        push dword %2
        push dword V86_SEGMENT
        push dword %1 - boot
        iret
%%after:
%endmacro

start32:
        mov word [tss + 102], 0x68
        mov word [gdt + TSS32], 0x68 + 17
        and byte [gdt + TSS32 + 5], ~2
        mov eax, TSS32
        ltr ax
        SAY "segments count paragraphs: "
        V86 segments
        NUMBER 8, [seen]
        LINE
;= segments count paragraphs: #06(0000) +11
;= 12345678
        SAY "HLT: "
        V86 halt
;= HLT: #0d(0000) +00
        SAY "CLI with IOPL 0: "
        V86 cli_
;= CLI with IOPL 0: #0d(0000) +00
        SAY "CLI with IOPL 3: "
        V86 cli_, 0x23202
;= CLI with IOPL 3: #06(0000) +01
        SAY "PUSHF with IOPL 0: "
        V86 pushf_
;= PUSHF with IOPL 0: #0d(0000) +00
        SAY "PUSHF with IOPL 3: "
        V86 pushf_, 0x23002
        NUMBER 4, [seen]
        LINE
;= PUSHF with IOPL 3: #06(0000) +05
;= 3002
        SAY "POPF with IOPL 3: "
        V86 popf_, 0x23002
        NUMBER 4, [seen]
        LINE
;= POPF with IOPL 3: #06(0000) +09
;= 3ad7
        SAY "INT with IOPL 0: "
        V86 int_
;= INT with IOPL 0: #0d(0000) +00
        SAY "INT with IOPL 3 to ring 0: "
        SET_GATE 0x21, CODE32, from_v86, 0xee00
        V86 int_, 0x23002
;= INT with IOPL 3 to ring 0: 1000:e000 flags 00023002 DS 0000 GS 1000; #06(0000) +02
        SAY "INT3: "
        V86 int3_
;= INT3: #0d(001a) +00
        SAY "port allowed by the map: "
        V86 port, 0x23002
;= port allowed by the map: #06(0000) +02
        SAY "port that is not, even with IOPL 3: "
        V86 port2, 0x23002
;= port that is not, even with IOPL 3: #0d(0000) +00
        SAY "CR0: "
        V86 cr0_
;= CR0: #0d(0000) +00
        SAY "SMSW: "
        V86 smsw_
        NUMBER 1, [seen]
        LINE
;= SMSW: #06(0000) +06
;= 1
        SAY "nor does MONITOR: "
        V86 monitor_
;= nor does MONITOR: #06(0000) +00
        SAY "LLDT does not exist: "
        V86 lldt_
;= LLDT does not exist: #06(0000) +00
        SAY "the word at ffff: "
        V86 border
;= the word at ffff: #0d(0000) +00
;q the word at ffff: #06(0000) +07
        SAY "the stack at ffff: "
        V86 stack_border
;= the stack at ffff: #0c(0000) +03
;q the stack at ffff: #06(0000) +04
        SAY "far jump: "
        V86 far_jump
;= far jump: #06(0000) +05
        END

        bits 32
from_v86:
        mov eax, DATA32
        mov ds, eax
        NUMBER 4, [esp + 8 + 16]
        SAY ":"
        NUMBER 4, [esp + 8 + 12]
        SAY " flags "
        NUMBER 8, [esp + 8 + 8]
        SAY " DS "
        xor eax, eax
        mov ds, eax
        mov eax, ds
        push eax
        mov eax, DATA32
        mov ds, eax
        pop eax
        NUMBER 4, eax
        SAY " GS "
        NUMBER 4, [esp + 8 + 32]
        SAY "; "
        iret

        bits 16
segments:
        mov ax, (0x52340 >> 4) & 0xffff
        mov fs, ax
        mov eax, 0x12345678
        jmp short .on
.on:    mov [O(seen)], eax
        ud2
halt:   hlt
cli_:   cli
        ud2
pushf_: pushf
        pop word [O(seen)]
        ud2
popf_:  push word 0x0ad7
        popf
        pushf
        pop word [O(seen)]
        ud2
int_:   int 0x21
        ud2
int3_:  int3
        ud2
port:   in al, 0x80
        ud2
port2:  in al, 0x81
        ud2
cr0_:   mov eax, cr0
smsw_:  smsw ax
        mov [O(seen)], al
        ud2
lldt_:  lldt ax
monitor_: monitor
border: mov ax, [0xffff]
stack_border:
        mov sp, 1
        push ax
        ud2
far_jump:
        jmp V86_SEGMENT:O(.there)
.there: ud2
        bits 32
        align 8
seen:   dq 0
        IMAGE_END
