; Long straight code behind repeated instructions: where a run is cut must not change it.
%include "common.inc"
%include "protected.inc"

start32:
        mov ebp, 150
        xor edx, edx
        xor ebx, ebx
.again: mov edi, 0x200000
        mov ecx, 2000
        mov al, 1
        inc ebx
        inc ebx
        repne scasb
        sub edi, 0x200000
        add edx, edi
%rep 90
        inc edx
        xor ebx, edx
%endrep
        mov esi, 0x200000
        mov ecx, 500
        rep lodsb
        add ebx, esi
        dec ebp
        jnz .again
        NUMBER 8, edx
        SAY " "
        NUMBER 8, ebx
        LINE
;= 0004c89c 12c0f9ec
        END
        IMAGE_END
