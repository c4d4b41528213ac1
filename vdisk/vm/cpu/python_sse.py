"""What :class:`~vdisk.vm.cpu.python_builder.PythonBuilder` calls for SSE and MMX, by mnemonic.

Native code has the host's MXCSR collect exception flags; here they are in the state's ``mxcsr``.
``S`` is the state's bytes, registers are 128-bit integers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vdisk.vm.cpu import faults, python_sse_float, python_sse_strings
from vdisk.vm.cpu.python_sse_crypto import CRYPTO
from vdisk.vm.cpu.python_sse_float import FLOAT, environment
from vdisk.vm.cpu.python_sse_integer import INTEGER, blend, sign_mask
from vdisk.vm.cpu.softfloat import ALL
from vdisk.vm.cpu.state import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vdisk.vm.cpu.softfloat import Environment

EXACT = {**INTEGER, **CRYPTO}
MASK_WIDTHS = {"pmovmskb": 8, "movmskps": 32, "movmskpd": 64}
CF, ZF = 1, 0x40
CR4_OSXMMEXCPT = 1 << 10


def _get(state: memoryview, name: str) -> int:
    offset, kind = FIELDS[name]
    return int.from_bytes(state[offset : offset + int(kind[1:]) // 8], "little")


def _set(state: memoryview, name: str, value: int) -> None:
    offset, kind = FIELDS[name]
    size = int(kind[1:]) // 8
    state[offset : offset + size] = value.to_bytes(size, "little")


@contextmanager
def _exceptions(state: memoryview) -> Iterator[Environment]:
    """MXCSR's view; what it finds goes back to MXCSR."""
    mxcsr = _get(state, "mxcsr")
    env = environment(mxcsr)
    yield env
    _set(state, "mxcsr", mxcsr | env.all_flags())


def sse(name: str, state: memoryview, left: int, right: int, immediate: int | None) -> int:
    """What ``name left, right (, immediate)`` makes of the left register; a shift's immediate is
    the right operand."""
    if name in EXACT:
        return EXACT[name](left, right, immediate or 0)
    with _exceptions(state) as env:
        return FLOAT[name](env, left, right, immediate or 0)


def sse_blend(name: str, left: int, right: int, choice: int) -> int:
    return blend(name, left, right, choice)


def sse_flags(name: str, state: memoryview, left: int, right: int) -> int:
    """The arithmetic flags of a comparison or of PTEST."""
    if name == "ptest":
        return ZF * (not left & right) | CF * (not ~left & right)
    with _exceptions(state) as env:
        return python_sse_float.compare_flags(name, env, left, right)


def sse_string(
    name: str, immediate: int, left: int, right: int, left_length: int, right_length: int
) -> tuple[int, int]:
    return python_sse_strings.compare(name, immediate, left, right, left_length, right_length)


def sse_to_register(name: str, bits: int, state: memoryview, value: int) -> int:
    if name in MASK_WIDTHS:
        return sign_mask(value, MASK_WIDTHS[name])
    with _exceptions(state) as env:
        return python_sse_float.to_register(name, env, value, bits)


def sse_from_register(name: str, bits: int, state: memoryview, left: int, value: int) -> int:
    with _exceptions(state) as env:
        return python_sse_float.from_register(name, env, left, value, bits)


# -- exceptions that are not masked ------------------------------------------------------------


def unmasked(mxcsr: int) -> int:
    """The exceptions that are not masked."""
    return ~mxcsr >> 7 & ALL


def read_mxcsr(state: memoryview) -> int:
    """MXCSR with the flags raised so far."""
    return _get(state, "mxcsr")


def write_mxcsr(state: memoryview, value: int) -> None:
    """Load MXCSR."""
    _set(state, "mxcsr", value)
    _set(state, "simd_unmasked", unmasked(value))


def simd_begin(state: memoryview) -> None:
    """Put the flags aside, to learn what this instruction alone finds."""
    mxcsr = _get(state, "mxcsr")
    _set(state, "simd_flags", mxcsr & ALL)
    _set(state, "mxcsr", mxcsr & ~ALL)


def simd_end(state: memoryview) -> None:
    """Gather the flags again; #XM, or #UD if the system does not know it (SDM volume 1, 11.5.3)."""
    mxcsr, unmasked = _get(state, "mxcsr"), _get(state, "simd_unmasked")
    found = mxcsr & ALL
    _set(state, "mxcsr", mxcsr & ~ALL | found | _get(state, "simd_flags"))
    if found & unmasked:
        known = _get(state, "cr4") & CR4_OSXMMEXCPT
        _set(state, "fault_vector", faults.XM if known else faults.UD)
        _set(state, "fault_error", 0)
        _set(state, "pending", 1)


def out_of_range(
    state: memoryview, name: str, operands: tuple[int, int], immediate: int | None
) -> int:
    """An operation whose result native code found too large or too small: the exception, with its
    flags in MXCSR."""
    simd_begin(state)
    sse(name, state, *operands, immediate)
    simd_end(state)
    _set(state, "pending", 0)
    return _get(state, "fault_vector")


NAMES: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(sse, sse_blend, sse_flags, sse_string, sse_to_register, sse_from_register),
        *(simd_begin, simd_end, read_mxcsr, write_mxcsr),
    )
}
"""For the namespace that generated Python is executed in."""
