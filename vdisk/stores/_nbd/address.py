"""Where an NBD server is, which export is meant, and how QEMU's names and options say so.

=================================  ===============================================================
``nbd://host:port/export``         a URI (:mod:`vdisk.nbd.uri`), with TLS parameters
``nbd:host:port:exportname=x``     QEMU's older names; the port is needed, the export is not
``nbd:unix:/path:exportname=x``
``server.type=inet|unix|vsock``    QEMU's options: ``server.host`` and ``.port``, ``server.path``,
                                   or ``server.cid`` and ``.port``; beside it ``export``
=================================  ===============================================================

All of them become an :class:`~vdisk.nbd.uri.NbdUri`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError, from_os_error
from vdisk.nbd.uri import NbdUri, Transport, is_nbd_uri, parse_uri
from vdisk.nbd.wire import NBD_DEFAULT_PORT
from vdisk.options import OptionBag

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXPORT_NAME = "exportname="


def parse_name(name: str) -> NbdUri:
    """The server and export that a name beginning with one of the NBD schemes means."""
    return parse_uri(name) if is_nbd_uri(name) else _parse_old_name(name)


def _parse_old_name(name: str) -> NbdUri:
    """``nbd:HOST:PORT[:exportname=NAME]`` or ``nbd:unix:PATH[:exportname=NAME]``.

    Everything after "exportname=" is the export's name, colons included.
    """
    place, separator, export = name.removeprefix("nbd:").partition(":" + _EXPORT_NAME)
    kind, colon, path = place.partition(":")
    if kind == "unix" and colon and path:
        return NbdUri(transport=Transport.UNIX, socket=path, export=export)
    host, colon, port = place.rpartition(":")
    if not colon:
        raise InvalidRequestError(
            f"{name!r} names no server: nbd:HOST:PORT, nbd:unix:PATH or nbd://HOST[:PORT]"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return NbdUri(host=host, port=port_number(port), export=export if separator else "")


def from_server_options(server: Mapping[str, Any], export: str) -> NbdUri:
    """The place that the options below ``server`` describe (QAPI's ``SocketAddress``)."""
    bag = OptionBag(server, "option 'server'")
    kind = bag.choice("type", ("inet", "unix", "vsock"), "inet")
    if kind == "unix":
        uri = NbdUri(transport=Transport.UNIX, socket=bag.required("path"), export=export)
    elif kind == "vsock":
        cid, port = number(bag.take("cid"), "server.cid"), number(bag.take("port"), "server.port")
        uri = NbdUri(transport=Transport.VSOCK, cid=cid, port=port, export=export)
    else:
        port = port_number(str(bag.take("port", NBD_DEFAULT_PORT)))
        uri = NbdUri(host=bag.required("host"), port=port, export=export)
    bag.finish()
    return uri


def port_number(text: str) -> int:
    """A port by number, or by the name that the system knows it by."""
    if text.isascii() and text.isdigit():
        return int(text[:6])
    with contextlib.suppress(OSError, ValueError):  # ValueError: not text that a name can be
        return socket.getservbyname(text, "tcp")
    raise InvalidRequestError(f"{text!r} is no port: give its number")


def number(value: Any, what: str) -> int:
    """A number, from JSON or from text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequestError(f"option {what!r} is a number from 0 on, not {value!r}")
    return value


def describe(uri: NbdUri) -> str:
    """The server, for people."""
    if uri.transport is Transport.UNIX:
        return uri.socket.replace("\0", "@")
    if uri.transport is Transport.VSOCK:
        return f"vsock {uri.cid}:{uri.port}"
    return f"{uri.host or 'localhost'}:{uri.port}"


def open_socket(uri: NbdUri, timeout: float) -> socket.socket:
    """A socket connected to the server; raises :class:`~vdisk.errors.VdiskError`.

    ``timeout``: seconds for each address that the host's name has.
    """
    try:
        if uri.transport is Transport.TCP:
            return _open_tcp(uri, timeout)
        if uri.transport is Transport.UNIX:
            return _connected(_family("AF_UNIX"), os.fsencode(uri.socket), timeout)
        return _connected(_family("AF_VSOCK"), (uri.cid, uri.port), timeout)
    except TimeoutError as error:
        raise from_os_error(
            TimeoutError(errno.ETIMEDOUT, f"no answer in {timeout:g} s"),
            path=describe(uri),
            operation="connect",
        ) from error
    except OSError as error:
        raise from_os_error(error, path=describe(uri), operation="connect") from error


def _open_tcp(uri: NbdUri, timeout: float) -> socket.socket:
    connected = socket.create_connection((uri.host or "localhost", uri.port), timeout)
    tune(connected)
    return connected


def tune(connected: socket.socket) -> None:
    """A request is sent when it is made, and a peer that vanished is noticed some day."""
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _family(name: str) -> int:
    family: int | None = getattr(socket, name, None)
    if family is None:
        raise UnsupportedFeatureError(f"this system has no {name} sockets")
    return family


def _connected(family: int, place: Any, timeout: float) -> socket.socket:
    client = socket.socket(family)
    try:
        client.settimeout(timeout)
        client.connect(place)
    except BaseException:
        client.close()
        raise
    return client
