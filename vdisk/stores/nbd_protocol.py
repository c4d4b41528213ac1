"""The ``nbd`` driver: its names and options, most of them QEMU's.

``uri``, or ``server.…`` and ``export``, or ``host``, ``port``, ``path`` and ``export``: which
server and export.  ``tls-creds``: the id of ``--object tls-creds-x509|tls-creds-psk``;
``tls-hostname``: the name in the server's certificate.  ``reconnect-delay``, ``open-timeout``:
seconds of trying again.  ``x-dirty-bitmap``: a meta context whose bits ``map`` shows as holes, for
looking at dirty bitmaps; nothing else is to be done with such a node.  Ours: ``request-timeout``:
seconds that a server may be silent; ``connections``: at most so many.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.nbd.uri import NbdUri, Transport
from vdisk.nbd.wire import NBD_DEFAULT_PORT
from vdisk.stores._nbd.address import from_server_options, number, parse_name, port_number
from vdisk.stores._nbd.pool import DEFAULT_CONNECTIONS, MAX_CONNECTIONS, PoolSettings
from vdisk.stores._nbd.tls import TlsSettings, credentials_of, settings_for
from vdisk.stores.nbd import NbdSettings, NbdStore

if TYPE_CHECKING:
    from vdisk.options import OptionBag
    from vdisk.stores import StoreSettings

LONGEST_DELAY = 7 * 86400
"""Seconds: a week; what waits longer is not waiting for a server."""


class NbdProtocol:
    """Opens exports."""

    def parse_name(self, name: str) -> dict[str, Any]:
        return {"driver": "nbd", "uri": str(parse_name(name))}

    def open(self, options: OptionBag, settings: StoreSettings) -> NbdStore:
        uri = place(options)
        hostname = options.string("tls-hostname")
        if hostname is not None:
            uri = replace(uri, tls_hostname=hostname)
        tls = _tls(uri, options.string("tls-creds"), settings)
        pool = PoolSettings(
            connections=_connections(options),
            open_timeout=_seconds(options, "open-timeout"),
            reconnect_delay=_seconds(options, "reconnect-delay"),
            request_timeout=_seconds(options, "request-timeout") or None,
        )
        shown = options.string("x-dirty-bitmap")
        options.finish()
        wanted = NbdSettings(
            pool,
            shown_context=shown,
            write_through=settings.cache.write_through,
            ignore_flush=settings.cache.no_flush,
        )
        return NbdStore(uri, readonly=settings.readonly, settings=wanted, tls=tls)


def place(options: OptionBag) -> NbdUri:
    """The server and export, said in exactly one of the three ways."""
    export = options.string("export")
    uri, server = options.string("uri"), options.take("server")
    host, port, path = options.string("host"), options.take("port"), options.string("path")
    given = [uri, server, host, path]
    if sum(one is not None for one in given) != 1:
        raise InvalidRequestError(
            f"{options.owner} needs one of the options 'uri', 'server', 'host' and 'path'"
        )
    if uri is not None:
        if export is not None or port is not None:
            raise InvalidRequestError(f"{options.owner}: a uri names the export and the port, too")
        return parse_name(uri)
    if server is not None:
        if not isinstance(server, dict):
            raise InvalidRequestError(f"{options.owner}: option 'server' has parts: server.type, …")
        return from_server_options(server, export or "")
    if path is not None:
        return NbdUri(transport=Transport.UNIX, socket=path, export=export or "")
    return NbdUri(
        host=host or "",
        port=port_number(str(NBD_DEFAULT_PORT if port is None else port)),
        export=export or "",
    )


def _tls(uri: NbdUri, identity: str | None, settings: StoreSettings) -> TlsSettings:
    if identity is None:
        return settings_for(uri)
    return settings_for(uri, credentials_of(identity, settings.objects, settings.secrets))


def _seconds(options: OptionBag, key: str) -> int:
    value = options.take(key)
    seconds = 0 if value is None else number(value, key)
    if seconds > LONGEST_DELAY:
        raise InvalidRequestError(f"{options.owner}: {key} is at most {LONGEST_DELAY} seconds")
    return seconds


def _connections(options: OptionBag) -> int:
    value = options.take("connections")
    count = DEFAULT_CONNECTIONS if value is None else number(value, "connections")
    if not 1 <= count <= MAX_CONNECTIONS:
        raise InvalidRequestError(f"{options.owner}: 'connections' is from 1 to {MAX_CONNECTIONS}")
    return count


PROTOCOL = NbdProtocol()
