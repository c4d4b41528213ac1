; Debug registers, single step, what holds debug exceptions back.
%include "common.inc"
%include "long.inc"

; A handler that counts and notes, and goes on
%macro COUNT 0
        mov qword [count], 0
        mov qword [place], 0
        mov qword [dr6_seen], 0
%endmacro
%macro DEBUG_AT 3                       ; linear address (register DR0), DR7, text
        SAY %3
        mov rax, %1
        mov dr0, rax
        xor eax, eax
        mov dr6, rax
        mov eax, %2
        COUNT
        mov dr7, rax
%endmacro
%macro DEBUG_OFF 0
        mov eax, 0x400
        mov dr7, rax
        NUMBER 2, [count]
        cmp dword [count], 0
        je %%none
        SAY " DR6 "
        NUMBER 8, [dr6_seen]
        SAY " +"
        mov rax, [place]
        sub rax, [origin]
        NUMBER 2, rax
%%none: LINE
%endmacro

start64:
        SET_GATE 1, on_debug, 0x8e00
        SAY "DR6 DR7 "
        mov rax, dr6
        NUMBER 8, rax
        mov rax, dr7
        NUMBER 8, rax
        LINE
;= DR6 DR7 ffff0ff000000400
        SAY "single step: "
        COUNT
        mov dword [origin], stepped
        pushf
        or dword [rsp], 0x100
        popf
stepped:
        nop
        mov eax, eax
        nop
        pushf
        and dword [rsp], ~0x100
        popf
.end:   DEBUG_OFF
;= single step: 06 DR6 ffff4ff0 +0d
        SAY "MOV SS holds it back for an instruction: "
        COUNT
        mov dword [origin], shadowed
        mov eax, DATA64
        pushf
        or dword [rsp], 0x100
        popf
shadowed:
        mov ss, eax
        nop
        pushf
        and dword [rsp], ~0x100
        popf
        DEBUG_OFF
;= MOV SS holds it back for an instruction: 04 DR6 ffff4ff0 +0c
        SAY "a REP is stepped by iteration: "
        COUNT
        mov dword [origin], repeated
        mov esi, place
        mov edi, STACK - 0x200
        mov ecx, 4
        pushf
        or dword [rsp], 0x100
        popf
repeated:
        rep movsb
        pushf
        and dword [rsp], ~0x100
        popf
        DEBUG_OFF
;= a REP is stepped by iteration: 07 DR6 ffff4ff0 +0b
        mov dword [origin], .execute
        DEBUG_AT L(.execute), 0x402, "execution: "
.execute:
        nop
        DEBUG_OFF
;= execution: 01 DR6 ffff0ff1 +00
        mov dword [origin], .again
        DEBUG_AT L(.again), 0x402, "B1-B3 go, BS stays: "
        mov eax, 0x400e
        mov dr6, rax
.again: nop
        DEBUG_OFF
;= B1-B3 go, BS stays: 01 DR6 ffff4ff1 +00
        mov dword [origin], .write
        DEBUG_AT L(cell), 0x10402 | 0xc0000, "write: "
        mov eax, [cell]
.write: mov [cell], eax
        nop
        DEBUG_OFF
;= write: 01 DR6 ffff0ff1 +07
        mov dword [origin], .read
        DEBUG_AT L(cell), 0x30402 | 0xc0000, "read or write: "
        mov eax, [cell]
.read:  mov [cell + 3], al
        nop
        DEBUG_OFF
;= read or write: 02 DR6 ffff0ff1 +07
        mov dword [origin], .beside
        DEBUG_AT L(cell), 0x30402, "a byte that is beside: "
        mov al, [cell + 1]
.beside:
        mov al, [cell - 1]
        mov eax, [cell - 3]
        DEBUG_OFF
;= a byte that is beside: 01 DR6 ffff0ff1 +0e
        mov dword [origin], .not
        DEBUG_AT L(cell), 0x30400, "not enabled: "
        mov al, [cell]
.not:   nop
        DEBUG_OFF
;= not enabled: 00
        mov rax, cr4
        or eax, 8                       ; DE
        mov cr4, rax
        mov dword [origin], .port
        DEBUG_AT 0x80, 0x20402, "port: "
.port:  in al, 0x81
        out 0x80, al
        nop
        DEBUG_OFF
;= port: 01 DR6 ffff0ff1 +04
        SAY "general detect: "
        xor eax, eax
        mov dr6, rax
        COUNT
        mov eax, 0x2400
        mov dr7, rax
        mov dword [origin], .detected
.detected:
        mov rbx, dr0
        DEBUG_OFF
;= general detect: 01 DR6 ffff2ff0 +00
;q general detect: 00
        SAY "INT1: "
        xor eax, eax
        mov dr6, rax
        COUNT
        mov dword [origin], .icebp
        mov dword [resume], .after
        mov [resume_sp], rsp
.icebp: db 0xf1
        DEBUG_OFF
;= INT1: 01 DR6 ffff0ff0 +01
;q INT1: #06(0000) +00
.after: mov word [cell], DATA64
        mov dword [origin], .merged
        mov dword [resume], .after2
        DEBUG_AT L(cell), 0x30402 | 0xc0000, "INT1 behind MOV SS tells of both: "
        mov ss, [cell]
.merged:
        db 0xf1
        DEBUG_OFF
;= INT1 behind MOV SS tells of both: 01 DR6 ffff0ff1 +01
;q INT1 behind MOV SS tells of both: #06(0000) +00
.after2:
        mov eax, 0x400
        mov dr7, rax
        SAY "an interrupt clears TF for its handler: "
        SET_GATE 0x20, on_interrupt, 0x8e00
        COUNT
        mov dword [origin], .interrupt
        pushf
        or dword [rsp], 0x100
        popf
.interrupt:
        int 0x20
        pushf
        and dword [rsp], ~0x100
        popf
        DEBUG_OFF
;= an interrupt clears TF for its handler: 03 DR6 ffff4ff0 +0b
        END

on_interrupt:
        nop
        nop
        iretq

on_debug:
        push rax
        inc qword [count]
        mov rax, [rsp + 8]
        mov [place], rax
        mov rax, dr6
        mov [dr6_seen], rax
        or dword [rsp + 24], 0x10000    ; RF: past an execution breakpoint
        xor eax, eax
        mov dr6, rax
        pop rax
        iretq

        align 16
count:  dq 0
place:  dq 0
dr6_seen: dq 0
        dq 0
cell:   dq 0, 0
        IMAGE_END
