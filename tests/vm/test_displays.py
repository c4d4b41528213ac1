"""A real machine on a display: what its BIOS writes is seen."""

from __future__ import annotations

import asyncio

from tests.tools.rfb_client import RfbClient
from vdisk.vm.display.rfb.wire import Encoding
from vdisk.vm.display.serving import parse_address
from vdisk.vm.display.vnc import VncServer
from vdisk.vm.machine import Machine


async def until_said(machine: Machine, words: str) -> None:
    async with asyncio.timeout(60):
        while words not in machine.screen_text():
            await asyncio.sleep(0.1)


def test_the_bios_by_vnc() -> None:
    async def scenario() -> None:
        machine = Machine(memory=32 << 20, name="empty")
        try:
            machine.start()
            await until_said(machine, "No bootable device")
            async with VncServer(machine.screen, machine.input, name=machine.name) as server:
                client = await RfbClient.connect(await server.listen(parse_address("127.0.0.1:0")))
                client.set_encodings(Encoding.ZRLE)
                await client.refresh()
                frame = machine.screen.frame()
                assert (client.name, client.width, client.height) == ("empty", *frame[:2])
                shown = {pixel for row in client.pixels for pixel in row}
                assert {0x000000, 0xAAAAAA} <= shown
                await client.close()
        finally:
            machine.close()

    asyncio.run(scenario())
