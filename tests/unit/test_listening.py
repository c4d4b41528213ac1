"""A server's address is free when it is closed, whoever has a copy of its descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.patience import free_place
from vdisk.listening import stop_listening
from vdisk.nbd_server import Server
from vdisk.vm.clock import VirtualClock
from vdisk.vm.display.serving import ConnectionServer, parse_address
from vdisk.vm.net.forwards import Forward
from vdisk.vm.net.user import UserNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = free_place()[0]


@contextlib.contextmanager
def copied(*sockets: socket.socket) -> Iterator[None]:
    """With copies, as a child process has them until it calls ``exec``."""
    copies = [os.dup(each.fileno()) for each in sockets]
    try:
        yield
    finally:
        for copy in copies:
            os.close(copy)


def is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


def test_a_port_is_free_and_a_path_refuses(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    tcp, unix = socket.create_server((HOST, 0)), socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    port = tcp.getsockname()[1]
    with copied(tcp, unix):
        for listener in (tcp, unix):
            stop_listening(listener)
            listener.close()
        assert is_free(port)
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(path)


def test_a_socket_that_does_not_listen_goes_on() -> None:
    one, other = socket.socketpair()
    with one, other:
        stop_listening(one)
        other.send(b"x")
        assert one.recv(1) == b"x"


def test_an_nbd_server_and_the_sockets_it_was_given() -> None:
    async def scenario() -> None:
        with socket.create_server((HOST, 0)) as given:
            async with Server() as server:
                server.listen_on([given.dup()])
                (port,) = await server.listen_tcp(HOST, 0)
                with copied(*server._own):
                    await server.close()
                    assert is_free(port)
            socket.create_connection(given.getsockname()).close()  # its owner still listens

    asyncio.run(scenario())


def test_the_servers_of_a_machine() -> None:
    async def scenario() -> None:
        async with ConnectionServer(lambda *_: pytest.fail("nobody came"), 1) as server:
            address = await server.listen(parse_address(f"{HOST}:0"))
            with copied(*server._servers[0].sockets):
                server.stop_listening()
                assert is_free(address.port)

    asyncio.run(scenario())


def test_the_ports_that_lead_to_a_guest() -> None:
    network = UserNetwork(VirtualClock(), lock := threading.RLock())
    with lock:
        network.add_forward(Forward.parse(f"tcp:{HOST}:0-:22"))
    (forward,) = network.forwards
    with copied(*(port.sock for port in network._host_ports._ports)):
        network.close()
        assert is_free(forward.host_port)
