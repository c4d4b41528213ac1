; Takes a processor from reset to 64-bit mode with the first 1 GiB mapped, and starts the C program
; (workloads.c, linked to PROGRAM), which gets a table of what can only be said in assembly:
;
;     syscalls(n)    n times SYSCALL from ring 3, SYSRET
;     faults(n)      n times a page fault whose handler maps a page, and the page is taken away
;
%include "common.inc"
%include "long.inc"

PROGRAM equ 0x100000
PROGRAM_STACK equ 0xf00000
FAULTING equ 0x40000000
STAR equ 0xc0000081
LSTAR equ 0xc0000082
FMASK equ 0xc0000084

start64:
        mov esi, program
        mov edi, PROGRAM
        mov ecx, program_end - program
        rep movsb
        mov esp, PROGRAM_STACK
        WRITE_MSR STAR, (0x0023 << 48) | (CODE64 << 32)
        WRITE_MSR LSTAR, L(on_syscall)
        WRITE_MSR FMASK, 0x200
        USER_PAGES
        mov qword [PDPT + 8], PD + 0x2000 | P | W | U
        mov qword [PD + 0x2000], PT | P | W | U
        SET_GATE 14, on_fault, 0x8e00
        SET_GATE 0x20, on_done, 0xee00
        mov dword [resume], failed
        mov dword [resume_sp], PROGRAM_STACK
        fninit                          ; RESET# leaves all exceptions unmasked
        mov edi, table
        mov eax, PROGRAM
        call rax
        END
failed: END                             ; `report` has said which exception it was

syscalls:
        push rbx
        push r12
        mov [resume_sp], rsp
        mov r12, rdi
        push USERDATA
        push STACK - 0x800
        push 2
        push USER64
        push .user
        iretq
.user:  syscall
        dec r12
        jnz .user
        int 0x20
on_syscall:
        inc ebx
        o64 sysret
on_done:
        mov eax, DATA64
        mov ss, eax
        mov rsp, [resume_sp]
        pop r12
        pop rbx
        ret

faults: mov ecx, edi
.next:  mov eax, ecx
        and eax, 511
        shl eax, 12
        inc dword [FAULTING + rax]      ; on_fault maps it
        shr eax, 9
        mov qword [PT + rax], 0
        shl eax, 9
        invlpg [FAULTING + rax]
        dec ecx
        jnz .next
        ret
on_fault:
        push rax
        push rdx
        mov rax, cr2
        sub eax, FAULTING
        and eax, 0x1ff000
        mov edx, eax
        add edx, 0x800000 | P | W
        shr eax, 9
        mov [PT + rax], rdx
        pop rdx
        pop rax
        add rsp, 8
        iretq

        align 8
table:  dq syscalls, faults
program:
        incbin "program.bin"
program_end:
        IMAGE_END
