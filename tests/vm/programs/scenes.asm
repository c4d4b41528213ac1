; Screens of every kind of mode, one after the other: a disk's boot sector and what it loads.
;
; The host sends the number of a scene on COM1; the guest sets the mode by the BIOS, draws, and
; answers 'k', or '!' where its firmware has no such mode. A scene's fonts are its own, since those
; of BIOSes differ.

bits 16
cpu 386
org 0x7c00

SECTORS equ 24
PLANE_BYTES equ 0x3000              ; of each plane: a trip through the bus for each byte is slow

    jmp 0:begin
begin:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    mov bp, 0x7e00
    mov si, 1                       ; sectors one by one: no geometry matters in the first track
load:
    mov bx, bp
    mov ax, si
    inc ax
    mov cx, ax                      ; cylinder 0, sector
    mov dx, 0x0080
    mov ax, 0x0201
    int 0x13
    jc $
    add bp, 512
    inc si
    cmp si, SECTORS
    jbe load
    mov dx, 0x3fb                   ; COM1: 8 bits, as fast as it likes
    mov al, 3
    out dx, al
    jmp main
times 510 - ($ - $$) db 0
    dw 0xaa55

main:
    mov al, 'r'
    call answer
.next:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz .next
    mov dx, 0x3f8
    in al, dx
    movzx bx, al
    shl bx, 1
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov byte [verdict], 'k'
    call [table + bx]
    mov al, [verdict]
    call answer
    jmp .next

answer:
    mov dx, 0x3f8
    out dx, al
    ret

verdict: db 'k'

table:
    dw text_80, text_80_bright, text_40, text_50, text_start, text_cursor, text_two_fonts
    dw mode_13h, mode_13h_dac, mode_13h_split, mode_13h_panned, mode_x
    dw mode_12h, mode_12h_logic, mode_12h_modes, mode_12h_split, mode_12h_panned, mode_12h_palette
    dw mode_0dh, mode_10h, mode_11h, mode_4, mode_6
    dw vbe_8, vbe_15, vbe_16, vbe_24, vbe_32, vbe_8_wide_dac, vbe_panned, vbe_by_bios

; -- helpers ---------------------------------------------------------------------------------------

%macro indexed 3                    ; port, index, value
    mov dx, %1
    mov ax, %3 << 8 | %2
    out dx, ax
%endmacro

%macro dispi 2                      ; index, value
    mov dx, 0x1ce
    mov ax, %1
    out dx, ax
    inc dx
    mov ax, %2
    out dx, ax
%endmacro

%macro attribute 2                  ; index, value
    mov dx, 0x3da
    in al, dx
    mov dx, 0x3c0
    mov al, %1
    out dx, al
    mov al, %2
    out dx, al
    mov al, 0x20
    out dx, al
%endmacro

set_mode:                           ; AL
    xor ah, ah
    int 0x10
    ret

font_16:                            ; a font of our own: glyph n, line m: a byte of both
    mov di, 0x9000
    xor bx, bx
.byte:
    mov al, bl
    rol al, 3
    xor al, bh
    mov cl, bh
    rol al, cl
    stosb
    inc bh
    cmp bh, 16
    jne .byte
    xor bh, bh
    inc bl
    jnz .byte
    ret

load_font:                          ; AL: what to do with it, BH: lines of a glyph
    push ax
    push bx
    call font_16
    pop bx
    pop ax
    mov ah, 0x11
    xor bl, bl
    mov cx, 256
    xor dx, dx
    mov bp, 0x9000
    push es
    push ds
    pop es
    int 0x10
    pop es
    ret

hide_cursor:
    mov ah, 1
    mov cx, 0x2000
    int 0x10
    ret

fill_text:                          ; characters and attributes of all kinds, CX cells
    mov ax, 0xb800
    mov es, ax
    xor di, di
    xor bx, bx
.cell:
    mov al, bl
    add al, bh
    cmp al, 0xb0                    ; QEMU gives these a ninth dot too
    jb .fine
    cmp al, 0xc0
    jae .fine
    sub al, 0x50
.fine:
    mov ah, bl
    rol ah, 1
    add ah, bh
    and ah, [mask]
    stosw
    inc bx
    loop .cell
    ret
mask: db 0x7f

fill_64k:                           ; A0000, bytes of any kind
    xor cx, cx
fill:                               ; CX bytes
    mov ax, 0xa000
    mov es, ax
    xor di, di
.byte:
    mov ax, di
    add al, ah
    rol al, 1
    xor al, [seed]
    stosb
    loop .byte
    ret
seed: db 0

text_screen:                        ; mode AL, glyphs of BH lines, CX cells of which none blinks
    push cx
    push bx
    call set_mode
    pop bx
    mov al, 0x10
    call load_font
    call hide_cursor
    mov byte [mask], 0x7f
    pop cx
    jmp fill_text

planes:                             ; each plane another pattern
    mov si, 1
.plane:
    mov dx, 0x3c4
    mov al, 2
    out dx, al
    inc dx
    mov ax, si
    out dx, al
    imul ax, si, 59
    mov [seed], al
    mov cx, PLANE_BYTES
    call fill
    shl si, 1
    cmp si, 16
    jne .plane
    indexed 0x3c4, 2, 0x0f
    ret

planar:                             ; mode AL
    call set_mode
    jmp planes

; -- text ------------------------------------------------------------------------------------------

text_80:
    mov al, 3
    mov bh, 16
    mov cx, 80 * 25
    jmp text_screen

text_80_bright:
    call text_80
    mov ax, 0x1003
    xor bx, bx
    int 0x10
    mov byte [mask], 0xff
    mov cx, 80 * 25
    jmp fill_text

text_40:
    mov al, 1
    mov bh, 16
    mov cx, 40 * 25
    call text_screen
    indexed 0x3c4, 1, 9             ; QEMU has no cells of 18 dots
    ret

text_50:
    mov al, 3
    mov bh, 8
    mov cx, 80 * 50
    jmp text_screen

text_start:
    call text_80
    mov cx, 80 * 40
    call fill_text
    indexed 0x3d4, 0x0d, 85
    ret

text_cursor:
    mov al, 3
    call set_mode
    mov byte [mask], 0x7f
    mov ah, 1
    mov cx, 0x0306
    int 0x10
    indexed 0x3d4, 0x0a, 3
    indexed 0x3d4, 0x0b, 9
    mov ah, 2
    xor bh, bh
    mov dx, 0x050a
    int 0x10
    mov ax, 0xb800
    mov es, ax
    mov word [es:(5 * 80 + 10) * 2], 0x4e20
    ret

text_two_fonts:
    call text_80
    mov ax, 0x1103                  ; bit 3 of an attribute chooses block 1
    mov bl, 0x04
    int 0x10
    call font_16
    mov cx, 4096
    mov si, 0x9000
.invert:
    not byte [si]
    inc si
    loop .invert
    mov ax, 0x1100
    mov bx, 0x1001
    mov cx, 256
    xor dx, dx
    mov bp, 0x9000
    push ds
    pop es
    int 0x10
    ret

; -- 256 colours -----------------------------------------------------------------------------------

mode_13h:
    mov al, 0x13
    call set_mode
    mov byte [seed], 0
    jmp fill_64k

mode_13h_dac:
    call mode_13h
    jmp colours

colours:                            ; what a mode does not use BIOSes leave, or clear
    mov ah, 11
colours_by:                         ; AH more each time
    mov dx, 0x3c8
    xor al, al
    out dx, al
    inc dx
    mov cx, 256 * 3
    mov al, 7
.part:
    add al, ah
    out dx, al
    loop .part
    ret

mode_13h_split:
    call mode_13h
    indexed 0x3d4, 0x0c, 0x20
    indexed 0x3d4, 0x18, 0x7f       ; line 127: bit 8 is in CR07, bit 9 in CR09
    indexed 0x3d4, 0x07, 0x0f
    indexed 0x3d4, 0x09, 0x01
    ret

mode_13h_panned:
    call mode_13h
    attribute 0x13, 6
    ret

mode_x:
    call mode_13h
    indexed 0x3c4, 4, 6
    indexed 0x3d4, 0x14, 0
    indexed 0x3d4, 0x17, 0xe3
    call planes
    indexed 0x3d4, 0x0c, 0x10       ; another page
    indexed 0x3d4, 0x0d, 0x03
    ret

; -- 16 colours ------------------------------------------------------------------------------------

mode_12h:
    mov al, 0x12
    jmp planar

mode_12h_logic:                     ; set/reset, rotation, AND, OR, XOR, the bit mask
    call mode_12h
    mov ax, 0xa000
    mov es, ax
    indexed 0x3ce, 0, 0x0a          ; set/reset
    indexed 0x3ce, 1, 0x06          ; for planes 1 and 2
    xor bx, bx
    xor di, di
.line:
    mov dx, 0x3ce
    mov al, 3
    mov ah, bl
    and ah, 0x1f                    ; rotation and function
    out dx, ax
    mov al, 8
    mov ah, bl
    rol ah, 3
    xor ah, 0x5a
    out dx, ax
    mov cx, 80
.byte:
    mov al, [es:di]                 ; latches
    mov ax, di
    stosb
    loop .byte
    inc bx
    cmp bx, 128
    jne .line
    indexed 0x3ce, 1, 0
    indexed 0x3ce, 3, 0
    indexed 0x3ce, 8, 0xff
    ret

mode_12h_modes:                     ; write modes 1, 2, 3; read mode 1
    call mode_12h
    mov ax, 0xa000
    mov es, ax
    mov ds, ax
    indexed 0x3ce, 5, 1
    xor si, si
    mov di, 160 * 80
    mov cx, 80 * 20
    rep movsb
    indexed 0x3ce, 5, 2
    indexed 0x3ce, 8, 0x3c
    mov di, 80 * 20
    mov cx, 80 * 32
.two:
    mov al, [es:di]
    mov ax, di
    stosb
    loop .two
    indexed 0x3ce, 0, 5
    indexed 0x3ce, 5, 3
    indexed 0x3ce, 8, 0xf3
    indexed 0x3ce, 3, 2
    mov di, 80 * 60
    mov cx, 80 * 32
.three:
    mov al, [es:di]
    mov ax, di
    stosb
    loop .three
    indexed 0x3ce, 3, 0
    indexed 0x3ce, 8, 0xff
    indexed 0x3ce, 5, 8             ; what reads as colour 6 is marked
    indexed 0x3ce, 2, 6
    indexed 0x3ce, 7, 0x0d
    mov si, 80 * 100
    mov di, 80 * 200
    mov cx, 80 * 20
    rep movsb
    indexed 0x3ce, 5, 0
    indexed 0x3ce, 0, 0
    xor ax, ax
    mov ds, ax
    ret

mode_12h_split:
    call mode_12h
    indexed 0x3d4, 0x0c, 0x02
    indexed 0x3d4, 0x0d, 0x34
    indexed 0x3d4, 0x18, 0x50       ; line 80
    indexed 0x3d4, 0x09, 0x00
    indexed 0x3d4, 0x07, 0x2e
    ret

mode_12h_panned:
    call mode_12h
    attribute 0x13, 5
    ret

mode_12h_palette:
    call mode_12h
    attribute 0x03, 0x2a
    attribute 0x04, 0x15
    attribute 0x12, 0x0d            ; a plane is not shown
    attribute 0x10, 0x81
    attribute 0x14, 0x06
    jmp colours

mode_0dh:
    mov al, 0x0d
    jmp planar

mode_10h:
    mov al, 0x10
    jmp planar

mode_11h:
    mov al, 0x11
    jmp planar

cga:
    call set_mode
    mov ax, 0xb800
    mov es, ax
    xor di, di
    mov cx, 0x4000
.byte:
    mov ax, di
    rol al, 2
    xor al, ah
    stosb
    loop .byte
    ret

mode_4:
    mov al, 4
    jmp cga

mode_6:
    mov al, 6
    jmp cga

; -- the Bochs display interface -------------------------------------------------------------------

linear:                             ; depth AX, 640 x 400: fill all of it through the banks
    push ax
    call colours
    dispi 4, 0
    dispi 1, 640
    dispi 2, 400
    pop bx
    mov dx, 0x1ce
    mov ax, 3
    out dx, ax
    inc dx
    mov ax, bx
    out dx, ax
    dispi 4, 1
    mov ax, bx
    add ax, 7
    shr ax, 3
    imul ax, ax, 4                  ; banks, rounded up: 640 * 400 is just below 4 of them
    mov bp, ax
    xor si, si
.bank:
    mov dx, 0x1ce
    mov ax, 5
    out dx, ax
    inc dx
    mov ax, si
    out dx, ax
    imul ax, si, 29
    mov [seed], al
    call fill_64k
    inc si
    cmp si, bp
    jne .bank
    ret

%macro linear_scene 2
%1:
    mov ax, %2
    jmp linear
%endmacro

linear_scene vbe_8, 8
linear_scene vbe_15, 15
linear_scene vbe_16, 16
linear_scene vbe_24, 24
linear_scene vbe_32, 32

vbe_8_wide_dac:
    mov ax, 8
    call linear
    dispi 4, 0x20 | 0x80 | 1        ; eight bits of each part; memory stays
    mov ah, 13
    jmp colours_by

vbe_panned:
    mov ax, 16
    call linear
    dispi 6, 800                    ; virtual width
    dispi 8, 56
    dispi 9, 33
    ret

vbe_by_bios:                        ; mode 101h, 640 x 480 of 256 colours
    mov ax, 0x4f02
    mov bx, 0x0101
    int 0x10
    cmp ax, 0x004f
    je .there
    mov byte [verdict], '!'
    ret
.there:
    xor si, si
.bank:
    mov ax, 0x4f05
    xor bx, bx
    mov dx, si
    int 0x10
    mov [seed], si
    call fill_64k
    inc si
    cmp si, 5
    jne .bank
    ret

times (SECTORS + 1) * 512 - ($ - $$) db 0
