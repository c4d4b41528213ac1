"""When replies are sent in two parts, and requests looked for: where both sides have processors."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.tools.nbd_pipeline import client
from tests.tools.nbd_server import running
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd_server import Export, Server
from vdisk.nbd_serving import pace
from vdisk.nbd_serving.channel import Channel
from vdisk.nbd_serving.pace import Depth, Lookout, Pace
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.tools.nbd_pipeline import Pipeline


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

    assert lookout.look(readable) is (comes_after == 0 and seen > 0)
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

    def look(_lookout: Lookout, readable: Callable[[], bool]) -> bool:
        nonlocal looked
        looked += 1
        return readable()

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
) -> list[int]:
    """Replies to reads of 512 bytes in each ``send`` of the server, for so many at once."""
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
        answers = talk.all([talk.machine.read(512 * number, 512) for number in range(depth)])
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


def test_what_comes_while_the_other_half_is_answered_is_not_the_whole() -> None:
    depth = Depth()
    assert depth.is_whole(32, waited=True)
    for _ in range(1000):
        assert not depth.is_whole(16, waited=False)
        assert not depth.is_whole(24, waited=False)
    assert depth.is_whole(25, waited=False)


def test_a_queue_that_became_shorter_is_noticed_where_it_was_waited_for() -> None:
    depth = Depth()
    assert depth.is_whole(32, waited=True)
    found = [depth.is_whole(16, waited=True) for _ in range(6)]
    assert found == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("free", "depth", "clients"), [(False, 32, 1), (True, 8, 1), (True, 32, 2)]
)
def test_replies_leave_together_where_that_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool, depth: int, clients: int
) -> None:
    found = sent_at_once(tmp_path, monkeypatch, free=free, depth=depth, clients=clients)
    assert found == [depth]


# -- looked at first, received when it is answered -----------------------------------------------


class Steps(Channel):
    """Tells what is done with a socket."""

    done: ClassVar[list[str]] = []

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        receive = self.recv_into

        def recv_into(view: memoryview) -> int:
            count = receive(view)
            self.done.append("receive")
            return count

        self.recv_into = recv_into

    def look_into(self, view: memoryview) -> int:
        count = super().look_into(view)
        self.done.append("look")
        return count

    def take(self, view: memoryview) -> None:
        super().take(view)
        self.done.append("take")

    def send(self, data: memoryview, *, more: bool = False) -> int:
        self.done.append("send")
        return super().send(data, more=more)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(Steps, "done", [])
    monkeypatch.setattr(Lookout, "look", lambda *_: False)  # the client is waited for
    monkeypatch.setattr("vdisk.nbd_serving.client.Channel", Steps)
    return Steps.done


@pytest.fixture
def free(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether processors are: for the server of ``talk`` from the beginning."""
    found: bool = request.param
    monkeypatch.setattr(Pace, "processors_are_free", lambda _: found)
    return found


@pytest.fixture
def talk(free: bool, tmp_path: Path) -> Iterator[Pipeline]:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with (
        FileStore(tmp_path / "disk", readonly=False) as disk,
        running(lambda: Server([Export("", disk)])) as server,
        client(server, HeaderStyle.SIMPLE) as found,
    ):
        yield found


@pytest.mark.parametrize("free", [True, False], indirect=True)
def test_a_client_is_not_woken_before_its_reply(
    free: bool, steps: list[str], talk: Pipeline
) -> None:
    steps.clear()
    assert talk.one(talk.machine.read(0, 4096)).data == bytes(4096)
    assert talk.one(talk.machine.write(4096, b"w" * 4096)).error is None
    assert talk.one(talk.machine.read(4096, 300)).data == b"w" * 300
    each = ["look", "send", "take"] if free else ["receive", "send"]
    assert steps[: 2 * len(each) + 2] == [*each, *each, *each[:2]]  # the last is perhaps not over


@pytest.mark.parametrize("free", [True], indirect=True)
@pytest.mark.usefixtures("free")
def test_what_is_large_is_received_at_once(steps: list[str], talk: Pipeline) -> None:
    data = bytes(range(256)) * 256
    steps.clear()
    assert talk.one(talk.machine.write(512, data)).error is None
    assert steps[:2] == ["look", "receive"]
    assert "take" not in steps
    for expected in ("receive", "look"):  # the next is not looked at first, those after it are
        steps.clear()
        assert talk.one(talk.machine.read(512, len(data))).data == data
        assert steps[0] == expected


def test_what_was_looked_at_is_still_to_be_received() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours)
        assert channel.receiving_wakes
        theirs.send(b"abcd")
        theirs.send(b"ef")
        view = memoryview(bytearray(16))
        assert channel.look_into(view) == 6
        channel.take(view[:6])
        assert view[:6] == b"abcdef"
        assert not channel.readable()
        with pytest.raises(ConnectionError):
            channel.take(view[:1])
        channel.close()


def test_only_a_unix_socket_wakes_who_waits_for_replies() -> None:
    with socket.create_server(("localhost", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        channel = Channel(listener.accept()[0])
        assert not channel.receiving_wakes
        channel.close()
        theirs.close()
