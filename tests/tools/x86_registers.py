"""iced's registers by kind and number, and the numbers of the general registers."""

from __future__ import annotations

from iced_x86 import Register

from tests.tools.x86_codes import members

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)


REGISTERS = members(Register)
_LOW = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
R64 = [REGISTERS[f"R{name}"] for name in _LOW] + [REGISTERS[f"R{n}"] for n in range(8, 16)]
R32 = [REGISTERS[f"E{name}"] for name in _LOW] + [REGISTERS[f"R{n}D"] for n in range(8, 16)]
R16 = [REGISTERS[name] for name in _LOW] + [REGISTERS[f"R{n}W"] for n in range(8, 16)]
R8 = [REGISTERS[name] for name in ("AL", "CL", "DL", "BL", "AH", "CH", "DH", "BH")]
R8 += [REGISTERS[name] for name in ("SPL", "BPL", "SIL", "DIL")]
R8 += [REGISTERS[f"R{n}L"] for n in range(8, 16)]
XMM = [REGISTERS[f"XMM{n}"] for n in range(16)]
MM = [REGISTERS[f"MM{n}"] for n in range(8)]
ST = [REGISTERS[f"ST{n}"] for n in range(8)]
SEGMENTS = [REGISTERS[name] for name in ("ES", "CS", "SS", "DS", "FS", "GS")]
BY_WIDTH = {8: R8, 16: R16, 32: R32, 64: R64}
NUMBERS = {register: n for bank in (R16, R32, R64) for n, register in enumerate(bank)}
"""Encoding number of a general register of 16, 32 or 64 bits."""
