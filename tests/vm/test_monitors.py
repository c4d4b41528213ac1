"""QMP, driven by ``qemu.qmp``, and the human monitor on machines that run."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

import vdisk
from tests.tools import small_guests as guests
from tests.tools.peers import requires_peer
from vdisk.vm.display.serving import parse_address
from vdisk.vm.machine import Machine
from vdisk.vm.monitor import hmp
from vdisk.vm.monitor.qmp import QmpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = requires_peer("nasm")
SIZE = 1 << 20
WRITE_A_SECTOR = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    mov bx, 0x7c00
    mov ax, 0x0301                  ; int 13h: write a sector
    mov cx, 2
    mov dx, 0x0080
    int 0x13
    mov al, 'Y'
    jnc said
    mov al, 'N'
said:
    mov dx, 0x3f8
    out dx, al
    hlt
    jmp $ - 1
times 510 - ($ - $$) db 0
    dw 0xaa55
"""


@asynccontextmanager
async def controlled(
    tmp_path: Path, **options: Any
) -> AsyncIterator[tuple[Machine, QMPClient, EventListener]]:
    machine = await asyncio.to_thread(
        lambda: Machine(memory=16 << 20, accel=str(guests.accelerators()[-1]), **options)
    )
    client, events = QMPClient("test"), EventListener()
    try:
        async with asyncio.timeout(100), QmpServer(machine.control) as server:
            await server.listen(parse_address(f"unix:{tmp_path}/qmp"))
            await client.connect(f"{tmp_path}/qmp")
            with client.listen(events):
                yield machine, client, events
            await client.disconnect()
    finally:
        await asyncio.to_thread(machine.close)


async def happened(events: EventListener, name: str) -> dict[str, Any]:
    """The next event, which is of this name: its data."""
    event = await events.get()
    assert event["event"] == name, event
    return dict(event.get("data", {}))


def test_running(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with controlled(tmp_path) as (machine, client, events):
            assert (await client.execute("query-status"))["status"] == "prelaunch"  # type: ignore[index,call-overload]
            await client.execute("cont")
            await client.execute("stop")
            await happened(events, "STOP")
            await client.execute("cont")
            await happened(events, "RESUME")
            await client.execute("system_powerdown")
            await happened(events, "POWERDOWN")
            await client.execute("system_reset")
            assert await happened(events, "RESET") == {
                "guest": False,
                "reason": "host-qmp-system-reset",
            }
            await client.execute("quit")
            assert await happened(events, "SHUTDOWN") == {
                "guest": False,
                "reason": "host-qmp-quit",
            }
            assert machine.is_over()

    asyncio.run(scenario())


def test_disks_change_while_the_machine_runs(tmp_path: Path) -> None:
    base, top, newer = (str(tmp_path / name) for name in ("base.raw", "top.qcow2", "newer.qcow2"))
    vdisk.create(base, SIZE, format="raw")
    vdisk.create(top, format="qcow2", backing_file=base, backing_format="raw")
    with vdisk.open(top, "r+") as image:
        image.write(0, b"first")
    (tmp_path / "cd.iso").write_bytes(bytes(1 << 16))

    async def scenario() -> None:
        disks = [f"{top},if=virtio"]
        async with controlled(tmp_path, disks=disks, cdroms=[None]) as (machine, client, events):
            machine.start()

            async def ask(name: str, **arguments: object) -> Any:
                named = {key.replace("_", "-"): value for key, value in arguments.items()}
                return await client.execute(name, named)

            async def say(line: str) -> str:
                return str(await ask("human-monitor-command", command_line=line))

            disk, cdrom = await ask("query-block")
            assert disk["inserted"]["backing_file"] == base
            assert (disk["device"], "inserted" in cdrom) == ("virtio0", False)
            nodes = await ask("query-named-block-nodes")
            assert [node["node-name"] for node in nodes] == ["#virtio0"]

            assert await say("commit virtio0") == ""
            await ask("blockdev-snapshot-sync", node_name="#virtio0", snapshot_file=newer)
            held = machine.drives.find("virtio0").disk.device
            assert held is not None
            held.write(100, b"second")
            assert "chain depth: 2" in await say("info block virtio0")
            assert await say("commit all") == ""

            await ask("block_resize", device="virtio0", size=2 * SIZE)
            (disk, _) = await ask("query-block")
            assert disk["inserted"]["image"]["virtual-size"] == 2 * SIZE
            with pytest.raises(ExecuteError, match="cannot be written to"):
                await ask("block_resize", device="ide1-cd0", size=SIZE)

            await ask("blockdev-change-medium", device="ide1-cd0", filename=f"{tmp_path}/cd.iso")
            for tray in (True, False):
                moved = await happened(events, "DEVICE_TRAY_MOVED")
                assert moved["tray-open"] is tray
            await ask("eject", device="ide1-cd0")
            assert (await happened(events, "DEVICE_TRAY_MOVED"))["tray-open"]
            stats, _ = await ask("query-blockstats")
            assert set(stats["stats"]) >= {"rd_operations", "wr_bytes", "flush_total_time_ns"}

    asyncio.run(scenario())
    with vdisk.open(base) as image:
        assert image.read(0, 5) == b"first"
    with vdisk.open(top) as image:
        assert image.read(100, 6) == b"second"
    with vdisk.open(newer) as image:
        assert image.size == 2 * SIZE
        assert image.read(100, 6) == b"second"


@guests.either_firmware
def test_a_write_that_fails_stops_the_machine_until_it_may_go_on(
    tmp_path: Path, bios: str | None
) -> None:
    boot = guests.assemble(tmp_path, WRITE_A_SECTOR)
    (tmp_path / "disk.raw").write_bytes(boot.ljust(SIZE, b"\0"))
    rules = tmp_path / "rules"
    rules.write_text(
        '[inject-error]\nevent = "none"\niotype = "write"\nerrno = "28"\nonce = "on"\n'
    )
    disk = f"blkdebug:{rules}:{tmp_path}/disk.raw,format=raw,werror=stop"

    async def scenario() -> None:
        options = {"bios": bios, "disks": [disk]}
        async with controlled(tmp_path, **options) as (machine, client, events):
            machine.start()
            error = await happened(events, "BLOCK_IO_ERROR")
            assert (error["operation"], error["action"], error["nospace"]) == (
                "write",
                "stop",
                True,
            )
            await happened(events, "STOP")
            assert events.empty()  # one failure is told of once
            assert (await client.execute("query-status"))["status"] == "io-error"  # type: ignore[index,call-overload]
            assert "nospace" in hmp.execute(machine.control, "info block")
            await client.execute("cont")
            await happened(events, "RESUME")
            said = await asyncio.to_thread(lambda: machine.run_until(serial="Y", timeout=60))
            assert said.endswith(b"Y")

    asyncio.run(scenario())
    assert (tmp_path / "disk.raw").read_bytes()[512:1024] == boot


def test_what_is_inside(tmp_path: Path) -> None:
    bios = guests.assemble_bios(
        tmp_path, "mov eax, 0x12345678\n mov al, '>'\n call putc\n jmp hang\n"
    )
    with Machine(memory=4 << 20, accel=str(guests.accelerators()[-1]), bios=bios) as machine:
        machine.run_until(serial=">", timeout=60)
        session = hmp.Session(machine.control)
        deadline = time.monotonic() + 60
        while "(halted)" not in session.execute("info cpus"):
            assert time.monotonic() < deadline
        assert session.execute("stop") == ""
        registers = session.execute("info registers")
        assert "EAX=1234563e" in registers
        assert "CS =f000 000f0000 0000ffff 000093" in registers
        assert session.execute("p /x $eax & 0xff") == "0x3e\n"
        code = session.execute("x /2i $pc - 1")
        assert "hlt" in code or "jmp short" in code
        assert session.execute("x /4xb 0xffff0") == session.execute("xp /4xb 0xffff0")
        assert "0xea" in session.execute("x /4xb 0xffff0")
        assert "PCI device 8086:1237" in session.execute("info pci")
        assert session.execute("info network") == "no network\n"
        assert session.execute("hostfwd_add tcp::0-:22").startswith("Error: this machine has no")
        assert session.execute("info memory_size_summary").startswith(f"base memory: {4 << 20}\n")
        assert session.execute("xp /1x 0xfffffffff") == (
            "guest memory 0xfffffffff+0x4 is neither RAM nor ROM\n"
        )


def test_saved_states_by_a_persons_commands(tmp_path: Path) -> None:
    disk = str(tmp_path / "disk.qcow2")
    vdisk.create(disk, SIZE, format="qcow2")
    with Machine(memory=4 << 20, accel=str(guests.accelerators()[-1]), disks=[disk]) as machine:
        machine.start()
        session = hmp.Session(machine.control)
        for _ in range(2):
            assert session.execute("savevm one") == ""
        assert session.execute("info snapshots").splitlines()[2].split()[1] == "one"
        assert session.execute("loadvm one") == ""
        assert session.execute("info status") == "VM status: running\n"
        assert "two" in session.execute("loadvm two")
        assert session.execute("delvm one") == ""
        assert "no snapshot available" in session.execute("info snapshots")


def test_ports_of_the_host() -> None:
    accel = str(guests.accelerators()[-1])
    with Machine(memory=4 << 20, accel=accel, network="user,hostfwd=udp::0-:53") as machine:
        session = hmp.Session(machine.control)
        assert session.execute("hostfwd_add tcp::0-:22") == ""
        udp, tcp = session.execute("info network").splitlines()[1:]
        assert udp.startswith("  udp 127.0.0.1:") and tcp.endswith(" -> the guest:22")
        place = tcp.split()[1]
        assert "not found" in session.execute(f"hostfwd_remove udp:{place}")
        assert "removed" in session.execute(f"hostfwd_remove tcp:{place}")
        assert "tcp" not in session.execute("info network")
        assert "such as" in session.execute("hostfwd_add tcp::22")
