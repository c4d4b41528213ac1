; Each exception: its vector, error code, whether RIP is the instruction's or the next one's.
%include "common.inc"
%include "long.inc"

start64:
        SAY "divide: "
        xor ecx, ecx
        TRY div ecx
;= divide: #00(0000) +00
        SAY "quotient too large: "
        mov edx, 5
        mov ecx, 5
        TRY div ecx
;= quotient too large: #00(0000) +00
        SAY "most negative by -1: "
        mov eax, 0x80000000
        mov edx, -1
        mov ecx, -1
        TRY idiv ecx
;= most negative by -1: #00(0000) +00
        SAY "AAM 0 does not exist here: "
        TRY db 0xd4, 0
;= AAM 0 does not exist here: #06(0000) +00
        SAY "INT3: "
        TRY int3
;= INT3: #03(0000) +01
        SAY "INT 3: "
        TRY db 0xcd, 3
;= INT 3: #03(0000) +02
        SAY "INT1: "
        TRY db 0xf1
;= INT1: #01(0000) +01
;q INT1: #06(0000) +00
        SAY "UD2: "
        TRY ud2
;= UD2: #06(0000) +00
        SAY "x87 with TS: "
        mov rax, cr0
        or eax, 8
        mov cr0, rax
        TRY fld1
;= x87 with TS: #07(0000) +00
        SAY "SSE with TS: "
        TRY movaps xmm0, xmm1
;= SSE with TS: #07(0000) +00
        SAY "WAIT with TS and MP: "
        TRY fwait
;= WAIT with TS and MP: #07(0000) +00
        clts
        SAY "x87 with EM: "
        mov rax, cr0
        or eax, 4
        mov cr0, rax
        TRY fld1
;= x87 with EM: #07(0000) +00
        SAY "SSE with EM: "
        TRY movaps xmm0, xmm1
;= SSE with EM: #06(0000) +00
        mov rax, cr0
        and eax, ~4
        mov cr0, rax
        SAY "SSE without OSFXSR: "
        mov rax, cr4
        and eax, ~0x200
        mov cr4, rax
        TRY movaps xmm0, xmm1
;= SSE without OSFXSR: #06(0000) +00
        mov rax, cr4
        or eax, 0x200
        mov cr4, rax
        SAY "INT beyond the IDT: "
        TRY int 0x50
;= INT beyond the IDT: #0d(0282) +00
;q INT beyond the IDT: #0d(0502) +00
        SAY "gate that is absent: "
        SET_GATE 0x30, stubs, 0x0e00
        TRY int 0x30
;= gate that is absent: #0b(0182) +00
;q gate that is absent: #0b(0302) +00
        SAY "gate to a null selector: "
        SET_GATE 0x30, stubs, 0x8e00
        mov word [idt + 0x302], 0
        TRY int 0x30
;= gate to a null selector: #0d(0000) +00
        SAY "gate to 32-bit code: "
        mov word [idt + 0x302], CODE32
        TRY int 0x30
;= gate to 32-bit code: #0d(0018) +00
        SAY "gate of a wrong type: "
        mov word [idt + 0x302], CODE64
        SET_GATE 0x30, stubs, 0x8500
        TRY int 0x30
;= gate of a wrong type: #0d(0182) +00
;q gate of a wrong type: #0d(0302) +00
        SAY "TSS that is busy: "
        mov eax, TSS64
        TRY ltr ax
;= TSS that is busy: #0d(0038) +00
        SAY "LTR of a code segment: "
        mov eax, CODE64
        TRY ltr ax
;= LTR of a code segment: #0d(0008) +00
        SAY "absent data segment: "
        mov dword [gdt + SPARE], 0xffff
        mov dword [gdt + SPARE + 4], 0xcf1300
        mov eax, SPARE
        TRY mov es, eax
;= absent data segment: #0b(0048) +00
        SAY "absent stack segment: "
        mov eax, SPARE
        TRY mov ss, eax
;= absent stack segment: #0c(0048) +00
        SAY "MOV to CS: "
        TRY db 0x8e, 0xc8
;= MOV to CS: #06(0000) +00
        SAY "x87 exception, reported by the next instruction: "
        fninit
        mov word [control], 0x37b       ; division by zero unmasked
        fldcw [control]
        fldz
        fld1
        fdiv st0, st1
        TRY fld1
;= x87 exception, reported by the next instruction: #10(0000) +00
;q x87 exception, reported by the next instruction: none
        SAY "but not by FNSTSW: "
        TRY fnstsw ax
;= but not by FNSTSW: none
        NUMBER 4, rax
        LINE
;= b084
;q a884
        fnclex
        fninit
        SAY "SSE exception: "
        mov dword [control], 0x1d80     ; division by zero unmasked
        ldmxcsr [control]
        xorps xmm1, xmm1
        movss xmm0, [one]
        TRY divss xmm0, xmm1
;= SSE exception: #13(0000) +00
;q SSE exception: none
        SAY "its flag is set: "
        stmxcsr [control]
        mov eax, [control]
        NUMBER 4, rax
        LINE
;= its flag is set: 1d84
        mov dword [control], 0x1f80
        ldmxcsr [control]
        SAY "SSE unaligned: "
        TRY movaps xmm0, [control + 1]
;= SSE unaligned: #0d(0000) +00
        SAY "alignment is not checked in ring 0: "
        mov rax, cr0
        or eax, 0x40000
        mov cr0, rax
        pushf
        or dword [rsp], 0x40000
        popf
        TRY mov eax, [control + 1]
;= alignment is not checked in ring 0: none
        pushf
        and dword [rsp], ~0x40000
        popf
        USER_PAGES
        SAY "in ring 3 it is: "
        TRY3 user_unaligned
;= in ring 3 it is: #11(0000) +06
;q in ring 3 it is: #06(0000) +0d
        mov rbx, 1 << 47
        SAY "a page fault while #GP is delivered: "
        mov qword [PD + 8 * 8], 0       ; 16 MiB is not mapped; IST1 is there
        mov rax, cr3
        mov cr3, rax
        mov dword [tss + 36], 0x1001000
        mov byte [idt + 13 * 16 + 4], 1
        TRY mov al, [rbx]
;= a page fault while #GP is delivered: #0e(0002) +00 cr2 0000000001000ff8
        SAY "while a page fault is delivered: "
        mov byte [idt + 14 * 16 + 4], 1
        TRY mov al, [0x1000000]
;= while a page fault is delivered: #08(0000) +00
        SAY "and then a fault while that is delivered is a triple fault", 10
;= and then a fault while that is delivered is a triple fault
        mov byte [idt + 8 * 16 + 4], 1
        mov al, [0x1000000]
        SAY "not reached", 10
        END

user_unaligned:
        push 0x40002
        popf
        mov eax, [control + 1]
        ud2
        align 16
control: dd 0, 0
one:    dd 1.0
        IMAGE_END
