"""Connections through TLS in one thread: what breaks one is no other's affair."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest

from tests.tools.certificates import make_credentials
from vdisk.tls import apart

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("tls")) / "server"


def connected(folder: Path) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """The server's end, which never waits, and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    client = ssl.create_default_context(cafile=folder / "ca-cert.pem")
    ends = socket.socketpair()
    ours = server.wrap_socket(ends[0], server_side=True, do_handshake_on_connect=False)
    shaking = threading.Thread(target=ours.do_handshake)
    shaking.start()
    theirs = client.wrap_socket(ends[1], server_hostname="localhost")
    shaking.join()
    ours.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize("operation", ["send", "unwrap"])
def test_a_broken_connection_breaks_no_other(folder: Path, operation: str) -> None:
    broken, gone = connected(folder)
    works, other = connected(folder)
    gone.close()
    with broken, works, other:
        last = broken.unwrap if operation == "unwrap" else lambda: broken.send(b"to nobody")
        with pytest.raises(OSError):  # EPIPE, or an SSLError that says so
            apart(last)
        with pytest.raises(ssl.SSLWantReadError):
            works.recv_into(bytearray(10))
        other.send(b"still here")
        assert apart(works.recv, 10) == b"still here"


def test_an_error_that_others_left_is_not_believed(folder: Path) -> None:
    broken, gone = connected(folder)
    works, other = connected(folder)
    gone.close()
    with broken, works, other:
        with pytest.raises(OSError):
            broken.send(b"to nobody")
        with pytest.raises(ssl.SSLWantReadError):
            apart(works.recv, 10)


def test_an_error_of_its_own_is_raised() -> None:
    tries: list[int] = []

    def operation(number: int) -> None:
        tries.append(number)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        apart(operation, 7)
    assert tries == [7, 7]


def test_only_errors_of_the_system_may_be_anothers() -> None:
    tries: list[int] = []

    def operation() -> None:
        tries.append(0)
        raise ssl.SSLWantReadError

    with pytest.raises(ssl.SSLWantReadError):
        apart(operation)
    assert len(tries) == 1
