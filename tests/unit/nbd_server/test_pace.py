"""When replies are sent in two parts, and requests looked for: where both sides have processors."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.tools.nbd_pipeline import client
from tests.tools.nbd_server import running
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd_server import Export, Server
from vdisk.nbd_serving import pace
from vdisk.nbd_serving.channel import Channel
from vdisk.nbd_serving.pace import Lookout, Pace
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable
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


class Clock:
    """Each look takes a microsecond."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(pace, "monotonic", found)
    return found


def looks(lookout: Lookout, *, comes_after: int) -> int:
    """Times it looked for a request that comes after so many looks."""
    seen = 0

    def readable() -> bool:
        nonlocal seen
        seen += 1
        return seen > comes_after

    lookout.look(readable)
    return seen


@pytest.mark.usefixtures("clock")
def test_a_request_is_looked_for_until_it_comes_but_not_for_long() -> None:
    lookout = Lookout()
    assert looks(lookout, comes_after=0) == 1
    assert looks(lookout, comes_after=5) == 6
    assert looks(lookout, comes_after=1000) == pytest.approx(pace.LOOK_SECONDS / 1e-6, abs=2)


@pytest.mark.usefixtures("clock")
def test_a_slow_client_is_slept_for_and_tried_again_later() -> None:
    lookout = Lookout()
    for _ in range(pace.LOOKS_JUDGED):
        assert looks(lookout, comes_after=1000) > 1
    for _ in range(pace.LOOKS_PAUSED):
        assert looks(lookout, comes_after=1000) == 0
    assert looks(lookout, comes_after=1000) > 1


@pytest.mark.usefixtures("clock")
def test_a_client_that_is_slow_now_and_then_is_still_looked_for() -> None:
    lookout = Lookout()
    for number in range(5 * pace.LOOKS_JUDGED):
        assert looks(lookout, comes_after=1000 if number % 2 else 3) > 1


@pytest.mark.parametrize("free", [True, False])
def test_nobody_looks_where_processors_are_scarce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    looked = 0

    def look(_lookout: Lookout, readable: Callable[[], bool]) -> None:
        nonlocal looked
        assert readable() in (True, False)
        looked += 1

    monkeypatch.setattr(Lookout, "look", look)
    monkeypatch.setattr(Pace, "processors_are_free", lambda _: free)
    (tmp_path / "disk").write_bytes(bytes(4096))
    with (
        FileStore(tmp_path / "disk") as disk,
        running(lambda: Server([Export("", disk)])) as server,
        client(server, HeaderStyle.SIMPLE) as talk,
    ):
        for _ in range(20):
            assert talk.one(talk.machine.read(0, 512)).data == bytes(512)
    assert (looked > 0) is free


def test_a_channel_tells_when_something_can_be_received() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    assert not channel.readable()
    theirs.send(b"x")
    assert channel.readable()
    channel.recv_into(memoryview(bytearray(1)))
    assert not channel.readable()
    theirs.close()
    assert channel.readable()
    channel.close()


def sent_at_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    free: bool,
    depth: int,
    clients: int,
    then: tuple[int, ...] = (),
) -> list[int]:
    """Replies to reads of 512 bytes in each ``send`` of the server, for batches of them."""
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
        sent.clear()
        for count in (depth, *then):
            answers = talk.all([talk.machine.read(512 * number, 512) for number in range(count)])
            for number, answer in enumerate(answers):
                assert answer.data == (bytes(range(256)) * 512)[512 * number : 512 * number + 512]
        for other in others:
            other.__exit__(None, None, None)
    return sent


def test_half_the_replies_leave_before_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=True, depth=32, clients=1)
    assert found == [16, 16]


def test_what_comes_while_the_other_half_is_answered_is_not_split_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=True, depth=32, clients=1, then=(20, 24))
    assert found == [16, 16, 20, 12, 12]


@pytest.mark.parametrize(
    ("free", "depth", "clients"), [(False, 32, 1), (True, 8, 1), (True, 32, 2)]
)
def test_replies_leave_together_where_that_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool, depth: int, clients: int
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=free, depth=depth, clients=clients)
    assert found == [depth]
