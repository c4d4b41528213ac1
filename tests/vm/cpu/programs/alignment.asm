; Alignment checks: #AC in ring 3 with CR0.AM and EFLAGS.AC, and nowhere else.
; not in QEMU: it does not check alignment
%include "common.inc"
%include "long.inc"

%macro AC_OFF 0
        pushf
        and dword [rsp], ~0x40000
        popf
%endmacro

start64:
        USER_PAGES
        SAY "without AM: "
        TRY3 user_read
;= without AM: #06(0000) +0d
        AC_OFF
        mov rax, cr0
        or eax, 0x40000
        mov cr0, rax
        SAY "a read: "
        TRY3 user_read
;= a read: #11(0000) +06
        SAY "ring 0 with AC: "
        TRY mov eax, [cell + 1]
;= ring 0 with AC: none
        AC_OFF
        SAY "a write: "
        TRY3 user_write
;= a write: #11(0000) +06
        AC_OFF
        SAY "read, change, write: "
        TRY3 user_add
;= read, change, write: #11(0000) +06
        AC_OFF
        SAY "PUSH: "
        TRY3 user_push
;= PUSH: #11(0000) +0c
        AC_OFF
        SAY "MOVSQ behind REP MOVSB: "
        TRY3 user_movs
;= MOVSQ behind REP MOVSB: #11(0000) +19
        AC_OFF
        SAY "bytes, and what is aligned: "
        TRY3 user_aligned
;= bytes, and what is aligned: #06(0000) +1c
        AC_OFF
        SAY "POP of a selector: "
        TRY3 user_pop_selector
;= POP of a selector: #11(0000) +0c
        AC_OFF
        SAY "a far pointer: "
        TRY3 user_far
;= a far pointer: #11(0000) +06
        AC_OFF
        SAY "its selector at 4 and 6 bytes is aligned: "
        TRY3 user_far_aligned
;= its selector at 4 and 6 bytes is aligned: #06(0000) +19
        AC_OFF
        SAY "far RET: "
        TRY3 user_retf
;= far RET: #11(0000) +0c
        AC_OFF
        SAY "SGDT at 2: "
        TRY3 user_sgdt
;= SGDT at 2: #11(0000) +06
        AC_OFF
        SAY "SGDT at 6: "
        TRY3 user_sgdt_aligned
;= SGDT at 6: #06(0000) +0e
        AC_OFF
        SAY "FNSTENV at 2: "
        TRY3 user_fnstenv
;= FNSTENV at 2: #11(0000) +06
        AC_OFF
        SAY "FNSAVE at 4: "
        TRY3 user_fnsave
;= FNSAVE at 4: #06(0000) +14
        AC_OFF
        SAY "a store of x87: "
        TRY3 user_fstp
;= a store of x87: #11(0000) +0a
        AC_OFF
        SAY "LAR: "
        TRY3 user_lar
;= LAR: #11(0000) +06
        AC_OFF
        SAY "AC by IRET, gone by POPF: "
        mov dword [resume], .after
        mov dword [origin], user_off
        mov [resume_sp], rsp
        push USERDATA
        push STACK - 0x800
        push 0x40002
        push USER64
        push user_off
        iretq
.after: SAY "AC by IRET: "
        mov dword [resume], .end
        mov dword [origin], user_now
        mov [resume_sp], rsp
        push USERDATA
        push STACK - 0x800
        push 0x40002
        push USER64
        push user_now
        iretq
;= AC by IRET, gone by POPF: #06(0000) +0a
;= AC by IRET: #11(0000) +00
.end:   END

user_read:
        push 0x40002
        popf
        mov eax, [cell + 1]
        ud2
user_write:
        push 0x40002
        popf
        mov [cell + 2], eax
        ud2
user_add:
        push 0x40002
        popf
        lock add word [cell + 1], ax
        ud2
user_push:
        push 0x40002
        popf
        mov esp, STACK - 0x803
        nop
        push rax
        ud2
user_movs:
        push 0x40002
        popf
        mov esi, cell + 1
        mov edi, cell + 33
        mov ecx, 3
        rep movsb
        inc esi
        movsq
        ud2
user_pop_selector:
        push 0x40002
        popf
        mov esp, STACK - 0x803
        nop
        pop fs
        ud2
user_far:
        push 0x40002
        popf
        lfs eax, [cell + 2]
        ud2
user_far_aligned:
        push 0x40002
        popf
        mov word [cell + 8], 0
        nop
        lfs eax, [cell + 4]
        ud2
user_retf:
        push 0x40002
        popf
        mov esp, STACK - 0x803
        nop
        o64 retf
        ud2
user_sgdt:
        push 0x40002
        popf
        sgdt [cell + 2]
        ud2
user_sgdt_aligned:
        push 0x40002
        popf
        sgdt [cell + 6]
        ud2
user_fnstenv:
        push 0x40002
        popf
        fnstenv [cell + 2]
        ud2
user_fnsave:
        push 0x40002
        popf
        fnsave [cell + 4]
        frstor [cell + 4]
        ud2
user_fstp:
        push 0x40002
        popf
        fninit
        fld1
        fstp qword [cell + 4]
        ud2
user_lar:
        push 0x40002
        popf
        lar eax, [cell + 1]
        ud2
user_aligned:
        push 0x40002
        popf
        mov al, [cell + 1]
        mov eax, [cell + 4]
        mov ax, [cell + 6]
        ud2
user_off:
        push 2
        popf
        mov eax, [cell + 1]
        ud2
user_now:
        mov eax, [cell + 1]
        ud2

        align 64
cell:   times 16 dq 0
        IMAGE_END
