; Real mode: segments, the interrupt table, wrapping addresses, flags, 32-bit operands, unreal mode.
%include "common.inc"

%macro TRY 1+
        mov word [O(resume)], O(%%after)
        mov word [O(origin)], O(%%at)
        mov [O(resume_sp)], sp
%%at:   %1
        SAY "none", 10
%%after:
%endmacro

main:
        VECTOR 0, on_divide
        VECTOR 4, on_overflow
        VECTOR 5, on_bound
        VECTOR 6, on_undefined
        VECTOR 12, on_stack
        VECTOR 13, on_protection
        VECTOR 0x21, on_21
        SAY "divide: "
        xor cx, cx
        TRY div cx
;= divide: #00 +00
        SAY "UD2: "
        TRY ud2
;= UD2: #06 +00
        SAY "INTO without OF: "
        xor ax, ax
        TRY into
;= INTO without OF: none
        SAY "INTO with OF: "
        mov al, 0x7f
        inc al
        TRY into
;= INTO with OF: #04 +01
        SAY "BOUND: "
        mov ax, 5
        TRY bound ax, [O(bounds)]
;= BOUND: #05 +00
        SAY "a word at ffff: "
        TRY mov ax, [0xffff]
;= a word at ffff: #0d +00
;q a word at ffff: none
        SAY "a word at ffff of the stack: "
        mov bp, 0xffff
        TRY mov ax, [bp]
;= a word at ffff of the stack: #0c +00
;q a word at ffff of the stack: none
        SAY "beyond 64 KiB: "
        mov ebx, 0x10000
        TRY mov al, [ebx]
;= beyond 64 KiB: #0d +00
;q beyond 64 KiB: none
        SAY "BX + SI wraps: "
        mov bx, 0xfff0
        mov si, O(bounds) + 16
        mov ax, [bx + si]
        NUMBER 4, eax
        LINE
;= BX + SI wraps: 0010
        SAY "LLDT: "
        TRY lldt ax
;= LLDT: #06 +00
        SAY "LOCK on a register: "
        TRY db 0xf0, 0x01, 0xc0
;= LOCK on a register: #06 +00
        SAY "an INT pushes flags, CS, IP: "
        push word 0x0203
        popf
        int 0x21
        cli
;= an INT pushes flags, CS, IP: flags 0203 now 0002 CS 1000
        SAY "PUSH SP: "
        push sp
        pop ax
        sub ax, sp
        NUMBER 4, eax
        LINE
;= PUSH SP: 0000
        SAY "a shift count is five bits: "
        mov ax, 0x1234
        mov cl, 33
        shl ax, cl
        NUMBER 4, eax
        LINE
;= a shift count is five bits: 2468
        SAY "32-bit operands: "
        mov eax, 0x12345678
        rol eax, 8
        NUMBER 8, eax
        LINE
;= 32-bit operands: 34567812
        SAY "segments overlap: "
        mov ax, (BASE >> 4) + 1
        mov es, ax
        mov dword [O(cell)], 0xc0ffee
        mov eax, [es:O(cell) - 16]
        NUMBER 8, eax
        LINE
;= segments overlap: 00c0ffee
        SAY "far call, far return: "
        mov bx, sp
        call (BASE >> 4) - 0x10:O(far_target) + 0x100
        sub bx, sp
        NUMBER 4, ebx
        LINE
;= far call, far return: CS 0ff0 0000
        SAY "LES: "
        les di, [O(pointer)]
        mov ax, es
        NUMBER 4, eax
        movzx eax, di
        NUMBER 4, eax
        LINE
;= LES: abcd1234
        SAY "XLAT: "
        mov bx, O(table)
        mov al, 3
        xlatb
        NUMBER 2, eax
        LINE
;= XLAT: 44
        SAY "DAA AAM AAD: "
        mov al, 0x79
        add al, 0x35
        daa
        NUMBER 2, eax
        mov ax, 123
        aam
        NUMBER 4, eax
        mov ax, 0x0905
        aad
        NUMBER 4, eax
        LINE
;= DAA AAM AAD: 140c03005f
        SAY "ENTER, LEAVE: "
        mov bp, 0x1234
        mov cx, sp
        enter 0x10, 2
        mov ax, cx
        sub ax, sp
        NUMBER 4, eax
        mov ax, cx
        sub ax, bp
        NUMBER 4, eax
        leave
        mov ax, cx
        sub ax, sp
        NUMBER 4, eax
        NUMBER 4, ebp
        LINE
;= ENTER, LEAVE: 0016000200001234
        SAY "REP MOVSB wraps at 64 KiB: "
        mov ax, 0x3000
        mov es, ax
        mov di, 0xfffe
        mov si, O(table)
        mov cx, 4
        rep movsb
        NUMBER 4, [es:0]
        movzx eax, di
        NUMBER 4, eax
        LINE
;= REP MOVSB wraps at 64 KiB: 44330002
        SAY "SMSW: "
        smsw ax
        and eax, 0xf
        NUMBER 1, eax
        LINE
;= SMSW: 0
        SAY "unreal mode: "
        lgdt [O(gdtr)]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        mov bx, 8
        mov fs, bx
        and al, ~1
        mov cr0, eax
        mov dword [fs:dword 0x200000], 0xfeedface
        mov ebx, 0x200000
        mov eax, [fs:ebx]
        NUMBER 8, eax
        LINE
;= unreal mode: feedface
        SAY "the limit stays when FS is loaded: "
        xor ax, ax
        mov fs, ax
        mov eax, [fs:ebx]
        NUMBER 8, eax
        LINE
;= the limit stays when FS is loaded: feedface
        SAY "A20 off: "
        in al, 0x92
        and al, ~2
        out 0x92, al
        mov dword [fs:dword 0x500], 0x11111111
        mov dword [fs:dword 0x100500], 0x22222222
        mov eax, [fs:dword 0x500]
        NUMBER 8, eax
        in al, 0x92
        or al, 2
        out 0x92, al
        mov dword [fs:dword 0x100500], 0x33333333
        mov eax, [fs:dword 0x500]
        SAY " on: "
        NUMBER 8, eax
        LINE
;= A20 off: 22222222 on: 22222222
        SAY "above FFFF:0010 with A20: "
        mov ax, 0xffff
        mov es, ax
        mov eax, [es:0x510]
        NUMBER 8, eax
        LINE
;= above FFFF:0010 with A20: 33333333
        SAY "CPUID by ID: "
        pushfd
        pop eax
        mov ebx, eax
        xor eax, 0x200000
        push eax
        popfd
        pushfd
        pop eax
        xor eax, ebx
        NUMBER 8, eax
        LINE
;= CPUID by ID: 00200000
        SAY "and then there is nothing: an interrupt table that is too small", 10
;= and then there is nothing: an interrupt table that is too small
        lidt [O(no_table)]
        int 0x21
        SAY "not reached", 10
        END

%macro HANDLER 2
%1:     push word %2
        jmp report
%endmacro
        HANDLER on_divide, 0
        HANDLER on_overflow, 4
        HANDLER on_bound, 5
        HANDLER on_undefined, 6
        HANDLER on_stack, 12
        HANDLER on_protection, 13
report: pop bx
        pop dx
        mov ax, BASE >> 4
        mov ds, ax
        SAY "#"
        NUMBER 2, ebx
        SAY " +"
        sub dx, [O(origin)]
        NUMBER 2, edx
        LINE
        mov sp, [O(resume_sp)]
        jmp [O(resume)]

on_21:  pushf
        pop bx
        mov bp, sp
        SAY "flags "
        NUMBER 4, [bp + 4]
        SAY " now "
        and bx, 0xfffe
        NUMBER 4, ebx
        SAY " CS "
        NUMBER 4, [bp + 2]
        LINE
        iret

far_target:
        SAY "CS "
        mov ax, cs
        NUMBER 4, eax
        SAY " "
        retf

        align 16
bounds: dw 0x10, 0x20
resume: dw 0
resume_sp: dw 0
origin: dw 0
cell:   dd 0
pointer: dw 0x1234, 0xabcd
table:  db 0x11, 0x22, 0x33, 0x44
gdt:    dq 0
        DESCRIPTOR 0, 0xfffff, 0xc093
gdtr:   dw 15
        dd L(gdt)
no_table: dw 3
        dd 0
        IMAGE_END
