; Two processors: start-up, atomic operations, memory order, TLB shootdown, code that the other
; processor changes.  Counts run for a time and are compared with what each processor counted, so
; the output is the same however fast they are.
; processors: 2
%include "common.inc"
%include "protected.inc"
%include "processors.inc"

IPI equ 0x30
DIRECTORY equ 0x40000
TABLE equ 0x41000
MAPPED equ 0x400000
CELL equ 0x200040
FLAG equ 0x201000
BORDER equ 0x203000
BORDER2 equ 0x205000
TIME equ 30000000                       ; of the time-stamp counter
ROUNDS equ 40

%macro COUNT 3                          ; text, what counts, where
        SAY %1
        mov dword [total], 0
        mov dword [%3], 0
        mov dword [%3 + 4], 0
        BOTH %2
        mov eax, [total]
        sub eax, [%3]
        NUMBER 8, eax
        LINE
%endmacro
%macro COUNTING 2+                      ; name, one count: it may change all but EBX, ESI, EBP
%1:     xor esi, esi
        rdtsc
        mov ebp, eax
%%again:
        %2
        inc esi
        test esi, 31
        jnz %%again
        rdtsc
        sub eax, ebp
        cmp eax, TIME
        jb %%again
        lock add [total], esi
        ret
%endmacro

start32:
        SET_GATE IPI, CODE32, on_ipi, 0x8e00
        SAY "start-up: "
        START_OTHER
        NUMBER 8, [started]
        LINE
;= start-up: 00000001
        COUNT "LOCK INC: ", count_inc, CELL
;= LOCK INC: 00000000
        COUNT "beside code: ", count_beside, beside
;= beside code: 00000000
        COUNT "across two cache lines: ", count_across, CELL - 2
;= across two cache lines: 00000000
        COUNT "LOCK XADD: ", count_xadd, CELL
;= LOCK XADD: 00000000
        COUNT "LOCK CMPXCHG: ", count_cmpxchg, CELL
;= LOCK CMPXCHG: 00000000
        COUNT "LOCK CMPXCHG8B beside code: ", count_cmpxchg8b, beside
;= LOCK CMPXCHG8B beside code: 00000000
        COUNT "XCHG is atomic without LOCK: ", count_xchg, CELL
;= XCHG is atomic without LOCK: 00000000
        COUNT "LOCK ADD across two pages, beside it: ", count_pages, BORDER
;= LOCK ADD across two pages, beside it: 00000000
        COUNT "XCHG across two pages: ", count_xchg_pages, CELL
;= XCHG across two pages: 00000000
        COUNT "LOCK CMPXCHG8B across two pages: ", count_pages_8b, BORDER - 2
;= LOCK CMPXCHG8B across two pages: 00000000
        SAY "stores are seen in order: "
        mov dword [CELL], 0
        mov dword [FLAG], 0
        mov dword [job], write_both
        call read_both
        mov dword [stop], 1
        call await
        NUMBER 8, edi
        LINE
;= stores are seen in order: 00000000

        BOTH paging_on
        mov byte [0x300000], 0x11
        mov byte [0x301000], 0x22
        SAY "TLB shootdown: "
        mov dword [job], watch_page
        xor edi, edi
        mov ebp, ROUNDS
.shoot: mov eax, 0x300003
        mov bl, 0x11
        test ebp, 1
        jz .even
        mov eax, 0x301003
        mov bl, 0x22
.even:  mov [TABLE], eax
        call send_ipi
        call next_iteration
        cmp [seen], bl
        je .good
        inc edi
.good:  dec ebp
        jnz .shoot
        mov dword [stop], 1
        call await
        NUMBER 8, edi
        LINE
;= TLB shootdown: 00000000
        SAY "code changed, then an IPI: "
        mov dword [job], watch_code
        xor edi, edi
        mov ebp, ROUNDS
.patch: mov [patched + 1], ebp
        call send_ipi
        call next_iteration
        cmp [seen], ebp
        je .same
        inc edi
.same:  dec ebp
        jnz .patch
        mov dword [stop], 1
        call await
        NUMBER 8, edi
        LINE
;= code changed, then an IPI: 00000000
        SAY "code changed, then a flag: "
        mov dword [FLAG], 0
        mov dword [job], await_code
        xor edi, edi
        mov ebp, ROUNDS
.flag:  mov [patched + 1], ebp
        mov [FLAG], ebp
.done:  pause
        cmp [FLAG], ebp
        je .done
        cmp [seen], ebp
        je .right
        inc edi
.right: dec ebp
        jnz .flag
        mov dword [stop], 1
        call await
        NUMBER 8, edi
        LINE
;= code changed, then a flag: 00000000
        END

send_ipi:
        mov dword [acknowledged], 0
        mov dword [ICR_LOW], 0x4000 | IPI
.wait:  pause
        cmp dword [acknowledged], 0
        je .wait
        ret
next_iteration:                         ; a whole one
        mov ecx, [iterations]
        add ecx, 2
.wait:  pause
        mov eax, [iterations]
        sub eax, ecx
        js .wait
        ret

        align 64
count_inc:
        COUNTING .go, lock inc dword [CELL]
count_beside:
        COUNTING .go, lock inc dword [beside]
count_across:
        COUNTING .go, lock inc dword [CELL - 2]
%macro XADD_ONE 0
        mov eax, 1
        lock xadd [CELL], eax
%endmacro
count_xadd:
        COUNTING .go, XADD_ONE
%macro CMPXCHG_ONE 0
        mov eax, [CELL]
%%try:  lea ecx, [eax + 1]
        lock cmpxchg [CELL], ecx
        jnz %%try
%endmacro
count_cmpxchg:
        COUNTING .go, CMPXCHG_ONE
%macro CMPXCHG8B_ONE 0
        mov eax, [beside]
        mov edx, [beside + 4]
%%try:  mov ebx, eax
        mov ecx, edx
        add ebx, 1
        adc ecx, 0
        lock cmpxchg8b [beside]
        jnz %%try
%endmacro
count_cmpxchg8b:
        COUNTING .go, CMPXCHG8B_ONE
%macro XCHG_ONE 0
%%try:  mov eax, 1
        xchg eax, [FLAG]
        test eax, eax
        jz %%got
        pause
        jmp %%try
%%got:  inc dword [CELL]
        mov dword [FLAG], 0
%endmacro
count_xchg:
        COUNTING .go, XCHG_ONE
%macro PAGES_ONE 0                      ; the same counter, once from the page before
        lock add dword [BORDER - 1], 0x100
        inc esi
        lock inc dword [BORDER]
%endmacro
count_pages:
        COUNTING .go, PAGES_ONE
%macro XCHG_PAGES_ONE 0
%%try:  mov eax, 1
        xchg eax, [BORDER2 - 2]
        test eax, eax
        jz %%got
        pause
        jmp %%try
%%got:  inc dword [CELL]
        mov dword [BORDER2 - 2], 0
%endmacro
count_xchg_pages:
        COUNTING .go, XCHG_PAGES_ONE
%macro PAGES_8B_ONE 0
        mov eax, [BORDER - 2]
        mov edx, [BORDER + 2]
%%try:  lea ebx, [eax + 1]
        mov ecx, edx
        lock cmpxchg8b [BORDER - 2]
        jnz %%try
%endmacro
count_pages_8b:
        COUNTING .go, PAGES_8B_ONE

write_both:
        xor eax, eax
.again: inc eax
        mov [CELL], eax
        mov [FLAG], eax
        cmp dword [stop], 0
        je .again
        ret
read_both:                              ; EDI: how often the second store was seen first
        xor edi, edi
        rdtsc
        mov ebp, eax
.again: mov ecx, [FLAG]
        mov edx, [CELL]
        cmp edx, ecx
        jae .good
        inc edi
.good:  rdtsc
        sub eax, ebp
        cmp eax, TIME
        jb .again
        ret

paging_on:
        mov dword [DIRECTORY], 0x83
        mov dword [DIRECTORY + 4], TABLE | 3
        mov dword [DIRECTORY + 1019 * 4], 0xfec00083
        mov dword [TABLE], 0x300003
        mov eax, cr4
        or eax, 0x10                    ; PSE
        mov cr4, eax
        mov eax, DIRECTORY
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000000
        mov cr0, eax
        ret

watch_page:
        sti
.again: mov al, [MAPPED]
        mov [seen], al
        inc dword [iterations]
        cmp dword [stop], 0
        je .again
        cli
        ret
watch_code:
        sti
.again: call patched
        mov [seen], eax
        inc dword [iterations]
        cmp dword [stop], 0
        je .again
        cli
        ret
await_code:                             ; FLAG: patched now; then its complement
.again: cmp dword [stop], 0
        jne .end
        cmp dword [FLAG], 0
        jle .again
        xor eax, eax
        cpuid
        call patched
        mov [seen], eax
        neg dword [FLAG]
        jmp .again
.end:   ret
on_ipi: pusha
        invlpg [MAPPED]
        xor eax, eax
        cpuid
        mov dword [EOI], 0
        mov dword [acknowledged], 1
        popa
        iret

        align 64
patched:
        mov eax, 0
        ret
        align 64
beside: dq 0                            ; where code is near, but in no 64 bytes that have any
        align 64
total:  dd 0
seen:   dd 0
iterations: dd 0
acknowledged: dd 0

        IMAGE_END
