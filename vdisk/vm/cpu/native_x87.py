"""The host's x87 registers become the guest's, and the guest's go back to the state.

``x87_enter`` loads them with FRSTOR, where all exceptions are masked, none is pending and x87 may
be used at all; ``x87_leave`` stores them with FNSAVE, which leaves the host's as C expects them.
Both go by an image in the state (SDM volume 1, figure 8-9)::

    0 control  4 status  8 tags  12 pointers (16 bytes)  28 ST(0) … ST(7), 10 bytes each

``guest_mxcsr`` and ``own_mxcsr`` stand around all generated code, ``outside`` and ``inside`` around
what it calls; after each of them the guest's registers are in the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.vm.cpu.semantics.x87_stack import ES, ST
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from vdisk.vm.cpu.builder import Value
    from vdisk.vm.cpu.llvm_builder import LlvmBuilder

IMAGE = FIELDS["x87_image0"].offset
STATUS, TAGS, POINTERS, REGISTERS = IMAGE + 4, IMAGE + 8, IMAGE + 12, IMAGE + 28
ALL_MASKED = 0x3F
TOP = 0x3800


def _image(b: LlvmBuilder, instruction: str) -> None:
    pointer = b.assign("ptr", f"getelementptr i8, ptr %st, i64 {IMAGE}").text
    b.emit(f'call void asm sideeffect "{instruction} ($0)", "r,~{{memory}}"(ptr {pointer})')


def _places(b: LlvmBuilder) -> list[tuple[int, Value]]:
    """Of each ST(i): where it is in the image, and in the state."""
    top = b.get("fpu_top")
    return [
        (REGISTERS + 10 * number, ((top + number) & 7).zext("i64") * 16 + ST) for number in range(8)
    ]


def x87_enter(b: LlvmBuilder) -> None:
    """Where it cannot be, nothing changes."""
    control, status = b.get("fpu_control"), b.get("fpu_status")
    unusual = b.get("x87_fault").ne(0) | (status & ES).ne(0)
    with b.if_(unusual | (control & ALL_MASKED).ne(ALL_MASKED), unlikely=True):
        b.return_()
    b.store_state(IMAGE, control)
    b.store_state(STATUS, status | (b.get("fpu_top") << 11))
    b.store_state(TAGS, b.get("fpu_tag"))
    b.store_state(POINTERS, b.const("i128", 0))
    for image, place in _places(b):
        b.store_state(image, b.load_state(place, "i64"))
        b.store_state(image + 8, b.load_state(place + 8, "i16"))
    _image(b, "frstor")
    b.set("x87_live", 1)
    b.return_()


def x87_leave(b: LlvmBuilder) -> None:
    """Nothing, if they are in the state already."""
    with b.if_(b.get("x87_live").eq(0)):
        b.return_()
    _image(b, "fnsave")
    b.set("x87_live", 0)
    status = b.load_state(STATUS, "i16").zext("i32")
    b.set("fpu_status", status & ~TOP)
    b.set("fpu_top", (status >> 11) & 7)
    b.set("fpu_tag", b.load_state(TAGS, "i16").zext("i32"))
    for image, place in _places(b):
        b.store_state(place, b.load_state(image, "i64"))
        b.store_state(place + 8, b.load_state(image + 8, "i16"))
    b.return_()
