"""Serve images to NBD clients.

Examples:
  vdisk-nbd serve disk.qcow2                       on localhost, port 10809
  vdisk-nbd serve -k /run/disk.sock -x disk -r disk.qcow2
  vdisk-nbd serve -b '*' --tls-certificates /etc/pki/nbd *.qcow2
  vdisk-nbd serve /var/lib/images                  every image in a directory, by name

The letters are those of qemu-nbd.  Unlike it, this server goes on when the last client has left
(--one-shot ends it then), lets in any number of clients (-e limits them), and listens on
localhost unless told otherwise (-b).  SIGTERM and SIGINT end it: requests in flight are
answered, everything is flushed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vdisk.cli._nbd import _daemon, _options
from vdisk.cli.options import secrets
from vdisk.errors import InvalidRequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from vdisk.cli.options import Parser
    from vdisk.nbd_server import Server

log = logging.getLogger("vdisk.nbd_server")


def configure(parser: Parser) -> None:
    _options.add_images(parser)
    _options.add_listening(parser)
    _options.add_exports(parser)
    _options.add_writing(parser)
    _options.add_access(parser)
    _options.add_running(parser)
    _options.add_elsewhere(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image, or directory of images")


def run(args: argparse.Namespace) -> int:
    if args.list:
        from vdisk.cli._nbd._listing import list_exports

        return list_exports(args)
    limits = _options.parse_limits(args.limit)
    if not args.images:
        raise InvalidRequestError("name at least one image")
    if args.persistent and args.one_shot:
        raise InvalidRequestError("-t goes on and --one-shot ends: give one of them")
    ready = _daemon.fork() if args.fork else _do_nothing
    from vdisk.cli._nbd import _offer, _tls
    from vdisk.nbd_server import Server

    _start_log(args)
    objects = secrets(args, _tls.AUTHORIZATIONS)
    tls, rules = _tls.tls_settings(args, objects), _tls.access_rules(args, objects)
    with ExitStack() as stack:
        offer = _offer.Offer(args, objects, stack)
        offer.add(args.images)
        server = Server(
            offer.exports,
            sources=offer.sources,
            default=args.default,
            tls=tls,
            allow=rules,
            limits=limits,
            shared=args.shared,
        )
        asyncio.run(_serve(server, args, ready))
    return 0


def _do_nothing() -> None:
    """A server in the foreground need not tell that it is ready."""


def _start_log(args: argparse.Namespace) -> None:
    level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    try:
        logging.basicConfig(
            filename=args.log_file,
            level=logging.WARNING,
            format="%(asctime)s vdisk-nbd: %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
        )
    except OSError as error:
        raise InvalidRequestError(f"--log-file {args.log_file}: {error.strerror}") from error
    log.setLevel(level)


async def _serve(server: Server, args: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Run ``server`` until a signal, or its last client, ends it."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    from vdisk.nbd_serving.listeners import labelled_sockets

    async with server:
        with ExitStack() as stack:
            with labelled_sockets(args.selinux_label):
                await _listen(server, args)
            if args.metrics:
                stack.callback(_serve_metrics(server, args.metrics))
            stack.enter_context(_daemon.pid_file(args.pid_file))
            ready()
            if args.one_shot:
                server.on_last_client = stop.set
            await stop.wait()
            log.info("ending: %d clients are connected", len(server.clients))


async def _listen(server: Server, args: argparse.Namespace) -> None:
    from vdisk.nbd.wire import NBD_DEFAULT_PORT
    from vdisk.nbd_serving.listeners import systemd_sockets

    handed_over = systemd_sockets(os.environ)
    server.listen_on(handed_over)
    for path in args.socket:
        await server.listen_unix(path)
    for port in args.vsock:
        await server.listen_vsock(port)
    tcp = args.bind is not None or args.port is not None
    if tcp or not (handed_over or args.socket or args.vsock):
        port = NBD_DEFAULT_PORT if args.port is None else args.port
        for host in args.bind or ["localhost"]:
            await server.listen_tcp(None if host == "*" else host, port)
    for uri in server.uris:
        log.info("listening on %s", uri)


def _serve_metrics(server: Server, place: str) -> Callable[[], None]:
    """Start the metrics at ``HOST:PORT``; what ends them."""
    from vdisk.nbd_serving.metrics import serve_metrics

    host, colon, port = place.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise InvalidRequestError(f"--metrics takes HOST:PORT, not {place!r}")
    number, stop = serve_metrics(server, host.strip("[]"), int(port))
    log.info("metrics are at http://%s:%d/metrics", host, number)
    return stop
