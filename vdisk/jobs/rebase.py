"""rebase: give an overlay another backing file, its disk unchanged.

Where the overlay holds nothing itself, the old and the new backing chain are compared, and what
differs is copied into the overlay; then its header names the new backing file::

    overlay         |  X  |  .  |  .  |  .  |        . = not allocated, the next layer shows
    old chain       |  A  |  B  |  C  |  .  |
    new chain       |  A  |  B  |  D  |  E  |
    overlay then    |  X  |  .  |  C  | zero|

The data are written and flushed before the header, so that the disk is the same at every moment.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vdisk.block import Extent, Kind
from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.jobs.encoding import Different
from vdisk.jobs.engine import CopySettings, Totals, run
from vdisk.jobs.plan import Action, plan
from vdisk.jobs.progress import Progress
from vdisk.jobs.sources import Sources, files_under, padded_map, pairs
from vdisk.opening import Backing, open_image
from vdisk.opening.names import relative_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.jobs.progress import ProgressCallback
    from vdisk.options import Secrets


class RebaseResult(NamedTuple):
    """Bytes that had to be written to the overlay, as data and as zeroes."""

    copied: int
    zeroed: int


def rebase(
    name: str | os.PathLike[str] | Mapping[str, Any],
    new_backing: str | None,
    *,
    format: str | None = None,
    backing_format: str | None = None,
    unsafe: bool = False,
    cache: str = "writeback",
    source_cache: str = "writeback",
    secrets: Secrets | None = None,
    warn: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> RebaseResult:
    """Make ``new_backing`` (relative to the image; None or "": none) the backing file of ``name``.

    ``unsafe``: change the header only, when the caller knows that both hold the same, or moved
    the old one.  ``source_cache``: how the new backing file is opened.
    Raises :class:`VdiskError`; the disk in the image is then as it was.
    """
    if new_backing and backing_format is None:
        raise InvalidRequestError(
            "backing format must be specified: name it with -F (backing_format), "
            "so that nobody has to guess it"
        )
    with ExitStack() as stack:
        device = stack.enter_context(
            open_image(
                name,
                readonly=False,
                format=format,
                cache=cache,
                backing=Backing.LEAVE if unsafe else Backing.FOLLOW,
                secrets=secrets,
                warn=warn,
            )
        )
        image = _overlay(device)
        totals = Totals(0, 0)
        if not unsafe:
            below = None
            if new_backing:
                below = stack.enter_context(
                    open_image(
                        _beside(image, new_backing),
                        format=backing_format,
                        cache=source_cache,
                        secrets=secrets,
                        warn=warn,
                    )
                )
            totals = _keep_content(image, below, progress)
            image.flush()
        image.change_backing(new_backing or None, backing_format if new_backing else None)
        return RebaseResult(totals.copied, totals.zeroed)


def _overlay(device: BlockDevice) -> Qcow2Image:
    if not hasattr(device, "change_backing"):
        raise UnsupportedFeatureError(
            "images of this format have no backing file (qcow2 has)", path=device.name
        )
    return cast("Qcow2Image", device)


def _beside(image: BlockDevice, name: str) -> str:
    """``name`` as the image means it, that is, relative to the image's own directory."""
    file = next(files_under(image), None)
    return relative_to(None if file is None else os.path.dirname(file.name), name)


def _keep_content(
    image: Qcow2Image, below: BlockDevice | None, progress: ProgressCallback | None
) -> Totals:
    """Copy into ``image`` what reads otherwise in the new backing chain ``below``."""
    meter = Progress(image.size, progress)
    unit = image.subcluster_size
    settings = CopySettings(encode=Different(below, unit))
    with image.backing_about_to_change():
        totals = run(plan(what_to_keep(image, below), unit), image, settings, meter)
    meter.finish()
    return totals


def what_to_keep(
    image: BlockDevice, below: BlockDevice | None, start: int = 0, end: int | None = None
) -> Iterator[tuple[Extent, Action]]:
    """Copy, if it differs, what the overlay does not hold and may read otherwise below."""
    same = Sources().same
    end = image.size if end is None else end
    hole = [Extent(start, end - start, Kind.HOLE)]
    new = hole if below is None else padded_map(below, start, end)
    for old, other in pairs(image.map(start, end - start), new):
        held = old.depth == 0 and old.kind is not Kind.HOLE
        yield old, Action.SKIP if held or same(old, other) else Action.COPY
