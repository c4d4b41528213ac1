"""Sockets that listen: TCP, unix, AF_VSOCK, and those that systemd hands over."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from vdisk.errors import (
    InvalidRequestError,
    UnsupportedFeatureError,
    VdiskError,
    from_os_error,
)
from vdisk.nbd.uri import NbdUri, Transport, format_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BACKLOG = 128
"""Connections that may wait to be accepted: with fewer, a burst of clients is refused."""

SYSTEMD_FIRST_DESCRIPTOR = 3

MAX_PORT = (1 << 16) - 1
MAX_VSOCK_PORT = (1 << 32) - 1

SOCKET_LABEL = "/proc/thread-self/attr/sockcreate"
"""Where SELinux has the context of the sockets that a thread creates (setsockcreatecon)."""


@contextlib.contextmanager
def labelled_sockets(label: str | None, place: str = SOCKET_LABEL) -> Iterator[None]:
    """Sockets that this thread creates inside have the SELinux context ``label``; None: as ever."""
    if label is None:
        yield
        return
    _set_label(place, label.encode(errors="surrogateescape") + b"\0", label)
    try:
        yield
    finally:
        _set_label(place, b"", label)


def _set_label(place: str, content: bytes, label: str) -> None:
    try:
        descriptor = os.open(place, os.O_WRONLY)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnsupportedFeatureError(
            f"--selinux-label {label}: SELinux is off, or refuses it ({error.strerror})"
        ) from error


def tcp_sockets(host: str | None, port: int) -> list[socket.socket]:
    """Sockets for every address of ``host`` (None: of all interfaces); port 0: any free one."""
    check_port(port)
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, proto=socket.IPPROTO_TCP
        )
    except OSError as error:
        raise InvalidRequestError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    except UnicodeError as error:  # such as a label of more than 63 characters
        raise InvalidRequestError(f"{host!r} is no name of a host: {error}") from error
    sockets: list[socket.socket] = []
    try:
        for family, _type, _protocol, _name, address in dict.fromkeys(found):
            # After the first address got a free port, the others shall have the same.
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            listener = _tcp_socket(family, (address[0], chosen, *address[2:]))
            if listener is not None:
                sockets.append(listener)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    if not sockets:
        raise InvalidRequestError(f"{host} has no address on this machine")
    return sockets


def check_port(port: int, most: int = MAX_PORT) -> None:
    """Refuse a number that is no port's: systems cut it off, or worse."""
    if not 0 <= port <= most:
        raise InvalidRequestError(f"port {port} is not in 0..{most}")


def _tcp_socket(family: int, address: tuple[object, ...]) -> socket.socket | None:
    """None where the name has an address of a kind that this machine does not use (::1)."""
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return _listening(listener, address, f"{address[0]}:{address[1]}")
    except VdiskError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
            return None
        raise


def unix_socket(path: str) -> socket.socket:
    """A unix socket at ``path``; one that a dead server left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        return _listening(listener, path, path)
    except BaseException:
        listener.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove a socket at ``path`` that nobody listens on."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def vsock_socket(port: int, cid: int | None = None) -> socket.socket:
    """An AF_VSOCK socket of this machine's context ``cid`` (None: any)."""
    check_port(port, MAX_VSOCK_PORT)
    if not hasattr(socket, "AF_VSOCK"):
        raise UnsupportedFeatureError("this system has no AF_VSOCK sockets")
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise from_os_error(error, path="vsock", operation="make a socket") from error
    address = (socket.VMADDR_CID_ANY if cid is None else cid, port)
    try:
        return _listening(listener, address, f"vsock port {port}")
    except BaseException:
        listener.close()
        raise


def _listening(listener: socket.socket, address: object, name: str) -> socket.socket:
    try:
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen(BACKLOG)
    except OSError as error:
        raise from_os_error(error, path=name, operation="listen") from error
    return listener


def systemd_sockets(environment: Mapping[str, str]) -> list[socket.socket]:
    """The sockets handed over by socket activation (sd_listen_fds(3)); none without one."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit()):
        raise InvalidRequestError(f"LISTEN_FDS={count!r} is no number")
    sockets = []
    for descriptor in range(SYSTEMD_FIRST_DESCRIPTOR, SYSTEMD_FIRST_DESCRIPTOR + int(count)):
        try:
            listener = socket.socket(fileno=descriptor)
        except OSError as error:
            raise from_os_error(
                error, path=f"descriptor {descriptor}", operation="use the socket handed over"
            ) from error
        os.set_inheritable(descriptor, False)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise InvalidRequestError(f"descriptor {descriptor} is a socket that does not listen")
        sockets.append(listener)
    return sockets


def uri_of(listener: socket.socket, export: str = "", *, tls: bool = False) -> str:
    """Where clients find what listens."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        uri = NbdUri(transport=Transport.UNIX, tls=tls, export=export, socket=address)
    elif listener.family in (socket.AF_INET, socket.AF_INET6):
        uri = NbdUri(
            transport=Transport.TCP, tls=tls, export=export, host=address[0], port=address[1]
        )
    else:
        uri = NbdUri(
            transport=Transport.VSOCK, tls=tls, export=export, cid=address[0], port=address[1]
        )
    return format_uri(uri)
