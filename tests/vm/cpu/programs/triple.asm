; A machine whose exceptions cannot be delivered stops.
%include "common.inc"
%include "protected.inc"

start32:
        SAY "no IDT", 10
;= no IDT
        lidt [nothing]
        ud2
        SAY "not reached", 10
        END
nothing: dw 0
        dd 0
        IMAGE_END
