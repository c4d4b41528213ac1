"""Measure how fast an NBD server answers.

Reads (or writes: what is on the export is overwritten) blocks at random offsets, many at a time,
for some seconds.  The client's own cost is shown too: where it comes near the time that passed,
it is the client that was measured.

Examples:
  vdisk-nbd bench -d 1 nbd://example.com/disk
  vdisk-nbd bench -b 1M -d 4 --sequential --json nbd://example.com/disk
  vdisk-nbd bench --write -C 4 -d 32 nbd://example.com/scratch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser
    from vdisk.jobs.nbd_load import Load, LoadResult


def configure(parser: Parser) -> None:
    parser.add_argument("-b", "--block-size", default="4k", metavar="N", help="bytes (default 4k)")
    parser.add_argument(
        "-d", "--depth", type=int, default=32, metavar="N", help="requests at a time (default 32)"
    )
    parser.add_argument(
        "-C", "--connections", type=int, default=1, metavar="N", help="with as many each (1)"
    )
    parser.add_argument(
        "-s", "--seconds", type=float, default=5.0, metavar="N", help="how long (default 5)"
    )
    parser.add_argument("--write", action="store_true", help="write, and lose what was there")
    parser.add_argument("--sequential", action="store_true", help="one block after the other")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("uri", help="the export")


def run(args: Namespace) -> int:
    from vdisk.cli._nbd._exports import plain_server
    from vdisk.jobs.nbd_load import Load, run_load

    server = plain_server(args.uri, "bench measures plain connections")
    load = Load(
        block_size=parse_size(args.block_size, what="--block-size"),
        depth=args.depth,
        connections=args.connections,
        seconds=args.seconds,
        write=args.write,
        sequential=args.sequential,
    )
    result = run_load(server, load)
    if args.json:
        import json

        print(json.dumps(_fields(load, result), indent=4))
    else:
        _show(result)
    return 0


def _fields(load: Load, result: LoadResult) -> dict[str, object]:
    return {
        "operation": "write" if load.write else "read",
        "order": "sequential" if load.sequential else "random",
        "block-size": load.block_size,
        "depth": load.depth,
        "connections": load.connections,
        "requests": result.requests,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 6),
        "requests-per-second": round(result.requests / result.seconds, 1),
        "bytes-per-second": round(result.bytes / result.seconds),
        "client-cpu-seconds": round(result.cpu, 6),
        "latency-microseconds": {
            "p50": round(result.percentile(0.5) * 1e6, 1),
            "p90": round(result.percentile(0.9) * 1e6, 1),
            "p99": round(result.percentile(0.99) * 1e6, 1),
            "p100": round(result.percentile(1.0) * 1e6, 1),
        },
    }


def _show(result: LoadResult) -> None:
    from vdisk.units import format_size

    rate, bandwidth = result.requests / result.seconds, result.bytes / result.seconds
    print(f"{rate:.0f} requests/s, {format_size(round(bandwidth))}/s")
    shares = ", ".join(
        f"{share:.0%} {result.percentile(share) * 1e6:.0f} µs" for share in (0.5, 0.9, 0.99, 1.0)
    )
    print(f"latency: {shares}")
    print(f"client: {result.cpu:.2f} s of CPU in {result.seconds:.2f} s")
