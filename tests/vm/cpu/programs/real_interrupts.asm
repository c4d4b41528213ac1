; INT and IRET in real mode: what is pushed, what comes back, stacks that wrap, single steps.
%include "common.inc"

FLAGS_OFF equ 0x0002
OTHER_STACK equ 0x5000

%macro CASE 2                           ; flags at INT, and which of them the handler turns over
        mov word [O(before)], %1
        mov word [O(change)], %2
        call one
%endmacro

main:
        VECTOR 1, on_step
        VECTOR 0x22, on_22
        CASE 0x0002, 0
;= 0002 pushed 0002 inside 0002 afterwards 0002
        CASE 0x0ed7, 0
;= 0ed7 pushed 0ed7 inside 0cd7 afterwards 0ed7
        CASE 0x7002, 0
;= 7002 pushed 7002 inside 7002 afterwards 7002
        CASE 0x0202, 0x0ad5
;= 0202 pushed 0202 inside 0002 afterwards 08d7
        CASE 0x0002, 0x7ed5
;= 0002 pushed 0002 inside 0002 afterwards 7ed7
        SAY "again and again: "
        mov word [O(change)], 1
        mov cx, 3000
        xor bx, bx
.more:  add bx, cx                      ; flags that nobody has looked at yet
        int 0x22
        adc bx, 0
        loop .more
        NUMBER 4, ebx
        LINE
;= again and again: bb70
        SAY "the upper half of ESP: "
        mov word [O(change)], 0
        mov ebx, esp
        and esp, 0xffff
        or esp, 0x12340000
        int 0x22
        mov eax, esp
        mov esp, ebx
        sub eax, ebx
        NUMBER 8, eax
        SAY " inside "
        NUMBER 8, [O(esp_inside)]
        LINE
;= the upper half of ESP: 12340000 inside 1234fefa
        SAY "another stack, SP 6: "
        mov bx, 6
        call on_other_stack
        NUMBER 8, [es:0]
        NUMBER 4, [es:4]
        LINE
;= another stack, SP 6: 100000000002
        SAY "SP 4 wraps: "
        mov bx, 4
        call on_other_stack
        movzx eax, word [es:0xfffe]
        NUMBER 4, eax
        NUMBER 8, [es:0]
        LINE
;= SP 4 wraps: 000000021000
        SAY "SP 0: "
        mov bx, 0
        call on_other_stack
        NUMBER 8, [es:0xfffa]
        movzx eax, word [es:0xfffe]
        NUMBER 4, eax
        LINE
;= SP 0: 100000000002
        SAY "IRET from a stack that wraps: "
        mov ax, OTHER_STACK
        mov es, ax
        mov word [es:0xfffe], O(.wrapped)
        mov word [es:0], BASE >> 4
        mov word [es:2], 0x0803
        mov dx, sp
        mov ss, ax
        mov sp, 0xfffe
        iret
.wrapped:
        pushf
        pop bx
        mov cx, sp
        mov ax, BASE >> 4
        mov ss, ax
        mov sp, dx
        NUMBER 4, ebx
        NUMBER 4, ecx
        LINE
;= IRET from a stack that wraps: 08030004
        SAY "to another segment: "
        pushf
        push word (BASE >> 4) - 0x20
        push word O(.elsewhere) + 0x200
        iret
.elsewhere:
        mov ax, cs
        NUMBER 4, eax
        int 0x22
.behind:
        jmp (BASE >> 4):O(.back)
.back:  mov ax, [O(from)]
        sub ax, O(.behind) + 0x200
        SAY " and INT there pushes "
        NUMBER 4, eax
        LINE
;= to another segment: 0fe0 and INT there pushes 0000
        SAY "flags that the next instruction changes: "
        mov ax, 0
        sub ax, 1
        int 0x22
        xor ax, ax
        NUMBER 4, [O(saved)]
        LINE
;= flags that the next instruction changes: 0097
        SAY "TF by IRET: "
        push word 0x0102
        push cs
        push word O(.stepped)
        iret
.stepped:
        nop
        nop
        mov word [O(flags_wanted)], 0   ; no more steps
        nop
        NUMBER 2, [O(steps)]
        LINE
;= TF by IRET: 03
        SAY "INT while it steps: "
        mov byte [O(steps)], 0
        mov word [O(flags_wanted)], 0x100
        push word 0x0102
        popf
        int 0x22                        ; its handler does not step; INT itself gives no trap
        mov word [O(flags_wanted)], 0
        nop
        NUMBER 4, [O(saved)]
        SAY " inside "
        NUMBER 4, [O(inside)]
        SAY " steps "
        NUMBER 2, [O(steps)]
        LINE
;= INT while it steps: 0102 inside 0002 steps 01
        SAY "a frame over code: "
        mov dx, sp
        mov word [O(slot)], 0x9090
        call slot                       ; is translated now
        mov sp, O(slot) + 6
        int 0x22
        mov sp, dx
        mov ax, [O(slot) + 2]
        NUMBER 4, eax
        mov dword [O(slot)], 0x42b0     ; MOV AL, 42h
        mov word [O(slot) + 2], 0x9090
        mov word [O(slot) + 4], 0x9090
        call slot
        NUMBER 2, eax
        LINE
;= a frame over code: 100042
        END

one:    push word [O(before)]
        popf
        int 0x22
        pushf
        pop word [O(after)]
        push word FLAGS_OFF
        popf
        NUMBER 4, [O(before)]
        SAY " pushed "
        NUMBER 4, [O(saved)]
        SAY " inside "
        NUMBER 4, [O(inside)]
        SAY " afterwards "
        NUMBER 4, [O(after)]
        LINE
        ret

on_other_stack:                         ; INT with SP BX in a segment that is left in ES
        mov ax, OTHER_STACK
        mov es, ax
        mov dx, sp
        push word FLAGS_OFF
        popf
        mov ss, ax
        mov sp, bx
        int 0x22
.behind:
        mov ax, BASE >> 4
        mov ss, ax
        mov sp, dx
        sub bx, 6
        sub word [es:bx], O(.behind)    ; what was pushed, from there
        ret

on_22:  pushf
        pop word [O(inside)]
        mov [O(esp_inside)], esp
        push bp
        mov bp, sp
        push ax
        mov ax, [bp + 6]
        mov [O(saved)], ax
        mov ax, [bp + 2]
        mov [O(from)], ax
        mov ax, [O(change)]
        xor [bp + 6], ax
        pop ax
        pop bp
        iret

on_step:
        inc byte [O(steps)]
        push bp
        mov bp, sp
        push ax
        mov ax, [O(flags_wanted)]
        and word [bp + 6], ~0x100
        or [bp + 6], ax
        pop ax
        pop bp
        iret

        align 16
before: dw 0
change: dw 0
saved:  dw 0
from:   dw 0
inside: dw 0
after:  dw 0
esp_inside: dd 0
flags_wanted: dw 0x100
steps:  dw 0
        align 4096
slot:   times 6 nop
        ret
        IMAGE_END
