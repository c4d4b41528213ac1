"""The QMP server driven by ``qemu.qmp``, the QEMU project's own client library."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from tests.tools.fake_machine import FakeMachine, pattern
from vdisk.vm.display.image import encode_png
from vdisk.vm.display.serving import parse_address
from vdisk.vm.monitor.qmp import QmpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def client_of(machine: FakeMachine, path: str) -> AsyncIterator[QMPClient]:
    client = QMPClient("test")
    async with asyncio.timeout(60), QmpServer(machine) as server:
        await server.listen(parse_address(f"unix:{path}"))
        await client.connect(path)
        try:
            yield client
        finally:
            await client.disconnect()


def test_a_machine_is_driven(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        machine.screen.show(pattern(32, 16))
        async with client_of(machine, str(tmp_path / "qmp")) as client:
            events = EventListener()
            with client.listen(events):
                await client.execute("stop")
                assert (await events.get())["event"] == "STOP"
                status = await client.execute("query-status")
                assert status == {"status": "paused", "running": False, "singlestep": False}
                await client.execute("cont")
                assert (await events.get())["event"] == "RESUME"
                await client.execute("eject", {"id": "/machine/ide1-cd0"})
                moved = await events.get()
                assert moved["event"] == "DEVICE_TRAY_MOVED"
                assert moved["data"]["tray-open"]
            picture = tmp_path / "screen.png"
            await client.execute("screendump", {"filename": str(picture), "format": "png"})
            assert picture.read_bytes() == encode_png(machine.screen.picture)
            keys = [{"type": "qcode", "data": "ret"}]
            await client.execute("send-key", {"keys": keys, "hold-time": 1})
            assert machine.input.typed() == ["ret"]
            said = await client.execute("human-monitor-command", {"command-line": "info block"})
            assert "disk.qcow2 (qcow2)" in str(said)

    asyncio.run(scenario())


def test_errors_have_their_class(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with client_of(FakeMachine(), str(tmp_path / "qmp")) as client:
            for name, arguments, kind in [
                ("no-such-command", {}, "CommandNotFound"),
                ("eject", {"device": "nope"}, "DeviceNotFound"),
                ("eject", {"device": "ide1-cd0", "wrong": 1}, "GenericError"),
            ]:
                with pytest.raises(ExecuteError) as caught:
                    await client.execute(name, arguments)
                assert caught.value.error_class == kind

    asyncio.run(scenario())


def test_out_of_band(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with client_of(FakeMachine(), str(tmp_path / "qmp")) as client:
            assert "qemu" in str(await client.execute("query-version", oob=True))

    asyncio.run(scenario())


def test_quit_is_answered_before_the_connection_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        machine = FakeMachine()
        client, path = QMPClient("test"), str(tmp_path / "qmp")
        async with asyncio.timeout(60), QmpServer(machine) as server:
            await server.listen(parse_address(f"unix:{path}"))
            await client.connect(path)
            loop = asyncio.get_running_loop()

            def end() -> None:
                machine.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
                asyncio.run_coroutine_threadsafe(server.close(), loop)

            machine.quit = end  # type: ignore[method-assign]
            assert await client.execute("quit") == {}
            await client.disconnect()

    asyncio.run(scenario())
