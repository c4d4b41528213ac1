"""A guest that sets modes of every kind shows the same here as under QEMU (``screendump``).

The guest is ``programs/scenes.asm``; here it runs on our BIOS and on SeaBIOS, there on SeaBIOS.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools import peers
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE, eventually
from tests.tools.peers import requires_peer
from vdisk.vm.display.image import to_rgb
from vdisk.vm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires_peer("nasm", "qemu-system-x86_64", guests.SEABIOS)
PROGRAM = Path(__file__).parent / "programs" / "scenes.asm"
SCENES = re.findall(
    r"\w+", PROGRAM.read_text().split("table:")[1].split("; --")[0].replace("dw", "")
)
PANNED = {"mode_13h_panned": ("mode_13h", 6), "mode_12h_panned": ("mode_12h", 5)}
"""Scenes that QEMU shows without panning: what they are of, and how many dots to the left."""
ROUNDING = 7
"""How far colours may be apart: QEMU widens five and six bits to eight without the upper ones."""


class Qemu:
    """The guest under QEMU."""

    def __init__(self, disk: Path, folder: Path) -> None:
        paths = [folder / name for name in ("serial", "qmp")]
        self._file = folder / "screen.ppm"
        with contextlib.ExitStack() as stack:
            listeners = []
            for path in paths:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(path))
                listener.listen()
                listener.settimeout(PATIENCE)
                listeners.append(listener)
            self._process = subprocess.Popen(
                peers.command(
                    "qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults",
                    "-display", "none", "-vga", "std", "-serial", f"unix:{paths[0]}",
                    "-qmp", f"unix:{paths[1]}", "-drive", f"file={disk},format=raw,snapshot=on",
                )
            )  # fmt: skip
            self._serial, monitor = (listener.accept()[0] for listener in listeners)
        self._serial.settimeout(PATIENCE)
        self._monitor = monitor.makefile("rw")
        monitor.close()
        self._monitor.readline()
        self._command({"execute": "qmp_capabilities"})
        assert self._serial.recv(1) == b"r"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._serial.close()
        self._monitor.close()

    def _command(self, command: object) -> None:
        self._monitor.write(json.dumps(command) + "\n")
        self._monitor.flush()
        while "return" not in (answer := json.loads(self._monitor.readline())):
            assert "error" not in answer, answer

    def show(self, scene: int) -> str:
        self._serial.send(bytes([scene]))
        return self._serial.recv(1).decode()

    def picture(self) -> tuple[int, int, bytes]:
        self._command({"execute": "screendump", "arguments": {"filename": str(self._file)}})
        magic, size, largest, pixels = self._file.read_bytes().split(b"\n", 3)
        assert (magic, largest) == (b"P6", b"255")
        width, height = map(int, size.split())
        return width, height, pixels


class Ours:
    """The guest on our machine."""

    def __init__(self, disk: Path, bios: str | None) -> None:
        self._machine = Machine(
            memory=32 << 20,
            disks=[f"{disk},format=raw,snapshot=on"],
            bios=bios,
            accel=str(guests.accelerators()[-1]),
        )
        self._machine.run_until(serial="r", timeout=PATIENCE)

    def close(self) -> None:
        self._machine.close()

    def show(self, scene: int) -> str:
        self._machine.serial[0].read()
        self._machine.serial[0].send(bytes([scene]))
        return self._machine.serial[0].read(PATIENCE).decode()

    def picture(self) -> tuple[int, int, bytes]:
        frame = self._machine.screen.frame()
        return frame.width, frame.height, to_rgb(frame.pixels)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    binary = folder / "disk.raw"
    peers.run("nasm", "-f", "bin", "-o", binary, PROGRAM)
    with binary.open("r+b") as file:
        file.truncate(1 << 20)
    return binary


Pair = tuple[Ours, Qemu]


@pytest.fixture(scope="module", params=[None, guests.SEABIOS], ids=["our BIOS", "SeaBIOS"])
def pair(
    request: pytest.FixtureRequest, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both anew: what a scene does not set is left from the one before."""
    with contextlib.ExitStack() as stack:
        qemu = Qemu(disk, tmp_path_factory.mktemp("qemu"))
        stack.callback(qemu.close)
        ours = Ours(disk, request.param)
        stack.callback(ours.close)
        yield ours, qemu


def difference(one: tuple[int, int, bytes], other: tuple[int, int, bytes]) -> str:
    """The first pixel that is another, in words; "" where the pictures are the same."""
    if one[:2] != other[:2]:
        return f"{one[0]} x {one[1]} here, {other[0]} x {other[1]} there"
    if one[2] == other[2]:
        return ""
    for place, (here, there) in enumerate(zip(one[2], other[2], strict=True)):
        if abs(here - there) > ROUNDING:
            pixel = slice(place // 3 * 3, place // 3 * 3 + 3)
            y, x = divmod(place // 3, one[0])
            return f"pixel {x}, {y}: {one[2][pixel].hex()} here, {other[2][pixel].hex()} there"
    return ""


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene not in PANNED])
def test_a_scene(scene: str, pair: Pair) -> None:
    ours, qemu = pair
    number = SCENES.index(scene)
    assert qemu.show(number) == ours.show(number) == "k"
    here = ours.picture()
    found = ""

    def same() -> bool:
        nonlocal found
        found = difference(here, qemu.picture())
        return not found

    eventually(same, pause=0.1)  # its cursor blinks, and it draws now and then
    assert not found


@pytest.mark.parametrize("scene", PANNED)
def test_a_panned_scene(scene: str, pair: Pair) -> None:
    ours, _qemu = pair
    still, dots = PANNED[scene]
    for machine in pair:
        machine.show(SCENES.index(still))
    width, height, before = ours.picture()
    for machine in pair:
        machine.show(SCENES.index(scene))
    after = ours.picture()[2]
    for start in range(0, 3 * width * height, 3 * width):
        row = before[start + 3 * dots : start + 3 * width]
        assert after[start : start + len(row)] == row
