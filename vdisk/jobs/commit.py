"""commit: write what an overlay holds into an image below it.

    top       |  DATA  |  .  |  ZERO  |  .  |        . = not allocated, the next layer shows
    base      |  old   | old |  old   | old |
    base then |  DATA  | old |  zero  | old |

The base is written and flushed first, and only then is the top emptied, so that the disk in the
top is the same at every moment, whatever stops the job.  Images *between* the top and a deeper
base are not valid afterwards: their backing file has changed under them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError, NotFoundError, UnsupportedFeatureError
from vdisk.jobs.engine import CopySettings, run
from vdisk.jobs.plan import Action, plan
from vdisk.jobs.progress import Progress
from vdisk.opening import open_image
from vdisk.opening.names import relative_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vdisk.block import BlockDevice, Extent
    from vdisk.jobs.progress import ProgressCallback
    from vdisk.options import Secrets

_SECTOR = 512


class CommitResult(NamedTuple):
    """``base``: the name of the image written.  ``copied``, ``zeroed``: bytes written to it.
    ``emptied``: whether the top was emptied afterwards."""

    base: str
    copied: int
    zeroed: int
    emptied: bool


def commit(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    base: str | None = None,
    format: str | None = None,
    empty: bool = True,
    rate_limit: int | None = None,
    cache: str = "writeback",
    secrets: Secrets | None = None,
    warn: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> CommitResult:
    """Write the changes in the image ``name`` into its backing file, or into ``base`` below that.

    ``empty``: empty the image afterwards, since its backing file now holds the same; never done
    where a ``base`` is named: if it is not the backing file itself, only the image shows its
    changes.
    Raises :class:`VdiskError`; the disk in the image is then as it was.
    """
    depth = 1 if base is None else _depth_of(base, name, format, secrets)
    empty = empty and base is None
    with open_image(
        name,
        format=format,
        readonly=not empty,
        cache=cache,
        secrets=secrets,
        writable_backing=depth,
        warn=warn,
    ) as top:
        target = layer_below(top, depth)
        if target.size < top.size:
            target.truncate(top.size)
        meter = Progress(top.size, progress)
        settings = CopySettings(rate_limit=rate_limit)
        totals = run(plan(_decide(top, depth), _SECTOR), target, settings, meter)
        target.flush()
        if empty:
            _empty(top)
        meter.finish()
        return CommitResult(target.name, totals.copied, totals.zeroed, empty)


def _decide(top: BlockDevice, depth: int) -> Iterator[tuple[Extent, Action]]:
    """Everything that a layer above the base says goes into the base."""
    for extent in top.map():
        if extent.depth >= depth:
            yield extent, Action.SKIP
        else:
            yield extent, Action.ZERO if extent.reads_zero else Action.COPY


def layer_below(top: BlockDevice, depth: int) -> BlockDevice:
    """The image ``depth`` backing files down."""
    layer = top
    for _ in range(depth):
        if layer.backing is None:
            raise InvalidRequestError(
                "the image has no backing file to commit into", path=layer.name
            )
        layer = layer.backing
    return layer


def _depth_of(
    base: str,
    name: str | os.PathLike[str] | Mapping[str, Any],
    format: str | None,
    secrets: Secrets | None,
) -> int:
    """How many backing files down the image called ``base`` is."""
    with open_image(name, format=format, secrets=secrets) as top:
        return depth_in_chain(top, base)


def depth_in_chain(top: BlockDevice, name: str) -> int:
    """How many backing files below ``top`` the image called ``name`` is, 1 at least.

    A relative name is looked for here and beside the image that refers to it.
    """
    depth, above, layer = 1, top, top.backing
    while layer is not None:
        if is_named(layer, name) or is_named(layer, relative_to(os.path.dirname(above.name), name)):
            return depth
        depth, above, layer = depth + 1, layer, layer.backing
    raise NotFoundError(f"Did not find {name!r} in the backing chain", path=top.name)


def length_of_chain(top: BlockDevice) -> int:
    """How many backing files there are below ``top``; raises where there is none."""
    depth, layer = 0, top.backing
    while layer is not None:
        depth, layer = depth + 1, layer.backing
    if not depth:
        raise InvalidRequestError("the image has no backing file", path=top.name)
    return depth


def is_named(device: BlockDevice, name: str) -> bool:
    """Whether ``name`` leads to the file that ``device`` is."""
    if device.name == name:
        return True
    try:
        return os.path.samefile(device.name, name)
    except (OSError, ValueError):  # one of the two is not a file
        return False


def _empty(top: BlockDevice) -> None:
    if not hasattr(top, "unallocate"):
        raise UnsupportedFeatureError("this format cannot be emptied", path=top.name)
    top.unallocate()
    top.flush()
