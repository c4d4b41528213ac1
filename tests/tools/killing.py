"""An NBD server that is killed again and again while a client writes, and what it leaves.

The client knows what it was told: a request that was not answered may have happened or not, in
any of its sectors; after the answer to a flush, or to a request with FUA, what was answered
before is there for good.
"""

from __future__ import annotations

import random
import socket
import threading
from typing import TYPE_CHECKING, Any

import vdisk
from tests.tools import command, nbd_server, peers, qemu
from tests.tools.allowed import Allowed
from tests.tools.nbd_pair import BlockingClient
from vdisk.filters.writelog import SECTOR
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.errors import RemoteProtocolError
from vdisk.nbd.events import ReplyDone

if TYPE_CHECKING:
    from pathlib import Path

    from vdisk.nbd.client_requests import Outgoing

SLOT = 32 << 10
"""Bytes of the disk that each request of a batch has for itself, for they happen in any order."""
BATCH = 12
SHORTEST, LONGEST = 0.02, 0.4
"""Seconds that a server lives once it has answered a first batch."""


class Killing:
    """An image at ``path`` of ``size`` bytes that is served and written, and the server killed.

    ``answered``: requests that were; ``flushes``: those of them that were flushes.
    """

    def __init__(
        self, path: Path, size: int, seed: int, format: str = "qcow2", **options: Any
    ) -> None:
        self.path = path
        self.format = format
        self.size = size
        self.rng = random.Random(seed)
        self.allowed = Allowed(size)
        self.answered = self.flushes = 0
        vdisk.create(path, size, format=format, options=options)

    def round(self) -> None:
        """Serve, write, kill, look."""
        with nbd_server.process("-f", self.format, self.path, ends_well=False) as (path, server):
            client = BlockingClient(_connected(path), ClientSettings())
            self._batch(client, flush=True)  # however slow it is
            killer = threading.Timer(self.rng.uniform(SHORTEST, LONGEST), server.kill)
            killer.start()
            try:
                while True:
                    self._batch(client, flush=self.rng.random() < 0.5)
            except (OSError, RemoteProtocolError):
                pass  # that is the end of the server
            finally:
                killer.join()
                client.socket.close()
        self._look()

    # -- the client ------------------------------------------------------------------------------

    def _batch(self, client: BlockingClient, *, flush: bool) -> None:
        rng = self.rng
        slots = rng.sample(range(self.size // SLOT), BATCH + 1)
        quiet = slots.pop() * SLOT
        asked = [self._change(client, slot) for slot in slots]
        self._answers(client, [request for request, _offset, _length, _fua in asked])
        for _request, offset, length, fua in asked:
            if fua:
                self.allowed.on_stable(offset, length)
        (done,) = self._answers(client, [client.machine.read(quiet, SLOT)])
        first = quiet // SECTOR
        assert done.data == b"".join(self.allowed.latest[first : first + SLOT // SECTOR])
        if flush:
            self._answers(client, [client.machine.flush()])
            self.allowed.on_acknowledged()
            self.flushes += 1

    def _change(self, client: BlockingClient, slot: int) -> tuple[Outgoing, int, int, bool]:
        rng = self.rng
        start = rng.randrange(SLOT // SECTOR)
        length = rng.choice([1, 8, SLOT // SECTOR, rng.randrange(1, SLOT // SECTOR)])
        length = min(length, SLOT // SECTOR - start) * SECTOR
        offset, fua = slot * SLOT + start * SECTOR, rng.random() < 0.1
        if rng.random() < 0.2:
            self.allowed.on_write(offset, bytes(length))
            return client.machine.write_zeroes(offset, length, fua=fua), offset, length, fua
        data = rng.randbytes(length)
        self.allowed.on_write(offset, data)
        return client.machine.write(offset, data, fua=fua), offset, length, fua

    def _answers(self, client: BlockingClient, asked: list[Outgoing]) -> list[ReplyDone]:
        """Send requests all at once; their answers, in the order in which they come."""
        client.socket.sendall(b"".join(bytes(part) for one in asked for part in one.buffers))
        found: list[ReplyDone] = []
        while len(found) < len(asked):
            event = client.machine.next_event()
            if isinstance(event, ReplyDone):
                assert event.error is None, event.error
                found.append(event)
            elif event is None:
                client.receive()
        self.answered += len(found)
        return found

    # -- what is left ----------------------------------------------------------------------------

    def _look(self) -> None:
        if self.format == "qcow2":
            left = qemu.img("check", "-f", "qcow2", self.path, check=False)
            with vdisk.open(self.path) as disk:
                marked = disk.dirty  # type: ignore[attr-defined]
            assert marked or left.returncode in (0, 3), left.stdout.decode()
        # Nobody holds a lock; a mark is repaired.
        with vdisk.open(self.path, "r+", format=self.format) as disk:
            content = disk.read(0, self.size)
        self.allowed.check_content(content)
        self.allowed.adopt(content)
        if self.format == "qcow2":
            assert command.vdisk("check", "-q", "-r", "leaks", self.path).returncode == 0
            qemu.check(self.path)


def _connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(peers.TIMEOUT)
    client.connect(str(path))
    return client
