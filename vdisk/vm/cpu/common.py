"""Instructions that most guests have: what is compiled before any guest asks for it.

They stand in a text file beside this module, in the order in which guests come to need them::

    64 4801d8 -!,f            add rax,rbx
    64 7400 sub8,sub32        je short 2

mode (``16``, ``32``, ``64``; behind a ``/`` the width of the stack pointer, where that is another;
``c`` where segments are checked), bytes, variants, and the same for people to read.  A variant
says whether somebody looks at the flags that the instruction leaves (``f``), and which operation
left those that it finds, where that matters (``sub32``).  In the handlers of variants with a ``!``
kernels spend nearly all of their time until they have a shell.

An instruction stands for all that are lowered to the same shapes.  Shapes themselves are not in
the file, so it does not depend on what they are called.

Two more files, compressed, have all instructions that a 64-bit and a 32-bit kernel were seen to
execute until they had a shell: lines for those of the same variants, one behind the other.  Half of
what a kernel of another origin executes is not among them, and has to be learned.
bench/common_code.py makes all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from vdisk.vm.cpu.decode import Mode
from vdisk.vm.cpu.flags import ALL_CC_OPS, Family, cc_op
from vdisk.vm.cpu.translate import mode_shapes, variant_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vdisk.vm.cpu.context import Shape
    from vdisk.vm.cpu.decode import Form
    from vdisk.vm.cpu.decoder import Decoder

FILE = Path(__file__).with_suffix(".txt")
KERNELS_FILES = {bits: Path(__file__).with_name(f"kernels-{bits}.txt.zst") for bits in (32, 64)}


OFTEN = "!"


def _variants() -> dict[str, int]:
    found = {"-": 0, "f": 1}
    for family, size in ALL_CC_OPS:
        name, key = f"{Family(family).name.lower()}{size}", (cc_op(family, size) + 1) << 1
        found |= {name: key, f"{name}+f": key | 1}
    return found


VARIANTS = _variants()
"""Keys (:func:`vdisk.vm.cpu.translate.variant_shapes`) by what the file calls them."""
_NAMES = {key: name for name, key in VARIANTS.items()}


class Common(NamedTuple):
    """One line."""

    mode: Mode
    code: bytes
    """An instruction, or several."""
    variants: tuple[int, ...]
    often: tuple[int, ...] = ()
    """Of these variants, those that are executed most."""

    def text(self) -> str:
        """The line, without what it is for people."""
        mode = self.mode
        stack = "" if mode.stack == mode.code else f"/{mode.stack}"
        variants = ",".join(_NAMES[key] + OFTEN * (key in self.often) for key in self.variants)
        return f"{mode.code}{stack}{'c' * mode.checked} {self.code.hex()} {variants}"

    @classmethod
    def parse(cls, line: str) -> Common:
        """What :meth:`text` gave, whatever follows it.

        Raises :class:`ValueError`, :class:`KeyError` for another variant.
        """
        mode, code, variants, *_ = line.split(maxsplit=3)
        bits, _, stack = mode.removesuffix("c").partition("/")
        names = variants.split(",")
        return cls(
            Mode(int(bits), int(stack or bits), checked=mode.endswith("c")),
            bytes.fromhex(code),
            tuple(VARIANTS[name.removesuffix(OFTEN)] for name in names),
            tuple(VARIANTS[name.removesuffix(OFTEN)] for name in names if name.endswith(OFTEN)),
        )


def common_instructions(path: Path = FILE) -> list[Common]:
    """All of them."""
    return _parse(path.read_text(encoding="utf-8"))


def kernel_instructions(bits: int) -> list[Common]:
    """What a kernel of 32 or 64 bits executes, several instructions at a time."""
    return _parse(zstandard.decompress(KERNELS_FILES[bits].read_bytes()).decode())


def _parse(text: str) -> list[Common]:
    return [Common.parse(line) for line in text.splitlines() if not line.startswith("#")]


def shapes_of(found: Iterable[Common], decoder: Callable[[Mode], Decoder]) -> list[Shape]:
    """The shapes that these instructions, and their modes, need handlers for; each once."""
    shapes: dict[Shape, None] = {}
    for each in found:
        form = form_of(each.code, decoder(each.mode))
        shapes |= dict.fromkeys(mode_shapes(each.mode))
        for key in each.variants:
            shapes |= dict.fromkeys(variant_shapes(form, key))
    return list(shapes)


def form_of(code: bytes, decoder: Decoder) -> Form:
    """The form of one whole instruction."""
    ((_, instruction),) = decoder.instructions(code)
    return decoder.form(code, instruction)
