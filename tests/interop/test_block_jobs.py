"""Block jobs by the same QMP commands on a machine of QEMU and on one of ours.

Both begin with copies of the same chain; what they answer and tell, and the disk that is left in
the end, must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient

import vdisk
from tests.tools import peers, small_guests
from tests.tools.peers import requires_peer
from vdisk.vm.display.serving import parse_address
from vdisk.vm.machine import Machine
from vdisk.vm.monitor.qmp import QmpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = requires_peer("qemu-system-x86_64", "qemu-img")
MIB = 1 << 20
SIZE = 4 * MIB
NAMES = ("base.raw", "mid.qcow2", "top.qcow2")
FACTS = ("device", "type", "speed", "error", "status", "id", "action", "operation")


class Monitor:
    """Gives commands and writes down what comes of them."""

    def __init__(self, client: QMPClient, events: EventListener, folder: Path) -> None:
        self._client, self._events = client, events
        self.folder = folder
        self.log: list[object] = []
        self._been: set[object] = set()

    async def ask(self, name: str, **arguments: object) -> Any:
        """A command, whose errors are written down as what they are."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            answer = await self._client.execute(name, named)
        except ExecuteError as error:
            self.log.append((name, error.error_class))
            return None
        self.log.append((name, answer if answer == {} else "…"))
        return answer

    async def until(self, wanted: str) -> None:
        """Write down what happens until this does, or a job becomes this."""
        while True:
            event = await self._events.get()
            data = event.get("data", {})
            kept = {key: value for key, value in data.items() if key in FACTS}
            if "len" in data and "error" not in data and "CANCELLED" not in event["event"]:
                kept["whole"] = data["len"] == data["offset"]
            if self._is_news(kept.get("status")):
                self.log.append((event["event"], kept))
            if wanted in (event["event"], kept.get("status")):
                return

    def _is_news(self, status: object) -> bool:
        """QEMU's jobs pause for a moment, and are what they were again, when it likes."""
        if status == "created":
            self._been.clear()
        news = status is None or status not in {"paused", "standby", *self._been}
        self._been.add(status)
        return news

    async def jobs(self) -> list[dict[str, Any]]:
        """The jobs, without what is not the same in any two runs."""
        found = await self._client.execute("query-block-jobs")
        return [{key: job[key] for key in sorted(job) if key not in _FLEETING} for job in found]  # type: ignore[union-attr,call-overload,index,misc]

    async def chain(self) -> list[str]:
        """The names of the image in the drive and of those below it."""
        (drive,) = [one for one in await self._client.execute("query-block") if "inserted" in one]  # type: ignore[union-attr]
        inserted = drive["inserted"]  # type: ignore[index,call-overload]
        names = [inserted["file"], inserted.get("backing_file")]
        return [str(name).rpartition("/")[2] for name in names if name]


_FLEETING = frozenset({"busy", "len", "offset"})


@contextlib.asynccontextmanager
async def of_qemu(folder: Path) -> AsyncIterator[Monitor]:
    path = folder / "qmp"
    process = subprocess.Popen(
        peers.command(
            "qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-accel", "tcg",
            "-drive", f"file={folder / 'top.qcow2'},if=virtio,id=virtio0",
            "-qmp", f"unix:{path},server=on,wait=off",
        )
    )  # fmt: skip
    try:
        while not path.exists():
            await asyncio.sleep(0.02)
        async with connected(folder) as monitor:
            yield monitor
            with contextlib.suppress(ExecInterruptedError):
                await monitor.ask("quit")
        process.wait(30)  # it writes its tables then
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def of_ours(folder: Path) -> AsyncIterator[Monitor]:
    machine = Machine(
        memory=16 << 20,
        accel=str(small_guests.accelerators()[-1]),
        disks=[f"{folder / 'top.qcow2'},if=virtio"],
    )
    try:
        async with QmpServer(machine.control) as server:
            await server.listen(parse_address(f"unix:{folder}/qmp"))
            async with connected(folder) as monitor:
                yield monitor
    finally:
        await asyncio.to_thread(machine.close)


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Monitor]:
    client, events = QMPClient("test"), EventListener()
    while True:
        try:
            await client.connect(str(folder / "qmp"))
            break
        except ConnectError:  # QEMU has made its socket, and does not listen yet
            await asyncio.sleep(0.02)
    with client.listen(events):
        yield Monitor(client, events, folder)
    with contextlib.suppress(EOFError):  # QEMU was faster
        await client.disconnect()


def make_chain(folder: Path) -> None:
    """base <- mid <- top, each with something of its own, and a hole that hides what is below."""
    folder.mkdir()
    below: str | None = None
    for number, name in enumerate(NAMES):
        path, format = str(folder / name), name.rpartition(".")[2]
        if below is None:
            vdisk.create(path, SIZE, format=format)
        else:
            vdisk.create(path, format=format, backing_file=below, backing_format=_format(below))
        with vdisk.open(path, "r+", format=format) as image:
            for piece in range(number, 40, number + 1):
                image.write(piece * 96 << 10, bytes([piece + 100 * number]) * (80 << 10))
            image.write_zeroes((number + 1) * MIB, 128 << 10)
        below = path


def _format(path: str) -> str:
    return path.rpartition(".")[2]


Scenario = "Callable[[Monitor], Awaitable[None]]"


async def stream(monitor: Monitor) -> None:
    await monitor.ask("block-stream", device="virtio0", job_id="s")
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def stream_to_base(monitor: Monitor) -> None:
    await monitor.ask("block-stream", device="virtio0", base=str(monitor.folder / "base.raw"))
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def commit_and_go_on(monitor: Monitor) -> None:
    base = str(monitor.folder / "base.raw")
    await monitor.ask("block-commit", device="virtio0", base=base, job_id="c")
    await monitor.until("BLOCK_JOB_READY")
    monitor.log.append(await monitor.jobs())
    await monitor.ask("blockdev-snapshot-sync", device="virtio0", snapshot_file="/nowhere/x")
    await monitor.ask("block-stream", device="virtio0")
    await monitor.ask("block-job-complete", device="c")
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def commit_below(monitor: Monitor) -> None:
    await monitor.ask("block-commit", device="virtio0", top=str(monitor.folder / "mid.qcow2"))
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def mirror(monitor: Monitor) -> None:
    target = str(monitor.folder / "target")
    await monitor.ask(
        "drive-mirror", device="virtio0", target=target, sync="full", format="raw", speed=64 * MIB
    )
    await monitor.until("BLOCK_JOB_READY")
    await monitor.ask("block-job-pause", device="virtio0")
    await monitor.ask("block-job-pause", device="virtio0")
    await monitor.ask("block-job-resume", device="virtio0")
    await monitor.ask("block-job-set-speed", device="virtio0", speed=0)
    await monitor.ask("block-job-complete", device="virtio0")
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def mirror_and_leave(monitor: Monitor) -> None:
    target = str(monitor.folder / "target")
    await monitor.ask("drive-mirror", device="virtio0", target=target, sync="top")
    await monitor.until("BLOCK_JOB_READY")
    await monitor.ask("block-job-cancel", device="virtio0")
    await monitor.until("null")
    monitor.log.append(await monitor.chain())


async def cancelled(monitor: Monitor) -> None:
    target = str(monitor.folder / "target")
    await monitor.ask("drive-mirror", device="virtio0", target=target, sync="full", speed=1000)
    monitor.log.append(await monitor.jobs())
    await monitor.ask("block-job-complete", device="virtio0")
    await monitor.ask("block-job-cancel", device="virtio0")
    await monitor.until("null")
    monitor.log.append(await monitor.chain())
    await monitor.ask("block-job-cancel", device="virtio0")


async def backup(monitor: Monitor) -> None:
    target = str(monitor.folder / "target")
    await monitor.ask("drive-backup", device="virtio0", target=target, sync="full", format="qcow2")
    await monitor.until("null")


async def refused(monitor: Monitor) -> None:
    target = str(monitor.folder / "target")
    await monitor.ask("block-stream", device="nope")
    await monitor.ask("block-stream", device="virtio0", base="/nowhere")
    await monitor.ask("block-stream", device="virtio0", speed=-1)
    await monitor.ask("block-commit", device="virtio0", top="/nowhere")
    await monitor.ask("drive-mirror", device="virtio0", target=target)
    await monitor.ask("drive-mirror", device="virtio0", target=target, sync="most")
    await monitor.ask("drive-backup", device="virtio0", target="/nowhere/x", sync="full")
    monitor.log.append(await monitor.jobs())
    monitor.log.append(await monitor.chain())


@pytest.mark.parametrize(
    ("scenario", "left"),
    [
        (stream, ["top.qcow2"]),
        (stream_to_base, ["top.qcow2"]),
        (commit_and_go_on, ["base.raw"]),
        (commit_below, ["top.qcow2"]),
        (mirror, ["top.qcow2", "target"]),
        (mirror_and_leave, ["top.qcow2", "target"]),
        (cancelled, ["top.qcow2"]),
        (backup, ["top.qcow2", "target"]),
        (refused, ["top.qcow2"]),
    ],
)
def test_as_qemu_does(
    tmp_path: Path, scenario: Callable[[Monitor], Awaitable[None]], left: list[str]
) -> None:
    make_chain(tmp_path / "wanted")
    logs = []
    for name, of in (("qemu", of_qemu), ("ours", of_ours)):
        make_chain(tmp_path / name)

        async def run(folder: Path = tmp_path / name, of: Any = of) -> list[object]:
            async with asyncio.timeout(60), of(folder) as monitor:
                await scenario(monitor)
                return list(monitor.log)

        logs.append(asyncio.run(run()))
        for image in left:
            same_disk(tmp_path / "wanted" / "top.qcow2", tmp_path / name / image)
    assert logs[1] == logs[0]


def same_disk(first: Path, second: Path) -> None:
    """As qemu-img sees them; the second, if it is qcow2, is sound as well."""
    info = json.loads(peers.run("qemu-img", "info", "--output=json", second).stdout)
    if info["format"] == "qcow2":
        peers.run("qemu-img", "check", second)
    peers.run("qemu-img", "compare", "-f", "qcow2", "-F", info["format"], first, second)
