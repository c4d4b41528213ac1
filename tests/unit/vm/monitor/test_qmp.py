"""QMP: what each command answers, in QEMU's words where they are known."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools.fake_machine import FakeMachine, pattern
from tests.tools.patience import PATIENCE
from vdisk.vm.display.image import encode_png, encode_ppm
from vdisk.vm.display.serving import Address, parse_address
from vdisk.vm.monitor import qmp
from vdisk.vm.monitor.commands import COMMANDS
from vdisk.vm.monitor.control import MachineEvent, RunState
from vdisk.vm.monitor.qmp import QmpServer
from vdisk.vm.monitor.qmp_session import QmpSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


class Client:
    """Says commands, takes answers; ``events`` that came between them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.events: list[dict[str, Any]] = []

    async def take(self) -> dict[str, Any]:
        line = await self.reader.readline()
        assert line.endswith(b"\r\n"), line
        value: dict[str, Any] = json.loads(line)
        return value

    async def answer(self) -> dict[str, Any]:
        while "event" in (value := await self.take()):
            self.events.append(value)
        return value

    def send(self, value: object) -> None:
        self.writer.write(json.dumps(value).encode())

    async def ask(self, name: str, **arguments: object) -> dict[str, Any]:
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send({"execute": name, "arguments": named})
        return await self.answer()

    async def result(self, name: str, **arguments: object) -> Any:
        answer = await self.ask(name, **arguments)
        assert "return" in answer, answer
        return answer["return"]

    async def error(self, name: str, **arguments: object) -> tuple[str, str]:
        answer = (await self.ask(name, **arguments))["error"]
        return answer["class"], answer["desc"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(machine: FakeMachine) -> AsyncIterator[Address]:
    async with asyncio.timeout(PATIENCE), QmpServer(machine) as server:
        yield await server.listen(parse_address("127.0.0.1:0"))


@asynccontextmanager
async def connected(address: Address, *, oob: bool = False) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection(address.host, address.port))
    try:
        greeting = await client.take()
        assert greeting["QMP"]["capabilities"] == ["oob"]
        assert set(greeting["QMP"]["version"]["qemu"]) == {"major", "minor", "micro"}
        await client.result("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))
        yield client
    finally:
        client.writer.close()
        await client.writer.wait_closed()


def drive(scenario: Callable[[Client, FakeMachine], Awaitable[None]]) -> None:
    async def run() -> None:
        machine = FakeMachine()
        async with serving(machine) as address, connected(address) as client:
            await scenario(client, machine)

    asyncio.run(run())


def test_running_and_its_events() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        running = {"status": "running", "running": True, "singlestep": False}
        assert await client.result("query-status") == running
        assert await client.result("query-current-machine") == {"wakeup-suspend-support": True}
        commands = ("stop", "cont", "system_reset", "system_powerdown", "inject-nmi", "quit")
        for name in (*commands, "system_wakeup"):
            assert await client.result(name) == {}
        assert machine.calls == ["stop", "cont", "reset", "powerdown", "nmi", "quit", "wakeup"]
        await client.result("query-status")
        told = [(event["event"], event.get("data")) for event in client.events]
        assert told == [
            ("STOP", None),
            ("RESUME", None),
            ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}),
            ("POWERDOWN", None),
            ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}),
            ("WAKEUP", None),
        ]
        assert set(client.events[0]["timestamp"]) == {"seconds", "microseconds"}

    drive(scenario)


def test_what_it_is() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        names = [one["name"] for one in await client.result("query-commands")]
        assert sorted(names) == sorted(COMMANDS)
        assert await client.result("query-name") == {"name": "fake"}
        assert await client.result("query-kvm") == {"enabled": False, "present": False}
        assert len(await client.result("query-cpus-fast")) == 1
        assert not (await client.result("query-mice"))[0]["absolute"]
        assert "package" in await client.result("query-version")

    drive(scenario)


def test_query_block() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        disk, cdrom = await client.result("query-block")
        assert disk["device"] == "ide0-hd0"
        assert not disk["removable"]
        assert disk["inserted"]["drv"] == "qcow2"
        assert disk["inserted"]["backing_file"] == "base.raw"
        assert disk["inserted"]["image"]["virtual-size"] == 1 << 20
        assert cdrom["tray_open"] is False
        assert cdrom["inserted"]["ro"]
        stats = (await client.result("query-blockstats", query_nodes=False))[0]
        assert stats["stats"]["rd_operations"] == 0

    drive(scenario)


def test_media() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        cd = {"device": "ide1-cd0"}
        assert await client.error("eject") == (
            "GenericError",
            "Need exactly one of 'device' and 'id'",
        )
        assert await client.error("eject", device="nope") == (
            "DeviceNotFound",
            "Device 'nope' not found",
        )
        assert (await client.error("eject", device="ide0-hd0"))[1] == (
            "Device 'ide0-hd0' is not removable"
        )
        await client.result("eject", id="/machine/ide1-cd0", force=True)
        assert "inserted" not in (await client.result("query-block"))[1]
        await client.result("blockdev-change-medium", filename="/new.iso", **cd)
        assert (await client.result("query-block"))[1]["inserted"]["file"] == "/new.iso"
        for name in ("blockdev-open-tray", "blockdev-close-tray"):
            await client.result(name, **cd)
        kinds = [(one["event"], one["data"]["tray-open"]) for one in client.events]
        assert kinds == [("DEVICE_TRAY_MOVED", moved) for moved in (True, False, True, False)]
        wrong = await client.error("blockdev-change-medium", filename="/nope", **cd)
        assert wrong[0] == "GenericError"
        await client.result(
            "blockdev-change-medium",
            filename="/x",
            format="raw",
            read_only_mode="read-write",
            **cd,
        )
        assert machine.cdrom.medium is not None
        assert not machine.cdrom.medium.read_only

    drive(scenario)


def test_blockdev_snapshot_sync() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        name = "blockdev-snapshot-sync"
        assert (await client.error(name, device="nope", snapshot_file="x"))[1] == (
            "Cannot find device='nope' nor node-name=''"
        )
        await client.result(name, device="ide0-hd0", snapshot_file="new.qcow2", mode="existing")
        assert machine.calls == ["snapshot ide0-hd0 new.qcow2 qcow2 existing"]

    drive(scenario)


def test_resizing_and_looking_inside(tmp_path: Path) -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        await client.result("block_resize", device="ide0-hd0", size=1 << 30)
        assert machine.calls == [f"resize ide0-hd0 {1 << 30}"]
        assert (await client.error("block_resize", device="ide0-hd0", size=-1))[1] == (
            "Parameter 'size' expects a >0 size"
        )
        disk, cdrom = await client.result("query-named-block-nodes", flat=True)
        assert (disk["file"], cdrom["ro"]) == ("disk.qcow2", True)
        (bus,) = await client.result("query-pci")
        (card,) = bus["devices"]
        assert card["id"] == {"vendor": 0x1234, "device": 0x1111}
        assert [one["address"] for one in card["regions"]] == [0xE0000000, -1]
        assert await client.result("query-memory-size-summary") == {
            "base-memory": 64 << 20,
            "plugged-memory": 0,
        }
        file = tmp_path / "memory"
        await client.result("memsave", val=0x1000, size=3, filename=str(file))
        assert file.read_bytes() == b"\x90" * 3
        assert (
            "CPU number"
            in (await client.error("memsave", val=0, size=1, filename=str(file), cpu_index=1))[1]
        )

    drive(scenario)


def test_screendump(tmp_path: Path) -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        machine.screen.show(pattern(20, 10))
        picture = str(tmp_path / "picture")
        await client.result("screendump", filename=picture)
        assert (tmp_path / "picture").read_bytes() == encode_ppm(machine.screen.picture)
        await client.result("screendump", filename=picture, format="png")
        assert (tmp_path / "picture").read_bytes() == encode_png(machine.screen.picture)
        wrong = await client.error("screendump", filename=str(tmp_path / "no" / "x"))
        assert wrong[0] == "GenericError"
        await client.result("pmemsave", val=16, size=5, filename=picture)
        assert (tmp_path / "picture").read_bytes() == bytes(range(16, 21))

    drive(scenario)


def test_send_key() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        keys = [{"type": "qcode", "data": "ctrl"}, {"type": "number", "data": 0x1E}]
        await client.result("send-key", keys=keys, hold_time=0)
        assert machine.input.keys == [("ctrl", True), ("a", True), ("a", False), ("ctrl", False)]
        for value, said in [
            ("foo", "Parameter 'data' does not accept value 'foo'"),
            (5, "Invalid parameter type for 'keys[0].data', expected: string"),
        ]:
            wrong = await client.error("send-key", keys=[{"type": "qcode", "data": value}])
            assert wrong == ("GenericError", said)
        assert (await client.error("send-key", keys=5))[1] == (
            "Invalid parameter type for 'keys', expected: array"
        )
        assert "at most" in (await client.error("send-key", keys=keys * 9))[1]
        assert "at most" in (await client.error("send-key", keys=keys, hold_time=-1))[1]

    drive(scenario)


def test_input_send_event() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        events = [
            {"type": "rel", "data": {"axis": "x", "value": 5}},
            {"type": "rel", "data": {"axis": "y", "value": -2}},
            {"type": "btn", "data": {"button": "right", "down": True}},
            {"type": "btn", "data": {"button": "wheel-down", "down": True}},
            {"type": "key", "data": {"key": {"type": "qcode", "data": "a"}, "down": True}},
        ]
        await client.result("input-send-event", events=events)
        assert machine.input.moves == [(5, -2, 0), (0, 0, 1)]
        assert machine.input.buttons == [2]
        assert machine.input.keys == [("a", True)]
        wrong = [{"type": "rel", "data": {"axis": "z", "value": 1}}]
        assert "does not accept" in (await client.error("input-send-event", events=wrong))[1]

    drive(scenario)


def test_human_monitor_command() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        async def say(line: str) -> Any:
            return await client.result("human-monitor-command", command_line=line)

        assert await say("info status") == "VM status: running\r\n"
        assert await say("foo") == "unknown command: 'foo'\r\n"
        wrong = await client.error(
            "human-monitor-command", **{"command-line": "info status", "cpu-index": 7}
        )
        assert wrong[1] == "Parameter 'cpu-index' expects a CPU number"

    drive(scenario)


@pytest.mark.parametrize(
    ("sent", "kind", "said"),
    [
        ('{"execute":"foo"}', "CommandNotFound", "The command foo has not been found"),
        (
            '{"execute":"qmp_capabilities"}',
            "CommandNotFound",
            "Capabilities negotiation is already complete, command ignored",
        ),
        ('{"exec":1}', "GenericError", "QMP input member 'exec' is unexpected"),
        ("[1]", "GenericError", "QMP input must be a JSON object"),
        ('{"arguments":{}}', "GenericError", "QMP input lacks member 'execute'"),
        ('{"execute":5}', "GenericError", "QMP input member 'execute' must be a string"),
        (
            '{"execute":"eject","arguments":[]}',
            "GenericError",
            "QMP input member 'arguments' must be an object",
        ),
        (
            '{"execute":"eject","arguments":{"x":1}}',
            "GenericError",
            "Parameter 'x' is unexpected",
        ),
        ('{"execute":"send-key"}', "GenericError", "Parameter 'keys' is missing"),
        (
            '{"execute":"eject","arguments":{"force":1}}',
            "GenericError",
            "Invalid parameter type for 'force', expected: boolean",
        ),
        (
            '{"exec-oob":"query-version"}',
            "GenericError",
            "QMP input member 'exec-oob' is unexpected",
        ),
    ],
)
def test_errors_in_the_words_of_qemu(sent: str, kind: str, said: str) -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        client.writer.write(sent.replace("{", '{"id": [1, null],', 1).encode())
        answer = await client.answer()
        if sent.startswith("{"):
            assert answer.pop("id") == [1, None]
        assert answer == {"error": {"class": kind, "desc": said}}

    drive(scenario)


def test_nothing_but_negotiation_at_first() -> None:
    session = QmpSession(COMMANDS)
    session.data_to_send()
    session.event(MachineEvent("STOP"))
    assert session.data_to_send() == b""
    (call,) = session.receive_data(b'{"execute":"query-status"}')
    assert call.error is not None
    assert call.error.error_class == "CommandNotFound"
    (call,) = session.receive_data(b'{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}')
    assert call.error is not None
    assert not session.negotiated


def test_the_time_of_an_event() -> None:
    session = QmpSession(COMMANDS, now=lambda: 12.25)
    session.receive_data(b'{"execute":"qmp_capabilities"}')
    session.data_to_send()
    session.event(MachineEvent("RESET", {"guest": True}))
    assert json.loads(session.data_to_send()) == {
        "timestamp": {"seconds": 12, "microseconds": 250000},
        "event": "RESET",
        "data": {"guest": True},
    }


def test_commands_are_answered_in_order_and_out_of_band_overtakes() -> None:
    async def run() -> None:
        machine = FakeMachine()
        release = threading.Event()
        machine.stop = release.wait  # type: ignore[assignment,method-assign]
        async with serving(machine) as address, connected(address, oob=True) as client:
            client.send({"execute": "stop", "id": 1})
            client.send({"execute": "nonsense", "id": 2})
            client.send({"execute": "query-name", "id": 3})
            client.send({"exec-oob": "query-version", "id": 4})
            client.send({"exec-oob": "stop", "id": 5})
            assert (await client.answer())["id"] == 4
            release.set()
            assert [(await client.answer())["id"] for _ in range(4)] == [1, 2, 3, 5]

    asyncio.run(run())


def test_two_clients_hear_each_others_events() -> None:
    async def run() -> None:
        machine = FakeMachine()
        async with (
            serving(machine) as address,
            connected(address) as first,
            connected(address) as second,
        ):
            await first.result("stop")
            assert (await second.take())["event"] == "STOP"
            machine.state = RunState.IO_ERROR
            assert (await second.result("query-status"))["status"] == "io-error"

    asyncio.run(run())


def test_a_client_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "MOST_UNREAD", 1 << 16)

    async def run() -> None:
        machine = FakeMachine()
        async with serving(machine) as address, connected(address) as client:
            # Nothing is awaited in between: the client has no turn to read.
            for _ in range(20):
                await asyncio.to_thread(machine.emit, "RESET", guest=True, reason="x" * (1 << 20))
            with pytest.raises((EOFError, ConnectionError, AssertionError, ValueError)):
                while True:
                    await client.take()

    asyncio.run(run())


def test_many_connections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "CONNECTIONS", 1)

    async def run() -> None:
        async with serving(FakeMachine()) as address, connected(address):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            with pytest.raises((EOFError, ConnectionError)):
                await reader.readexactly(1)
            writer.close()

    asyncio.run(run())


def test_a_connection_that_is_reset_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, one: complaints.append(one))
        machine = FakeMachine()
        async with asyncio.timeout(PATIENCE), QmpServer(machine) as server:
            address = await server.listen(parse_address("127.0.0.1:0"))
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(b'{"execute": "qmp_capabilities"}')
            await until(lambda: len(server.connections) == 1)
            linger = struct.pack("ii", 1, 0)  # close by a reset
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            await until(lambda: not server.connections)
        assert not complaints

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_block_jobs() -> None:
    async def scenario(client: Client, machine: FakeMachine) -> None:
        disk = {"device": "ide0-hd0"}
        for refused, arguments in (
            ("Cannot find device='nope' nor node-name='nope'", {"device": "nope"}),
            ("Parameter 'auto-dismiss' is always on here", {**disk, "auto_dismiss": False}),
            ("Parameter 'on-error' does not accept value 'stop'", {**disk, "on_error": "stop"}),
        ):
            assert await client.error("block-stream", **arguments) == ("GenericError", refused)
        await client.result("block-stream", **disk, base="b", speed=7, job_id="s")
        await client.result("block-commit", **disk, top="t", job_id="c")
        where = {"target": "x", "mode": "existing"}
        await client.result("drive-mirror", **disk, **where, sync="top", job_id="m")
        await client.result("drive-backup", **disk, **where, sync="full", format="raw", job_id="b")
        assert machine.calls == [
            "stream ide0-hd0 b",
            "commit ide0-hd0 None t",
            "mirror ide0-hd0 x None top True",
            "backup ide0-hd0 x raw full True",
        ]
        stream, *_ = await client.result("query-block-jobs")
        assert (stream["device"], stream["speed"], stream["ready"]) == ("s", 7, False)
        assert (await client.result("query-jobs"))[0] == {
            "id": "s",
            "type": "stream",
            "status": "running",
            "current-progress": 1024,
            "total-progress": 1 << 20,
        }
        await client.result("block-job-set-speed", device="s", speed=9)
        await client.result("job-pause", id="s")
        assert "already paused" in (await client.error("block-job-pause", device="s"))[1]
        stream, *_ = await client.result("query-block-jobs")
        assert (stream["paused"], stream["speed"]) == (True, 9)
        await client.result("block-job-resume", device="s")
        assert "is not paused" in (await client.error("job-resume", id="s"))[1]
        assert "cannot accept" in (await client.error("job-complete", id="s"))[1]
        await client.result("block-job-cancel", device="s")
        await client.result("job-cancel", id="m")
        assert machine.calls[4:] == ["cancel s False", "cancel m True"]
        assert (await client.error("block-job-complete", device="s"))[0] == "DeviceNotActive"

    drive(scenario)
