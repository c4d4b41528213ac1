"""When replies are sent in two parts: where client and server can work at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools.nbd_pipeline import client
from tests.tools.nbd_server import running
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd_server import Export, Server
from vdisk.nbd_serving import pace
from vdisk.nbd_serving.channel import Channel
from vdisk.nbd_serving.pace import Pace
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from pathlib import Path


def test_processors_are_free_while_nobody_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = 0
    monkeypatch.setattr(pace, "_preemptions", lambda: lost)
    ours = Pace()
    assert not any(ours.processors_are_free() for _ in range(pace.LOOK_EVERY - 1))
    assert ours.processors_are_free()
    lost += pace.OFTEN
    assert all(ours.processors_are_free() for _ in range(pace.LOOK_EVERY - 1))
    assert not ours.processors_are_free()
    lost += pace.OFTEN - 1
    assert not any(ours.processors_are_free() for _ in range(pace.LOOK_EVERY - 1))
    assert ours.processors_are_free()


def test_where_nobody_tells_they_count_as_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_preemptions", lambda: None)
    ours = Pace()
    assert not any(ours.processors_are_free() for _ in range(3 * pace.LOOK_EVERY))


def test_a_preemption_is_counted() -> None:
    """Whatever the number is, it does not go down."""
    before = pace._preemptions()
    after = pace._preemptions()
    assert before is None or (after is not None and after >= before >= 0)


def sent_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: bool, depth: int, clients: int
) -> list[int]:
    """Replies to reads of 512 bytes in each ``send`` of the server, for one batch of them."""
    sent: list[int] = []

    class Watched(Channel):
        def send(self, data: memoryview, *, more: bool = False) -> int:
            sent.append(len(data) // (16 + 512))
            return super().send(data, more=more)

    monkeypatch.setattr("vdisk.nbd_serving.client.Channel", Watched)
    monkeypatch.setattr(Pace, "processors_are_free", lambda _: free)
    (folder / "disk").write_bytes(bytes(range(256)) * 512)
    with (
        FileStore(folder / "disk") as disk,
        running(lambda: Server([Export("", disk)])) as server,
        client(server, HeaderStyle.SIMPLE) as talk,
    ):
        others = [client(server, HeaderStyle.SIMPLE) for _ in range(clients - 1)]
        for other in others:
            other.__enter__()
        requests = [talk.machine.read(512 * number, 512) for number in range(depth)]
        sent.clear()
        answers = talk.all(requests)
        for number, answer in enumerate(answers):
            assert answer.data == (bytes(range(256)) * 512)[512 * number : 512 * number + 512]
        for other in others:
            other.__exit__(None, None, None)
    return sent


def test_most_replies_leave_before_the_last_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=True, depth=32, clients=1)
    assert found == [24, 8]


@pytest.mark.parametrize(
    ("free", "depth", "clients"), [(False, 32, 1), (True, 8, 1), (True, 32, 2)]
)
def test_replies_leave_together_where_that_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool, depth: int, clients: int
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=free, depth=depth, clients=clients)
    assert found == [depth]
