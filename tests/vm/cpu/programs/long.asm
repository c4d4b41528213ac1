; Long mode: canonical addresses, paging with NX, system calls, SWAPGS, IST, compatibility mode.
%include "common.inc"
%include "long.inc"

STAR equ 0xc0000081
LSTAR equ 0xc0000082
FMASK equ 0xc0000084
FS_BASE equ 0xc0000100
GS_BASE equ 0xc0000101
KERNEL_GS_BASE equ 0xc0000102
TSC_AUX equ 0xc0000103
MAPPED equ 0x40000000                   ; 512 pages of PT, by a second entry of the PDPT

start64:
        SAY "EFER "
        mov ecx, EFER
        rdmsr
        NUMBER 4, rax
        LINE
;= EFER 0d01
        SAY "not canonical: "
        mov rbx, 0x800000000000
        TRY mov al, [rbx]
;= not canonical: #0d(0000) +00
        SAY "not canonical, by RBP: "
        mov rbp, 0x800000000000
        TRY mov al, [rbp]
;= not canonical, by RBP: #0c(0000) +00
;q not canonical, by RBP: #0d(0000) +00
        SAY "across the canonical border: "
        mov rbx, 0x7ffffffffffe
        TRY mov eax, [rbx]
;= across the canonical border: #0d(0000) +00
;q across the canonical border: #0e(0000) +00 cr2 00007ffffffffffe
        SAY "jump to a not canonical address: "
        mov rbx, 0x800000000000
        TRY jmp rbx
;= jump to a not canonical address: #0d(0000) +00
;q jump to a not canonical address: #0d(0000) +far
        SAY "not canonical into LSTAR: "
        mov ecx, LSTAR
        xor eax, eax
        mov edx, 0x8000
        TRY wrmsr
;= not canonical into LSTAR: #0d(0000) +00
;q not canonical into LSTAR: none
        SAY "no such MSR: "
        mov ecx, 0x12345678
        TRY rdmsr
;= no such MSR: #0d(0000) +00
;q no such MSR: none
        SAY "RDPMC: "
        xor ecx, ecx
        TRY rdpmc
;= RDPMC: #0d(0000) +00
;q RDPMC: #06(0000) +00
        SAY "WBNOINVD: "
        TRY db 0xf3, 0x0f, 0x09
;= WBNOINVD: none
        SAY "RDTSCP: "
        mov ecx, TSC_AUX
        mov eax, 0x1234
        xor edx, edx
        wrmsr
        rdtsc
        mov ebx, edx
        shl rbx, 32
        or rbx, rax
        mov rcx, -1
        mov rdx, rcx
        mov rax, rcx
        rdtscp
        NUMBER 16, rcx
        shl rdx, 32
        or rax, rdx
        cmp rax, rbx
        jae .later
        SAY " earlier than RDTSC"
.later: LINE
;= RDTSCP: 0000000000001234
        SAY "RDTSCP with TSD at CPL 0: "
        mov rax, cr4
        or al, 4
        mov cr4, rax
        TRY rdtscp
        mov rax, cr4
        and al, ~4
        mov cr4, rax
;= RDTSCP with TSD at CPL 0: none
        SAY "CR8: "
        mov eax, 5
        mov cr8, rax
        mov rax, cr8
        NUMBER 16, rax
        LINE
        xor eax, eax
        mov cr8, rax
;= CR8: 0000000000000005
        SAY "32-bit operations clear the upper half: "
        mov rax, -1
        mov eax, eax
        NUMBER 16, rax
        LINE
;= 32-bit operations clear the upper half: 00000000ffffffff
        SAY "PUSH ES: "
        TRY db 0x06
;= PUSH ES: #06(0000) +00

; paging
        mov qword [PDPT + 8], PD + 0x2000 | P | W | U
        mov qword [PD + 0x2000], PT | P | W | U
        SAY "read of nothing: "
        TRY mov al, [MAPPED]
;= read of nothing: #0e(0000) +00 cr2 0000000040000000
        SAY "write to nothing: "
        TRY mov [MAPPED + 0x123], al
;= write to nothing: #0e(0002) +00 cr2 0000000040000123
        SAY "execution of nothing: "
        TRY call MAPPED
;= execution of nothing: #0e(0010) +far cr2 0000000040000000
        mov qword [PT], 0x200000 | P
        SAY "read-only page: "
        TRY mov al, [MAPPED]
;= read-only page: none
        SAY "write to it: "
        TRY mov [MAPPED], al
;= write to it: #0e(0003) +00 cr2 0000000040000000
        SAY "accessed "
        mov rax, [PT]
        NUMBER 16, rax
        LINE
;= accessed 0000000000200021
        mov rax, cr0
        and eax, ~0x10000
        mov cr0, rax
        SAY "write to it without WP: "
        TRY mov [MAPPED], al
;= write to it without WP: none
        mov rax, [PT]
        SAY "dirty "
        NUMBER 16, rax
        LINE
;= dirty 0000000000200061
        mov rax, cr0
        or eax, 0x10000
        mov cr0, rax
        mov byte [0x200000], 0xc3
        mov rax, 1 << 63 | 0x200000 | P | W
        mov [PT], rax
        invlpg [MAPPED]
        SAY "execution of NX: "
        TRY call MAPPED
;= execution of NX: #0e(0011) +far cr2 0000000040000000
        mov qword [PT], 0x200000 | P | W
        invlpg [MAPPED]
        SAY "execution: "
        TRY call MAPPED
;= execution: none
        mov rax, 1 << 51 | 0x200000 | P | W
        mov [PT], rax
        invlpg [MAPPED]
        SAY "reserved bit: "
        TRY mov al, [MAPPED]
;= reserved bit: #0e(0009) +00 cr2 0000000040000000
;q reserved bit: #0e(0008) +00 cr2 0000000040000000
        SAY "2 MiB page with a reserved bit: "
        mov qword [PD + 0x2008], 0x202000 | PS | P | W
        TRY mov al, [MAPPED + 0x200000]
;= 2 MiB page with a reserved bit: #0e(0009) +00 cr2 0000000040200000
;q 2 MiB page with a reserved bit: #0e(0008) +00 cr2 0000000040200000

; ring 3
        USER_PAGES
        SAY "supervisor page in ring 3: "
        mov qword [PT], 0x200000 | P | W
        invlpg [MAPPED]
        TRY3 user_read
;= supervisor page in ring 3: #0e(0005) +00 cr2 0000000040000000
        SAY "absent page in ring 3: "
        mov qword [PT], 0
        invlpg [MAPPED]
        TRY3 user_write
;= absent page in ring 3: #0e(0006) +00 cr2 0000000040000000
        SAY "CR3 in ring 3: "
        TRY3 user_cr3
;= CR3 in ring 3: #0d(0000) +00
        SAY "SWAPGS in ring 3: "
        TRY3 user_swapgs
;= SWAPGS in ring 3: #0d(0000) +00

        WRITE_MSR GS_BASE, 0x1111
        WRITE_MSR KERNEL_GS_BASE, 0xffff800000002222
        SAY "SWAPGS: "
        swapgs
        mov ecx, GS_BASE
        call print_msr
        swapgs
        call print_msr
        LINE
;= SWAPGS: ffff800000002222 0000000000001111 
        SAY "FS base: "
        WRITE_MSR FS_BASE, L(values)
        mov rax, [fs:8]
        NUMBER 16, rax
        LINE
;= FS base: 8877665544332211
        SAY "loading FS clears its base: "
        mov eax, USERDATA
        mov fs, eax
        mov ecx, FS_BASE
        call print_msr
        LINE
;= loading FS clears its base: 0000000000000000 
        SAY "FS of an inner level is null in ring 3, its base stays: "
        mov eax, DATA64
        mov fs, eax
        WRITE_MSR FS_BASE, L(values)
        TRY3 user_fs
        NUMBER 4, [seen]
        SAY " "
        NUMBER 16, [seen + 8]
        LINE
;= FS of an inner level is null in ring 3, its base stays: #06(0000) +18
;= 0000 8877665544332211

        WRITE_MSR STAR, (0x0023 << 48) | (CODE64 << 32)
        WRITE_MSR LSTAR, L(syscall_entry)
        WRITE_MSR FMASK, 0x8d5
        SAY "SYSCALL: "
        TRY3 user_syscall
        NUMBER 4, [seen]
        SAY " "
        NUMBER 4, [seen + 8]
        SAY " "
        NUMBER 4, [seen + 16]
        SAY " "
        NUMBER 4, [seen + 24]
        SAY " "
        NUMBER 4, [seen + 32]
        LINE
;= SYSCALL: #06(0000) +0f
;= 0008 0010 0002 08d7 0033
        SAY "SYSCALL without SCE: "
        mov ecx, EFER
        mov eax, 0xd00
        xor edx, edx
        wrmsr
        TRY syscall
;= SYSCALL without SCE: #06(0000) +00
        SAY "compatibility mode: "
        TRY32 compatible
        mov rax, [seen]
        NUMBER 16, rax
        LINE
;= compatibility mode: #06(0000) +16
;= 00000000ffffffff
        SAY "an address wraps at 4 GiB in it: "
        TRY32 compatible_wrap
;= an address wraps at 4 GiB in it: #06(0000) +0b
        SAY "IST: "
        SET_GATE 0x20, on_ist, 0x8e01
        int 0x20
        NUMBER 16, [seen]
        LINE
;= IST: 000000000009dfd8
        SAY "frames are aligned: "
        SET_GATE 0x20, on_ist, 0x8e00
        mov r15, rsp
        mov esp, STACK - 0x403
        int 0x20
        mov rsp, r15
        NUMBER 16, [seen]
        LINE
;= frames are aligned: 000000000001fac8
        SAY "IRET with a not canonical RIP: "
        mov r15, rsp
        push DATA64
        push r15
        push 2
        push CODE64
        mov rax, 0x800000000000
        push rax
        TRY iretq
;= IRET with a not canonical RIP: #0d(0000) +00
;q IRET with a not canonical RIP: #0d(0000) +far
        SAY "CMPXCHG16B unaligned: "
        TRY cmpxchg16b [values + 1]
;= CMPXCHG16B unaligned: #0d(0000) +00
        SAY "LOCK NOP: "
        TRY db 0xf0, 0x90
;= LOCK NOP: #06(0000) +00
        SAY "an instruction of 16 bytes: "
        TRY db 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
;= an instruction of 16 bytes: #0d(0000) +00
        SAY "RIP-relative: "
        mov rax, [rel values]
        NUMBER 16, rax
        LINE
;= RIP-relative: 1122334455667788
        END

print_msr:
        rdmsr
        shl rdx, 32
        or rax, rdx
        NUMBER 16, rax
        SAY " "
        ret

syscall_entry:
        mov word [seen], cs
        mov word [seen + 8], ss
        pushf
        pop rax
        mov [seen + 16], rax
        mov [seen + 24], r11
        o64 sysret

on_ist: mov [seen], rsp
        iretq

        align 64
user_read:
        mov al, [MAPPED]
user_write:
        mov [MAPPED], al
user_cr3:
        mov rax, cr3
user_swapgs:
        swapgs
user_fs:
        mov [seen], fs
        mov rax, [fs:8]
        mov [seen + 8], rax
        ud2
user_syscall:
        push 0x8d7
        popf
        syscall
        mov [seen + 32], cs
        ud2

        bits 32
compatible:
        mov eax, -1
        inc eax                         ; 40 is INC here, not REX
        dec eax
        mov [seen], eax
        mov dword [seen + 4], 0
        ud2
compatible_wrap:
        mov ebx, 0xfffffff0
        mov eax, [ebx + BASE + 0x10]
        ud2
        bits 64

        align 16
values: dq 0x1122334455667788, 0x8877665544332211, 0, 0
seen:   times 8 dq 0
        IMAGE_END
