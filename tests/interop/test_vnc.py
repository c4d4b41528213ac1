"""The VNC server to real clients: vncsnapshot (RFB 3.3) and asyncvnc (RFB 3.8)."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncvnc
import pytest
from PIL import Image

from tests.tools.fake_machine import FakeMachine, pattern
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
            for _ in range(2):
                pixels = await client.screenshot()
                assert pixels[:, :, :3].tobytes() == to_rgb(machine.screen.picture.pixels)
                machine.screen.fill(Rect(0, 0, 100, 100), 0x123456)
                await asyncio.sleep(0.2)
            client.keyboard.write("hi!")
            client.keyboard.press("Ctrl", "c")
            client.mouse.move(10, 10)
            client.mouse.move(25, 5)
            client.mouse.right_click()
            async with asyncio.timeout(20):
                while len(machine.input.buttons) < 2:
                    await asyncio.sleep(0.01)
            assert machine.input.typed() == ["h", "i", "shift", "1", "ctrl", "c"]
            assert (15, -5, 0) in machine.input.moves
            assert machine.input.buttons == [2, 0]

    asyncio.run(scenario())
