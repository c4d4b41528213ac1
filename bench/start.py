"""From the start of the process to the guest's first instructions, beside QEMU (``-accel tcg``).

    python bench/start.py [--rounds 9]

The firmware is a few instructions that write a byte to the serial port, at the reset vector.
``warm``: compiled code is in the cache; ``cold``: the cache is empty each time, so the run-time
and the handlers of these instructions are compiled first.  Python has compiled its modules before,
as it has those of an installed package.  Medians, in turns; seconds by the clock, and processor
seconds of the process, which a busy machine upsets less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

IMAGE_SIZE = 0x1_0000
SAYS = b"!"
CODE = b"\xba\xf8\x03\xb0" + SAYS + b"\xee\xf4\xeb\xfd"
"""mov dx, 3F8h; mov al, '!'; out dx, al; again: hlt; jmp again"""
RESET_VECTOR = 0xFFF0


class Start(NamedTuple):
    """Seconds until the guest has spoken: by the clock, and of processor time."""

    wall: float
    cpu: float


def firmware() -> bytes:
    """All of it at the reset vector."""
    image = bytearray(b"\xf4" * IMAGE_SIZE)
    image[RESET_VECTOR : RESET_VECTOR + len(CODE)] = CODE
    return bytes(image)


def measure(words: list[str], environment: dict[str, str]) -> Start:
    """Start a machine, wait for its byte, and end it."""
    began = time.monotonic()
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        said = os.read(process.stdout.fileno(), 1)
        if said != SAYS:
            raise SystemExit(f"{words} said {said!r}")
        wall = time.monotonic() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return Start(wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    found: dict[str, list[Start]] = {"QEMU tcg": [], "ours, cold": [], "ours, warm": []}
    with tempfile.TemporaryDirectory(prefix="vdisk-start-", ignore_cleanup_errors=True) as folder:
        bios = Path(folder) / "bios.bin"
        bios.write_bytes(firmware())
        ours = [sys.executable, "-m", "vdisk.cli.vm", "run", "--accel", "llvm", "--memory", "64M"]
        ours += ["--display", "none", "--serial", "stdio", "--bios", str(bios)]
        qemu = ["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display"]
        qemu += ["none", "-serial", "stdio", "-bios", str(bios)]
        python = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{folder}/modules"}
        measure(ours, python)
        for number in range(rounds):
            found["QEMU tcg"].append(measure(qemu, {}))
            cold = {**python, "XDG_CACHE_HOME": f"{folder}/{number}"}
            found["ours, cold"].append(measure(ours, cold))
            found["ours, warm"].append(measure(ours, cold))
    print(f"{'to the first instructions':<28}{'seconds':>10}{'CPU s':>9}")
    for name, starts in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*starts, strict=True))
        print(f"{name:<28}{wall:>10.2f}{cpu:>9.2f}")


if __name__ == "__main__":
    main()
