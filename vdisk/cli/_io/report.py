"""What the commands print: sizes, times, statistics, hex dumps, in qemu-io's words.

::

    wrote 65536/65536 bytes at offset 0
    64 KiB, 1 ops; 00.00 sec (125.467 MiB/sec and 2007.4799 ops/sec)
    65536,1,0:00:00.00,131562700.8,2007.479                              (the same with -C)
    00000000:  61 62 63 00 01 02  abc...                                 (read -v)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS = ("EiB", "PiB", "TiB", "GiB", "MiB", "KiB")
_BYTES_A_LINE = 16

# isalnum() of the C locale; every other byte is shown as a dot.
_SHOWN = bytes(code if code < 128 and chr(code).isalnum() else ord(".") for code in range(256))


def size_text(value: float) -> str:
    """Bytes with a unit and three decimals, which are left out where they are zero."""
    for power, unit in zip(range(6, 0, -1), _UNITS, strict=True):
        if value >= 1 << 10 * power:
            return f"{value / (1 << 10 * power):.3f}".removesuffix(".000") + f" {unit}"
    text = f"{value:f}"
    return f"{text[: text.index('.')] if '.000' in text else text} bytes"


def time_text(seconds: float, *, long: bool = False) -> str:
    """``00.25 sec``; from one second on, and if ``long``, ``0:00:01.25``. Cut, not rounded."""
    hundredths = int(seconds * 100)
    if hundredths < 100 and not long:
        return f"00.{hundredths:02} sec"
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest // 100:02}.{rest % 100:02}"


def statistics(verb: str, offset: int, length: int, seconds: float, *, machine: bool) -> str:
    """The report on one finished request; ``machine``: the comma-separated form of -C."""
    seconds = max(seconds, 1e-9)
    rate, operations = length / seconds, 1 / seconds
    if machine:
        return f"{length},1,{time_text(seconds, long=True)},{rate:.3f},{operations:.3f}"
    return (
        f"{verb} {length}/{length} bytes at offset {offset}\n"
        f"{size_text(length)}, 1 ops; {time_text(seconds)} "
        f"({size_text(rate)}/sec and {operations:.4f} ops/sec)"
    )


def hex_dump(content: bytes | bytearray, offset: int) -> Iterator[str]:
    """Sixteen bytes a line: their offset, hexadecimal, and letters and digits as such."""
    for start in range(0, len(content), _BYTES_A_LINE):
        line = bytes(content[start : start + _BYTES_A_LINE])
        shown = line.translate(_SHOWN).decode("ascii")
        yield f"{offset + start:08x}:  {line.hex(' ')}  {shown}"
