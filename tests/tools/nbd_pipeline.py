"""A client that sends many requests at once, to a server beside the test."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, NamedTuple

from tests.tools.nbd_pair import BlockingClient
from vdisk.nbd.connect import ClientSettings
from vdisk.nbd.events import ReplyDone
from vdisk.nbd.session import HeaderStyle
from vdisk.nbd.wire import QEMU_ALLOCATION_DEPTH, ErrorValue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tools.nbd_server import Running
    from vdisk.nbd.client_requests import Outgoing


def settings_for(style: HeaderStyle, export: str = "") -> ClientSettings:
    return ClientSettings(
        export,
        meta_contexts=("base:allocation", QEMU_ALLOCATION_DEPTH),
        structured_replies=style is not HeaderStyle.SIMPLE,
        extended_headers=style is HeaderStyle.EXTENDED,
    )


class Answer(NamedTuple):
    """What a request came to, however it was put on the wire."""

    error: ErrorValue | None
    data: bytes


class Pipeline(BlockingClient):
    """Many requests sent at once, answered in any order."""

    def all(self, requests: list[Outgoing]) -> list[Answer]:
        self.socket.sendall(b"".join(bytes(part) for one in requests for part in one.buffers))
        answers: dict[int, Answer] = {}
        while len(answers) < len(requests):
            event = self.machine.next_event()
            if event is None:
                data = self.socket.recv(1 << 16)
                assert data, "the server closed the connection"
                self.machine.receive_data(data)
            elif isinstance(event, ReplyDone):
                error = event.error.value if event.error else None
                answers[event.cookie] = Answer(error, b"" if error else bytes(event.data))
        return [answers[request.cookie] for request in requests]

    def one(self, request: Outgoing) -> Answer:
        return self.all([request])[0]


@contextlib.contextmanager
def client(server: Running, style: HeaderStyle, export: str = "") -> Iterator[Pipeline]:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(server.path))
    with connection:
        found = Pipeline(connection, settings_for(style, export))
        yield found
        found.close()
