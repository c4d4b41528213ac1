; SYSENTER and SYSEXIT in 32-bit protected mode; faults on the way between rings.
%include "common.inc"
%include "protected.inc"

SYSENTER_CS equ 0x174
SYSENTER_ESP equ 0x175
SYSENTER_EIP equ 0x176
ENTER0 equ SPARE                        ; code, stack of ring 0, code, stack of ring 3: in this order

start32:
        SET_DESCRIPTOR ENTER0, 0, 0xfffff, 0xc09b
        SET_DESCRIPTOR (ENTER0 + 8), 0, 0xfffff, 0xc093
        SET_DESCRIPTOR (ENTER0 + 16), 0, 0xfffff, 0xc0fb
        SET_DESCRIPTOR (ENTER0 + 24), 0, 0xfffff, 0xc0f3
        SAY "SYSENTER without a selector: "
        TRY sysenter
;= SYSENTER without a selector: #0d(0000) +00
        SAY "SYSEXIT without a selector: "
        TRY sysexit
;= SYSEXIT without a selector: #0d(0000) +00
        mov ecx, SYSENTER_CS
        mov eax, ENTER0
        xor edx, edx
        wrmsr
        mov ecx, SYSENTER_ESP
        mov eax, 0x9d000
        wrmsr
        mov ecx, SYSENTER_EIP
        mov eax, entry
        wrmsr
        SAY "SYSEXIT in ring 3: "
        TRY3 user_sysexit
;= SYSEXIT in ring 3: #0d(0000) +00
        SAY "SYSENTER: "
        TRY3 user_sysenter
        NUMBER 8, [seen]
        SAY " "
        NUMBER 8, [seen + 4]
        SAY " "
        NUMBER 8, [seen + 8]
        SAY " "
        NUMBER 8, [seen + 12]
        SAY " "
        NUMBER 8, [seen + 16]
        LINE
;= SYSENTER: #06(0000) +24
;= 00480040 0009d000 000008d7 005b0053 0001f700
        SAY "IRET to ring 3 with RPL 0 of SS: "
        mov esi, esp
        push dword DATA32
        push dword STACK - 0x800
        push dword 2
        push dword USER32
        push dword user_sysenter
        TRY iret
        mov esp, esi
;= IRET to ring 3 with RPL 0 of SS: #0d(0010) +00
        SAY "IRET to a more privileged level: "
        TRY3 user_iret
;= IRET to a more privileged level: #0d(0008) +06
        END

entry:  mov [seen + 4], esp
        mov [seen], cs
        mov ax, ss
        mov [seen + 2], ax
        pushf
        pop dword [seen + 8]
        mov edx, user_back
        mov ecx, STACK - 0x800
        sysexit

        align 16
user_sysexit:
        sysexit
user_sysenter:
        push dword 0x3ed7 & ~0x700
        popf
        mov ebx, 0
        sysenter
        ud2
user_back:
        mov [seen + 12], cs
        mov ax, ss
        mov [seen + 14], ax
        mov [seen + 16], esp
        ud2
user_iret:
        push dword 2
        push dword CODE32
        push dword 0
        iret
        align 4
seen:   times 8 dd 0
        IMAGE_END
