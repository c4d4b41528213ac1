"""Measure how fast an image is read, or written (-w, which overwrites the disk).

Examples:
  vdisk bench -c 10000 -d 16 -s 64k disk.qcow2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.cli.options import add_cache, add_quiet, add_source, open_source
from vdisk.errors import InvalidRequestError
from vdisk.units import parse_size

if TYPE_CHECKING:
    from argparse import Namespace

    from vdisk.cli.options import Parser
    from vdisk.jobs.bench import Workload


def configure(parser: Parser) -> None:
    add_source(parser)
    add_cache(parser, "-t")
    add_quiet(parser)
    for flag, name, default, help in (
        ("-c", "requests", "75000", "number of requests (default 75000)"),
        ("-d", "depth", "64", "requests under way at once (default 64)"),
        ("-o", "offset", "0", "where the first request is (default 0)"),
        ("-s", "buffer_size", "4k", "bytes of each request (default 4k)"),
        ("-S", "step", None, "bytes from one request to the next (default: -s)"),
        (
            "--flush-interval",
            "flush_interval",
            "0",
            "flush after so many writes (default 0: never)",
        ),
        ("--pattern", "pattern", "0", "the byte that is written (default 0)"),
    ):
        parser.add_argument(flag, dest=name, default=default, metavar="N", help=help)
    parser.add_argument("-w", dest="write", action="store_true", help="write instead of reading")
    parser.add_argument(
        "--no-drain", action="store_true", help="flush while other requests are under way"
    )
    parser.add_argument(
        "-i",
        dest="aio",
        choices=("threads", "native", "io_uring"),
        help="accepted for qemu-img's scripts: threads do it",
    )
    parser.add_argument("-n", dest="native", action="store_true", help="as -i native")
    parser.add_argument("image", help="the image to measure")


def run(args: Namespace) -> int:
    from vdisk.jobs.bench import bench

    workload = _workload(args)
    with open_source(args, args.image, readonly=not args.write, cache=args.cache) as image:
        step = workload.buffer_size if workload.step is None else workload.step
        print(
            f"Sending {workload.requests} {'write' if args.write else 'read'} requests, "
            f"{workload.buffer_size} bytes each, {workload.depth} in parallel "
            f"(starting at offset {workload.offset}, step size {step})"
        )
        if workload.flush_interval:
            print(f"Sending flush every {workload.flush_interval} requests")
        result = bench(image, workload)
    print(f"Run completed in {result.seconds:.3f} seconds.")
    if not args.quiet and result.seconds:
        rate = result.requests / result.seconds
        print(f"{rate:.0f} requests and {rate * workload.buffer_size / (1 << 20):.1f} MiB a second")
    return 0


def _workload(args: Namespace) -> Workload:
    from vdisk.jobs.bench import Workload

    names = ("requests", "depth", "offset", "buffer_size", "flush_interval")
    numbers: dict[str, Any] = {name: parse_size(getattr(args, name), what=name) for name in names}
    pattern = parse_size(args.pattern, what="--pattern")
    if pattern > 0xFF:
        raise InvalidRequestError("the pattern is one byte, 0 to 255")
    if args.no_drain and not args.flush_interval:
        raise InvalidRequestError("--no-drain is about --flush-interval: give both")
    return Workload(
        **numbers,
        step=None if args.step is None else parse_size(args.step, what="-S"),
        pattern=pattern if args.write else None,
        drain=not args.no_drain,
    )
