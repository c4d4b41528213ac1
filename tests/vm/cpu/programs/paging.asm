; 32-bit and PAE paging: rights, accessed and dirty bits, large pages, global pages.
%include "common.inc"
%include "protected.inc"

P equ 1
W equ 2
U equ 4
A equ 0x20
D equ 0x40
PS equ 0x80
G equ 0x100
DIRECTORY equ 0x40000
TABLE equ 0x41000
PDPT equ 0x42000
PAE_DIRECTORY equ 0x43000               ; four pages
PAE_TABLE equ 0x47000
MAPPED equ 0x400000                     ; what TABLE, PAE_TABLE map
LARGE equ 0x800000

%macro ENTRY 2                          ; where, value: and forget the translation
        mov dword [%1], %2
        invlpg [MAPPED]
%endmacro
%macro SHOW 2                           ; text, where
        SAY %1
        NUMBER 8, [%2]
        LINE
%endmacro

start32:
        mov edi, DIRECTORY
        xor eax, eax
        mov ecx, 0x8000 / 4
        rep stosd
        mov dword [DIRECTORY], P | W | U | PS
        mov dword [DIRECTORY + 4], TABLE | P | W | U
        mov eax, cr4
        or eax, 0x90                    ; PSE, PGE
        mov cr4, eax
        mov eax, DIRECTORY
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80010000              ; PG, WP
        mov cr0, eax
        SAY "32-bit paging", 10
;= 32-bit paging
        SAY "read of nothing: "
        TRY mov al, [MAPPED + 0x234]
;= read of nothing: #0e(0000) +00 cr2 00400234
        SHOW "nothing was accessed: ", DIRECTORY + 4
;= nothing was accessed: 00041007
;q nothing was accessed: 00041027
        SAY "nothing stays nothing: "
        NUMBER 8, [TABLE]
        LINE
;= nothing stays nothing: 00000000
        SAY "read-only: "
        ENTRY TABLE, 0x200000 | P
        TRY mov al, [MAPPED]
;= read-only: none
        SHOW "accessed: ", TABLE
;= accessed: 00200021
        SAY "write to read-only: "
        TRY mov [MAPPED], al
;= write to read-only: #0e(0003) +00 cr2 00400000
        SHOW "not dirty: ", TABLE
;= not dirty: 00200021
        SAY "writable: "
        ENTRY TABLE, 0x200000 | P | W
        TRY mov [MAPPED], al
;= writable: none
        SHOW "dirty: ", TABLE
;= dirty: 00200063
        SHOW "a directory is accessed only: ", DIRECTORY + 4
;= a directory is accessed only: 00041027
        SAY "read-only by its directory: "
        mov dword [DIRECTORY + 4], TABLE | P | U
        invlpg [MAPPED]
        TRY mov [MAPPED], al
;= read-only by its directory: #0e(0003) +00 cr2 00400000
        mov dword [DIRECTORY + 4], TABLE | P | W | U
        SAY "4 MiB page: "
        mov dword [DIRECTORY + 8], 0x800000 | P | W | PS
        TRY mov [LARGE + 0x3ffffc], eax
;= 4 MiB page: none
        SHOW "dirty: ", DIRECTORY + 8
;= dirty: 008000e3
        SAY "it is where it should be: "
        mov dword [DIRECTORY + 12], 0x800000 | P | W | PS
        mov dword [LARGE + 0x123456], 0xc0ffee
        NUMBER 8, [LARGE + 0x523456]
        LINE
;= it is where it should be: 00c0ffee
        SAY "INVLPG forgets all of it: "
        mov dword [DIRECTORY + 8], 0x400000 | P | W | PS
        invlpg [LARGE + 0x3ff000]
        mov dword [LARGE + 0x123456], 0xbad
        NUMBER 8, [LARGE + 0x523456]
        LINE
;= INVLPG forgets all of it: 00c0ffee
        SAY "user reads supervisor: "
        ENTRY TABLE, 0x200000 | P | W
        TRY3 user_read
;= user reads supervisor: #0e(0005) +00 cr2 00400000
        SAY "user writes read-only: "
        ENTRY TABLE, 0x200000 | P | U
        TRY3 user_write
;= user writes read-only: #0e(0007) +00 cr2 00400000
        SAY "user reads: "
        TRY3 user_read
;= user reads: #06(0000) +05
        SAY "user writes nothing: "
        ENTRY TABLE, 0
        TRY3 user_write
;= user writes nothing: #0e(0006) +00 cr2 00400000
        SAY "supervisor writes user's read-only with WP: "
        ENTRY TABLE, 0x200000 | P | U
        TRY mov [MAPPED], al
;= supervisor writes user's read-only with WP: #0e(0003) +00 cr2 00400000
        mov eax, cr0
        and eax, ~0x10000
        mov cr0, eax
        SAY "without: "
        TRY mov [MAPPED], al
;= without: none
        SAY "and users still do not: "
        TRY3 user_write
;= and users still do not: #0e(0007) +00 cr2 00400000
        mov eax, cr0
        or eax, 0x10000
        mov cr0, eax

        SAY "a global page outlives CR3: "
        ENTRY TABLE, 0x200000 | P | W | G
        mov byte [MAPPED], 0x11
        mov byte [0x201000], 0x22
        mov dword [TABLE], 0x201000 | P | W | G
        mov eax, cr3
        mov cr3, eax
        invlpg [MAPPED]
        movzx eax, byte [MAPPED]
        NUMBER 2, eax
        LINE
;= a global page outlives CR3: 22
        SAY "CR4.PGE off forgets it: "
        mov dword [TABLE], 0x200000 | P | W | G
        mov eax, cr4
        xor eax, 0x80
        mov cr4, eax
        xor eax, 0x80
        mov cr4, eax
        movzx eax, byte [MAPPED]
        NUMBER 2, eax
        LINE
;= CR4.PGE off forgets it: 11
        SAY "CR3 forgets others: "
        ENTRY TABLE, 0x200000 | P | W
        mov al, [MAPPED]
        mov dword [TABLE], 0x201000 | P | W
        mov eax, cr3
        mov cr3, eax
        movzx eax, byte [MAPPED]
        NUMBER 2, eax
        LINE
;= CR3 forgets others: 22
        SAY "two pages that do not follow each other: "
        mov dword [TABLE], 0x203000 | P | W
        mov dword [TABLE + 4], 0x201000 | P | W
        mov eax, cr3
        mov cr3, eax
        mov dword [MAPPED + 0xffe], 0x44332211
        NUMBER 4, [0x203ffe]
        SAY " "
        NUMBER 4, [0x201000]
        LINE
;= two pages that do not follow each other: 2211 4433
        SAY "write across into nothing: "
        mov dword [TABLE + 4], 0
        invlpg [MAPPED + 0x1000]
        mov word [0x203ffe], 0xabcd
        TRY mov [MAPPED + 0xffe], eax
        NUMBER 4, [0x203ffe]
        LINE
;= write across into nothing: #0e(0002) +00 cr2 00401000
;= abcd
        SAY "XADD in read-only memory changes no register: "
        ENTRY TABLE, 0x203000 | P
        mov ebx, 0x1234
        mov [other], ebx
        TRY xadd [MAPPED], ebx
;= XADD in read-only memory changes no register: #0e(0003) +00 cr2 00400000

        mov eax, cr0
        and eax, ~0x80000000
        mov cr0, eax
        SAY "PAE", 10
;= PAE
        mov dword [PDPT], PAE_DIRECTORY | P
        mov dword [PAE_DIRECTORY], P | W | U | PS
        mov dword [PAE_DIRECTORY + 8], 0x200000 | P | W | U | PS
        mov dword [PAE_DIRECTORY + 16], PAE_TABLE | P | W | U
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        mov eax, PDPT
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x800                   ; NXE
        wrmsr
        mov eax, cr0
        or eax, 0x80010000
        mov cr0, eax
        mov dword [PAE_TABLE], 0x200000 | P | W
        SAY "write: "
        TRY mov [MAPPED], al
;= write: none
        SHOW "dirty: ", PAE_TABLE
;= dirty: 00200063
        SAY "NX: "
        mov byte [MAPPED], 0xc3
        mov dword [PAE_TABLE + 4], 1 << 31
        invlpg [MAPPED]
        mov eax, MAPPED
        TRY call eax
;= NX: #0e(0011) +far cr2 00400000
        SAY "no NX: "
        mov dword [PAE_TABLE + 4], 0
        invlpg [MAPPED]
        mov eax, MAPPED
        TRY call eax
;= no NX: none
        SAY "absent directory: "
        TRY mov al, [0x40000000]
;= absent directory: #0e(0000) +00 cr2 40000000
        SAY "PDPTEs are read with CR3 only: "
        mov dword [PDPT + 8], PAE_DIRECTORY | P
        TRY mov al, [0x40000000]
;= PDPTEs are read with CR3 only: #0e(0000) +00 cr2 40000000
;q PDPTEs are read with CR3 only: none
        mov eax, cr3
        mov cr3, eax
        SAY "now: "
        TRY mov al, [0x40000000]
;= now: none
        SAY "reserved bit of a PDPTE: "
        mov dword [PDPT + 16], 2 | P
        mov eax, cr3
        TRY mov cr3, eax
;= reserved bit of a PDPTE: #0d(0000) +00
;q reserved bit of a PDPTE: none
        END

        align 16
user_read:
        mov al, [MAPPED]
        ud2
user_write:
        mov [MAPPED], al
        ud2
other:  dd 0
        IMAGE_END
