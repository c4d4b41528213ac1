; MONITOR and MWAIT: who may execute them, and waiting for another processor's stores and interrupts.
; What ends MWAIT early is the processor's affair, so every wait is a loop.
; processors: 2
; not in QEMU: its MONITOR checks no segment, and its MWAIT refuses what its CPUID offers
%include "common.inc"
%include "protected.inc"
%include "processors.inc"

MISC_ENABLE equ 0x1a0
FSM equ 1 << 18                         ; its bit
IPI equ 0x30
IRR equ APIC + 0x200
ROUNDS equ 100

%macro FEATURE 0                        ; what leaf 1 says of MONITOR
        mov eax, 1
        cpuid
        shr ecx, 3
        and ecx, 1
        NUMBER 1, ecx
%endmacro
%macro SET_FSM 1                        ; btr or bts
        mov ecx, MISC_ENABLE
        rdmsr
        %1 eax, 18
        wrmsr
%endmacro
%macro WATCH 1
        mov eax, %1
        xor ecx, ecx
        xor edx, edx
        monitor
%endmacro

start32:
        SAY "there: "
        FEATURE
        mov eax, 5
        cpuid
        SAY " line "
        NUMBER 4, eax
        SAY " "
        NUMBER 4, ebx
        SAY " extensions "
        NUMBER 1, ecx
        SAY " states "
        NUMBER 8, edx
        LINE
;= there: 1 line 0040 0040 extensions 3 states 00000000
        SAY "MWAIT for nothing: "
        xor ecx, ecx
        TRY mwait
;= MWAIT for nothing: none
        SAY "MONITOR with an extension: "
        mov ecx, 1
        TRY monitor
;= MONITOR with an extension: #0d(0000) +00
        SAY "MWAIT with another one: "
        mov ecx, 2
        TRY mwait
;= MWAIT with another one: #0d(0000) +00
        SAY "outside DS: "
        SET_DESCRIPTOR SPARE, 0, 0x1f, 0x4093
        mov eax, SPARE
        mov ds, eax
        mov eax, 0x20
        xor ecx, ecx
        TRY monitor
;= outside DS: #0d(0000) +00
        SAY "at its end: "
        mov eax, SPARE
        mov ds, eax
        mov eax, 0x1f
        TRY monitor
;= at its end: none
        SAY "outside FS: "
        mov eax, SPARE
        mov fs, eax
        mov eax, 0x20
        TRY fs monitor
;= outside FS: #0d(0000) +00
        SAY "16-bit address: "
        mov eax, 0xffff0001
        mov ebx, SPARE
        mov fs, ebx
        TRY {db 0x67, 0x64, 0x0f, 0x01, 0xc8}
;= 16-bit address: none
        SAY "user: "
        TRY3 user_monitor
;= user: #06(0000) +00
        SAY "user's MWAIT: "
        TRY3 user_mwait
;= user's MWAIT: #06(0000) +00
        SET_FSM btr
        SAY "switched off: "
        FEATURE
        xor ecx, ecx
        SAY " "
        TRY monitor
        SAY "MWAIT: "
        TRY mwait
;= switched off: 0 #06(0000) +00
;= MWAIT: #06(0000) +00
        SET_FSM bts
        SAY "on again: "
        FEATURE
        LINE
;= on again: 1
        SAY "a change before MWAIT: "
        WATCH turn
        inc dword [turn + 60]
        mwait
        SAY "none", 10
;= a change before MWAIT: none

        START_OTHER
        SAY "by turns: "
        mov dword [turn], 0
        BOTH take_turns
        NUMBER 8, [turn]
        LINE
;= by turns: 000000c8
        SET_GATE IPI, CODE32, on_ipi, 0x8e00
        SAY "interrupts: "
        mov dword [job], await_interrupts
        mov ebx, ROUNDS
.send:  pause
        mov eax, [wanted]
        cmp eax, [sent]
        je .send                        ; it waits for the next one
        mov [sent], eax
        mov dword [ICR_HIGH], 1 << 24
        mov dword [ICR_LOW], 0x4000 | IPI
        dec ebx
        jnz .send
        call await
        NUMBER 8, [taken]
        LINE
;= interrupts: 00000064
        SAY "masked interrupts: "
        mov dword [job], await_masked
        mov eax, [sent]
.until: pause
        cmp eax, [wanted]
        je .until
        mov dword [ICR_LOW], 0x4000 | IPI
        call await
        NUMBER 8, [before]
        SAY " "
        NUMBER 8, [taken]
        LINE
;= masked interrupts: 00000064 00000065
        END

user_monitor: monitor
user_mwait: mwait

take_turns:                             ; [turn] counts to 2 * ROUNDS; the lowest bit is whose it is
        mov esi, [APIC + 0x20]
        shr esi, 24
        mov ebx, ROUNDS
.again: mov eax, [turn]
        and eax, 1
        cmp eax, esi
        je .mine
        WATCH turn
        mov eax, [turn]
        and eax, 1
        cmp eax, esi
        je .mine
        xor eax, eax
        mwait
        jmp .again
.mine:  lock inc dword [turn]
        dec ebx
        jnz .again
        ret

await_interrupts:
        mov ebx, ROUNDS
.next:  cli
        mov esi, [taken]
        inc dword [wanted]
.again: WATCH quiet
        xor eax, eax
        sti
        mwait
        cli
        cmp esi, [taken]
        je .again
        dec ebx
        jnz .next
        ret

await_masked:                           ; an interrupt ends MWAIT and is not taken
        inc dword [wanted]
.again: WATCH quiet
        xor eax, eax
        mov ecx, 1
        mwait
        test dword [IRR + 0x10], 1 << (IPI & 31)
        jz .again
        mov eax, [taken]
        mov [before], eax
        sti
        nop
        cli
        ret

on_ipi: inc dword [ss:taken]
        mov dword [ss:EOI], 0
        iret

        align 64
quiet:  times 64 db 0
turn:   times 64 db 0
wanted: dd 0
taken:  dd 0
before: dd 0
sent:   dd 0
        IMAGE_END
