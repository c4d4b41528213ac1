"""The VNC server to real clients: TigerVNC's viewer, vncsnapshot (RFB 3.3), asyncvnc."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager
from struct import unpack_from
from typing import TYPE_CHECKING, Any

import asyncvnc
import pytest
from PIL import Image

from tests.tools.fake_machine import FakeMachine, pattern
from tests.tools.patience import PATIENCE
from tests.tools.peers import command, requires_peer
from vdisk.vm.display.image import to_rgb
from vdisk.vm.display.rfb.wire import Rect
from vdisk.vm.display.serving import parse_address
from vdisk.vm.display.vnc import VNC_PORT, VncServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vdisk.vm.display.base import Frame

LOSS = 3
"""How far a colour may be off in a JPEG of the best quality."""


@asynccontextmanager
async def serving(machine: FakeMachine, **options: Any) -> AsyncIterator[int]:
    async with asyncio.timeout(100), VncServer(machine.screen, machine.input, **options) as server:
        yield (await server.listen(parse_address("127.0.0.1:0"))).port


async def run(name: str, *words: str, env: dict[str, str] | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        *command(name, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


def same(path: Path, frame: Frame) -> bool:
    with Image.open(path) as image:
        found = image.convert("RGB").tobytes()
        return image.size == frame[:2] and all(
            abs(one - other) <= LOSS for one, other in zip(found, to_rgb(frame.pixels), strict=True)
        )


@requires_peer("vncsnapshot")
@pytest.mark.parametrize("encoding", ["raw", "hextile", "tight", "zlib"])
def test_vncsnapshot(encoding: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(320, 200))
        async with serving(machine) as port:
            path = tmp_path / "screen.jpg"
            words = ["-allowblank", "-quality", "100", "-encodings", encoding]
            await run("vncsnapshot", *words, f"127.0.0.1:{port - VNC_PORT}", str(path))
            assert same(path, machine.screen.picture)

    asyncio.run(scenario())


def test_asyncvnc() -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(320, 200))
        async with (
            serving(machine, name="vm") as port,
            asyncvnc.connect("127.0.0.1", port) as client,
        ):
            assert client.video.name == "vm"
            for colour in (0xABCDEF, 0x123456):
                machine.screen.fill(Rect(0, 0, 100, 100), colour)
                expected = to_rgb(machine.screen.picture.pixels)
                async with asyncio.timeout(PATIENCE):  # it is looked at now and then
                    while (await client.screenshot())[:, :, :3].tobytes() != expected:
                        await asyncio.sleep(0.02)
            client.keyboard.write("hi!")
            client.keyboard.press("Ctrl", "c")
            client.mouse.move(10, 10)
            client.mouse.move(25, 5)
            client.mouse.right_click()
            async with asyncio.timeout(PATIENCE):
                while len(machine.input.buttons) < 2:
                    await asyncio.sleep(0.01)
            assert machine.input.typed() == ["h", "i", "shift", "1", "ctrl", "c"]
            assert (15, -5, 0) in machine.input.moves
            assert machine.input.buttons == [2, 0]

    asyncio.run(scenario())


@asynccontextmanager
async def virtual_screen() -> AsyncIterator[str]:
    """An X server without a screen; the number of its display."""
    read, write = os.pipe()
    words = command(
        "Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24", "-nolisten", "tcp",
        "-noreset",  # or it starts anew, without its clients, whenever xwd was the last of them
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *words, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(write)
    try:
        with os.fdopen(read) as number:
            yield f":{(await asyncio.to_thread(number.readline)).strip()}"
    finally:
        process.kill()
        await process.wait()


async def window(display: str) -> tuple[bytes, int]:
    """The virtual screen as red, green, blue, and the bytes of a row."""
    process = await asyncio.create_subprocess_exec(
        *command("xwd", "-root", "-silent", "-display", display), stdout=subprocess.PIPE
    )
    dump, _ = await process.communicate()
    header, stride, colours = (unpack_from(">I", dump, at)[0] for at in (0, 48, 76))
    return to_rgb(dump[header + 12 * colours :]), stride // 4 * 3


@requires_peer("Xvfb", "vncviewer", "xwd", "xdotool")
@pytest.mark.parametrize("encoding", ["ZRLE", "Tight", "Hextile", "Raw"])
def test_tigervnc(encoding: str) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(320, 200))
        async with serving(machine, password="secret") as port, virtual_screen() as display:
            env = {**os.environ, "DISPLAY": display, "VNC_PASSWORD": "secret", "VNC_USERNAME": "x"}
            words = [
                "-AutoSelect=0",
                f"-PreferredEncoding={encoding}",
                "-RemoteResize=0",
                "-MenuKey=",
            ]
            viewer = await asyncio.create_subprocess_exec(
                *command("vncviewer", *words, "-NoJPEG", "-SecurityTypes=VncAuth"),
                f"127.0.0.1::{port}",
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            try:
                await shows(display, machine.screen.picture)
                machine.screen.fill(Rect(40, 50, 100, 60), 0x20C040)
                await shows(display, machine.screen.picture)
                machine.screen.show(pattern(200, 260))
                await shows(display, machine.screen.picture)
                # Without a window manager nothing has the keyboard's focus; the mouse needs none.
                await run("xdotool", "mousemove", "50", "60", "click", "3", env=env)
                async with asyncio.timeout(PATIENCE):
                    while len(machine.input.buttons) < 2:
                        await asyncio.sleep(0.02)
                assert machine.input.buttons == [2, 0]
            finally:
                if viewer.returncode is None:
                    viewer.kill()
                await viewer.communicate()

    asyncio.run(scenario())


def contains(screen: bytes, stride: int, frame: Frame) -> bool:
    """Whether a picture is somewhere on a screen: its window has no fixed place."""
    wanted, length = to_rgb(frame.pixels), frame.width * 3
    rows = [wanted[at : at + length] for at in range(0, len(wanted), length)]
    above = (frame.height - 1) * stride
    # The last row is found: it is like no other, while a flat one is nearly everywhere.
    start = screen.find(rows[-1], above)
    while start >= 0:
        places = range(start - above, start + 1, stride)
        if all(screen[at : at + length] == row for at, row in zip(places, rows, strict=True)):
            return True
        start = screen.find(rows[-1], start + 1)
    return False


async def shows(display: str, frame: Frame) -> None:
    async with asyncio.timeout(PATIENCE):
        while not contains(*await window(display), frame):
            await asyncio.sleep(0.1)
