"""Copy to and from NBD servers, files and pipes, as nbdcopy does.

SOURCE and DESTINATION are NBD URIs, files, devices, pipes, "-" for stdin or stdout, or
"[ CMD ARG… ]": a server that is started for the purpose (write "--" before it, for its options).
DESTINATION may be "null:", which forgets everything.

Examples:
  vdisk-nbd copy -p nbd://example.com/disk disk.img
  vdisk-nbd copy nbd://one/disk nbd://other/disk
  vdisk-nbd copy -- [ qemu-nbd -r -f qcow2 disk.qcow2 ] - | sha256sum
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from vdisk.block import BlockDevice, Extent, Kind
from vdisk.cli.options import complain
from vdisk.errors import DeviceError, InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence

    from vdisk.cli.options import Parser
    from vdisk.jobs.copying import CopyOptions
    from vdisk.jobs.progress import ProgressCallback
    from vdisk.nbd.uri import NbdUri
    from vdisk.stores._nbd.tls import TlsSettings
    from vdisk.stores.nbd import NbdSettings

LARGEST_REQUEST = 32 << 20
"""Bytes: what every server takes."""

LARGEST_RANGE = 128 << 20
"""Bytes zeroed by one request, and between multiples of it, as nbdcopy does: some servers write
every byte of them, and a larger request would be long without a sign of life."""


def configure(parser: Parser) -> None:
    from vdisk.cli._nbd._exports import add_credentials

    parser.add_argument(
        "--allocated", action="store_true", help="write zeroes instead of leaving holes"
    )
    parser.add_argument(
        "--destination-is-zero",
        "--target-is-zero",
        action="store_true",
        help="the destination reads as zeroes: skip those of the source",
    )
    parser.add_argument("--flush", action="store_true", help="flush the destination at the end")
    parser.add_argument(
        "--no-extents", action="store_true", help="read everything, whatever the source calls zero"
    )
    parser.add_argument(
        "-S",
        "--sparse",
        default="4096",
        metavar="N",
        help="zeroes in a row that become a hole (default 4096); 0: only what is one already",
    )
    _add_parallelism(parser)
    parser.add_argument("-p", "--progress", action="store_true", help="show progress")
    parser.add_argument(
        "--progress-fd", type=int, metavar="FD", help="write N/100 lines to this descriptor"
    )
    parser.with_value("--progress", "--progress-fd")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is done, and how")
    add_credentials(parser)
    parser.take_rest("endpoints", "SOURCE DESTINATION", help="from and to")


def _add_parallelism(parser: Parser) -> None:
    parser.add_argument(
        "-C", "--connections", type=int, default=4, metavar="N", help="connections to a server"
    )
    parser.add_argument(
        "-R", "--requests", type=int, default=64, metavar="N", help="requests in each at a time"
    )
    parser.add_argument(
        "-T", "--threads", type=int, default=0, metavar="N", help="threads; 0: as many as help"
    )
    parser.add_argument(
        "--request-size", default="1M", metavar="N", help="bytes of a request (default 1M)"
    )
    parser.add_argument(
        "--queue-size", default="16M", metavar="N", help="bytes under way at a time (default 16M)"
    )
    parser.add_argument(
        "--synchronous", action="store_true", help="one thread, one request at a time, in order"
    )


class _Plan(NamedTuple):
    """How to copy, as the options say.

    ``flush``: the destination is stable in the end.  ``place_of``: where an NBD server is, and
    how to use TLS there.
    """

    copying: CopyOptions
    nbd: NbdSettings
    flush: bool
    place_of: Callable[[str], tuple[NbdUri, TlsSettings]]


def run(args: Namespace) -> int:
    source, destination = _endpoints(args.endpoints)
    plan = _plan(args)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(_progress(args))
        source = stack.enter_context(_started(source))
        destination = stack.enter_context(_started(destination))
        stream = _stream_of(source[0], stack)
        if stream is not None:
            target = stack.enter_context(_open_target(destination[0], None, plan))
            if args.verbose:
                _describe(source[0], None, target, plan)
            _copy_stream(stream, target)
        else:
            disk = stack.enter_context(_open_source(source[0], plan))
            target = stack.enter_context(_open_target(destination[0], disk.size, plan))
            if args.verbose:
                _describe(source[0], disk, target, plan)
            view = _WithoutExtents(disk) if args.no_extents else _ReadableAnyway(disk)
            _copy(view, target, plan, progress)
        if args.flush:
            target.flush()
    return 0


# -- what the options mean -------------------------------------------------------------------


def _plan(args: Namespace) -> _Plan:
    from vdisk.cli._nbd._exports import place_of
    from vdisk.jobs.copying import CopyOptions, Zeroes
    from vdisk.jobs.engine import BATCH_SIZE
    from vdisk.jobs.parallel import MAX_WORKERS
    from vdisk.stores._nbd.pool import MAX_CONNECTIONS, PoolSettings
    from vdisk.stores.nbd import NbdSettings

    request_size = parse_size(args.request_size, what="--request-size")
    queue_size = parse_size(args.queue_size, what="--queue-size")
    sparse_size = parse_size(args.sparse, what="--sparse")
    if not 1 <= args.connections <= MAX_CONNECTIONS:
        raise InvalidRequestError(f"--connections is between 1 and {MAX_CONNECTIONS}")
    if args.requests < 1 or args.threads < 0:
        raise InvalidRequestError("--requests is at least 1, and --threads not negative")
    if not 4096 <= request_size <= LARGEST_REQUEST:
        raise InvalidRequestError(f"--request-size is between 4096 and {LARGEST_REQUEST}")
    batch_size = max(BATCH_SIZE, request_size)
    workers = min(args.threads or max(queue_size // batch_size // 2, 1), MAX_WORKERS)
    connections, requests = args.connections, args.requests
    if args.synchronous:
        workers = connections = requests = 1
    copying = CopyOptions(
        sparse_size=0 if args.allocated else sparse_size,
        zeroes=Zeroes.ALLOCATED if args.allocated else Zeroes.HOLES,
        target_is_zero=args.destination_is_zero,
        workers=workers,
        out_of_order=not args.synchronous,
        batch_size=batch_size,
    )
    pool = PoolSettings(connections=connections, depth=requests)
    nbd = NbdSettings(
        pool,
        request_size=request_size,
        range_size=LARGEST_RANGE,
        ignore_flush=not args.flush,
    )
    return _Plan(copying, nbd, args.flush, functools.partial(place_of, args))


def _endpoints(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The two endpoints, each one word or those between brackets (with the bracket)."""
    found: list[list[str]] = []
    rest = list(words)
    while rest:
        if rest[0] == "[" and "]" in rest:
            end = rest.index("]")
            found.append(rest[:end])
            rest = rest[end + 1 :]
        else:
            found.append([rest.pop(0)])
    if len(found) != 2:
        raise InvalidRequestError("copy takes two arguments: SOURCE and DESTINATION")
    if found[0] == ["null:"]:
        raise InvalidRequestError("null: can only be the destination")
    return found[0], found[1]


@contextlib.contextmanager
def _started(words: list[str]) -> Iterator[list[str]]:
    """An endpoint in one word: the server of one in brackets is started, and ended."""
    if words[0] != "[":
        yield words
        return
    from vdisk.cli._nbd._activation import served

    with served(words[1:]) as uri:
        yield [uri]


def _describe(name: str, source: BlockDevice | None, target: BlockDevice, plan: _Plan) -> None:
    """For --verbose: from what to what, and how."""
    from vdisk.cli._nbd._exports import short_size
    from vdisk.stores.sinks import Sink

    known = source is not None, not isinstance(target, Sink)
    for side, device, has_size in zip(("src", "dst"), (source, target), known, strict=True):
        complain(f"{side}: {device.name if device is not None else name}")
        if device is not None and has_size:
            complain(f"{side}: size={device.size} ({short_size(device.size)})")
    pool = plan.nbd.pool
    complain(
        f"connections={pool.connections} requests={pool.depth} threads={plan.copying.workers} "
        f"request_size={plan.nbd.request_size} flush={str(plan.flush).lower()} "
        f"in_order={str(not plan.copying.out_of_order).lower()}"
    )


@contextlib.contextmanager
def _progress(args: Namespace) -> Iterator[ProgressCallback]:
    from vdisk.cli.output import Progress

    if args.progress_fd is None:
        with Progress(args.progress) as progress:
            yield progress
        return

    def tell(done: int, total: int) -> None:
        os.write(args.progress_fd, b"%d/100\n" % (100 * done // total if total else 100))

    yield tell


# -- opening ---------------------------------------------------------------------------------


def _is_nbd(name: str) -> bool:
    from vdisk.opening.names import protocol_of
    from vdisk.stores import protocol_for_scheme

    scheme = protocol_of(name)
    return scheme is not None and scheme != "file" and protocol_for_scheme(scheme) is not None


def _open_nbd(name: str, plan: _Plan, *, readonly: bool) -> BlockDevice:
    from vdisk.stores.nbd import NbdStore

    uri, tls = plan.place_of(name)
    return NbdStore(uri, readonly=readonly, settings=plan.nbd, tls=tls)


def _stream_of(name: str, stack: contextlib.ExitStack) -> int | None:
    """The descriptor of a source that can only be read from its start to its end."""
    if name == "-":
        return sys.stdin.fileno()
    if not _is_stream(name):
        return None
    return stack.enter_context(open(name, "rb", buffering=0)).fileno()


def _is_stream(name: str) -> bool:
    """Whether there is a pipe or a character device of that name."""
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _open_source(name: str, plan: _Plan) -> BlockDevice:
    if _is_nbd(name):
        return _open_nbd(name, plan, readonly=True)
    from vdisk.stores.file import FileStore

    return FileStore(name)


def _open_target(name: str, size: int | None, plan: _Plan) -> BlockDevice:
    """The destination; ``size``: bytes it must hold, where that is known."""
    from vdisk.stores.file import FileStore
    from vdisk.stores.sinks import NullSink, PipeSink

    if name == "-":
        return PipeSink(sys.stdout.fileno(), "stdout")
    if name == "null:":
        return NullSink()
    if _is_stream(name):
        return PipeSink(os.open(name, os.O_WRONLY | os.O_CLOEXEC), name, close=True)
    if _is_nbd(name):
        target = _open_nbd(name, plan, readonly=False)
    else:
        device = os.path.exists(name) and not os.path.isfile(name)
        target = FileStore(name, readonly=False, create=not device, ignore_flush=not plan.flush)
    try:
        if size is not None and target.growable:
            target.truncate(size)
        elif size is not None and target.size < size:
            raise InvalidRequestError(
                f"the destination holds {target.size} bytes, and the source has {size}",
                path=target.name,
            )
    except BaseException:
        target.close()
        raise
    return target


# -- copying ---------------------------------------------------------------------------------


def _copy(
    source: BlockDevice, target: BlockDevice, plan: _Plan, progress: ProgressCallback
) -> None:
    from vdisk.jobs.copying import Zeroes, copy_disk
    from vdisk.stores.sinks import NullSink, PipeSink

    copying = plan.copying
    if isinstance(target, PipeSink):  # in order, and no holes
        copying = copying._replace(
            sparse_size=0, zeroes=Zeroes.DATA, target_is_zero=False, out_of_order=False
        )
    elif isinstance(target, NullSink) or getattr(target, "is_block_device", None) is False:
        copying = copying._replace(target_is_zero=True)  # it was made a moment ago
    copy_disk(source, target, copying, progress)


def _copy_stream(descriptor: int, target: BlockDevice) -> None:
    """Bytes as they come, until there are no more."""
    buffer = memoryview(bytearray(1 << 20))
    position = 0
    while True:
        filled = 0
        while filled < len(buffer):
            count = os.readv(descriptor, [buffer[filled:]])
            if not count:
                break
            filled += count
        target.write(position, buffer[:filled])
        position += filled
        if filled < len(buffer):
            return


class _WithoutExtents(BlockDevice):
    """A source that says that all of it is data."""

    def __init__(self, inner: BlockDevice) -> None:
        self.name, self._inner = inner.name, inner

    @property
    def size(self) -> int:
        return self._inner.size

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._inner.read_into(offset, view)


class _ReadableAnyway(_WithoutExtents):
    """A source of which all is data from where its server fails to tell the extents."""

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        end = start + length
        try:
            for extent in self._inner.map(start, length):
                yield extent
                start = extent.end
        except DeviceError:  # reading tells whether the server is gone
            yield Extent(start, end - start, Kind.DATA, self._inner, start)
