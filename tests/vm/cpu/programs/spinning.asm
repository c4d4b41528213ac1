; A processor that waits in a loop with PAUSE for one that works: nobody need notice that it sleeps.
; processors: 2
%include "common.inc"
%include "protected.inc"
%include "processors.inc"

TIME equ 300000000                      ; of the time-stamp counter

start32:
        START_OTHER
        SAY "at work: "
        mov dword [job], spin
        rdtsc
        mov ebp, eax
.work:  rdtsc
        sub eax, ebp
        cmp eax, TIME
        jb .work
        NUMBER 8, [seen]
        mov dword [flag], 0x600d
        call await
        SAY " done: "
        NUMBER 8, [seen]
        LINE
;= at work: 00000000 done: 0000600d
        SAY "many times for a moment: "
        mov ecx, 200
        mov dword [flag], 0
        mov dword [job], answer
.ask:   inc dword [flag]
        mov eax, [flag]
.until: pause
        cmp [seen], eax
        jne .until
        loop .ask
        mov dword [stop], 1
        call await
        NUMBER 8, [seen]
        LINE
;= many times for a moment: 000000c8
        END

spin:   pause
        mov eax, [flag]
        test eax, eax
        jz spin
        mov [seen], eax
        ret
answer: pause
        mov eax, [flag]
        mov [seen], eax
        cmp dword [stop], 0
        je answer
        ret

        align 64
flag:   dd 0
        align 64
seen:   dd 0
        IMAGE_END
