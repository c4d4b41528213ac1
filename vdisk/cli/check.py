"""Find errors in an image's tables, and repair them with -r.

Exit status: 0 no errors, or all repaired; 1 the check could not be made; 2 errors; 3 only leaked
clusters (wasted room); 63 the format has no check.

Examples:
  vdisk check disk.qcow2
  vdisk check -r leaks disk.qcow2
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vdisk.cli.options import (
    add_cache,
    add_output,
    add_progress,
    add_quiet,
    add_source,
    complain,
    image_name,
    secrets,
    warn,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vdisk.cli.options import Parser
    from vdisk.formats._qcow2.findings import CheckResult

CORRUPT = 2
LEAKS = 3
NOT_SUPPORTED = 63


def configure(parser: Parser) -> None:
    add_source(parser)
    add_output(parser)
    add_cache(parser, "-T")
    add_progress(parser)
    add_quiet(parser)
    parser.add_argument(
        "-r",
        "--repair",
        choices=("leaks", "all"),
        help="repair leaked clusters only, or everything",
    )
    parser.add_argument("image", help="the image")


def run(args: Namespace) -> int:
    from vdisk.cli.output import Progress, print_json
    from vdisk.jobs.check import NoCheckError, check

    try:
        with Progress(args.progress and not args.quiet) as progress:
            result = check(
                image_name(args, args.image, args.format),
                repair=args.repair,
                format=args.format,
                backing=not args.no_backing,
                cache=args.cache,
                force_share=args.force_share,
                secrets=secrets(args),
                warn=warn,
                progress=progress,
            )
    except NoCheckError as error:
        complain(str(error))
        return NOT_SUPPORTED
    if not args.quiet:
        _tell(result)
    if args.output == "json":
        print_json(_to_json(args, result))
    elif not args.quiet:
        print("\n".join(_report(result)))
    return _status(result)


def _tell(result: CheckResult) -> None:
    """What is wrong, one line each on stderr, as far as it was kept in words."""
    for finding in result.findings:
        sys.stderr.write(f"{finding}\n")
    found = result.corruptions + result.leaks + result.check_errors
    more = found + result.corruptions_fixed + result.leaks_fixed - len(result.findings)
    if result.findings and more > 0:
        sys.stderr.write(f"… and {more} more\n")


def _status(result: CheckResult) -> int:
    if result.check_errors:
        return 1
    if result.corruptions:
        return CORRUPT
    return LEAKS if result.leaks else 0


_ALWAYS = ("check-errors", "image-end-offset", "total-clusters")
"""Counts that the JSON form states even when they are 0."""


def _to_json(args: Namespace, result: CheckResult) -> dict[str, object]:
    """QAPI's ``ImageCheck``."""
    counts = {name.replace("_", "-"): getattr(result, name) for name in _COUNTS}
    shown = {name: count for name, count in counts.items() if count or name in _ALWAYS}
    return {"filename": args.image, "format": "qcow2", **shown}


_COUNTS = (
    "image_end_offset",
    "check_errors",
    "corruptions",
    "leaks",
    "corruptions_fixed",
    "leaks_fixed",
    "total_clusters",
    "allocated_clusters",
    "fragmented_clusters",
    "compressed_clusters",
)


def _report(result: CheckResult) -> Iterator[str]:
    if result.corruptions_fixed or result.leaks_fixed:
        yield "The following inconsistencies were found and repaired:\n"
        yield f"    {result.leaks_fixed} leaked clusters"
        yield f"    {result.corruptions_fixed} corruptions\n"
    if result.corruptions:
        yield f"\n{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield f"\n{result.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    if result.check_errors:
        yield f"\n{result.check_errors} internal errors have occurred during the check."
    if not (result.corruptions or result.leaks or result.check_errors):
        yield "No errors were found on the image."
    if result.total_clusters and result.allocated_clusters:
        yield _usage(result)
    if result.image_end_offset:
        yield f"Image end offset: {result.image_end_offset}"


def _usage(result: CheckResult) -> str:
    allocated = result.allocated_clusters
    return (
        f"{allocated}/{result.total_clusters} = {allocated / result.total_clusters:.2%} allocated, "
        f"{result.fragmented_clusters / allocated:.2%} fragmented, "
        f"{result.compressed_clusters / allocated:.2%} compressed clusters"
    )
