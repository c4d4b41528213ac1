"""dd: copy blocks of one image into a new one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.filters.window import Window
from vdisk.jobs.copying import CopyOptions, copy_disk
from vdisk.jobs.sources import as_device
from vdisk.jobs.target import TargetSettings, opened_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.jobs.progress import ProgressCallback
    from vdisk.jobs.sources import Source
    from vdisk.options import Secrets

MAX_BLOCK_SIZE = (1 << 31) - 1  # qemu-img's


class DdResult(NamedTuple):
    """``size``: of the new disk.  ``past_end``: ``skip`` left nothing of the source."""

    size: int
    past_end: bool


def dd(
    source: Source,
    target: str,
    *,
    block_size: int = 512,
    count: int | None = None,
    skip: int = 0,
    target_format: str = "raw",
    options: Mapping[str, Any] | None = None,
    secrets: Secrets | None = None,
    warn: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> DdResult:
    """Copy ``count`` blocks (None: all) of ``source``, from block number ``skip`` on.

    Holes stay holes.  (With both ``skip`` and ``count``, qemu-img 7.2 copies ``skip`` blocks too
    few; this copies as many as it is told, as dd(1) and later versions do.)
    """
    if not 1 <= block_size <= MAX_BLOCK_SIZE:
        raise InvalidRequestError(f"the block size is between 1 and {MAX_BLOCK_SIZE} bytes")
    with ExitStack() as stack:
        image = stack.enter_context(as_device(source))
        start = min(skip * block_size, image.size)
        length = image.size - start
        if count is not None:
            length = min(count * block_size, length)
        settings = TargetSettings(
            target, target_format, options or {}, secrets=secrets, warn=warn or _ignore
        )
        made = stack.enter_context(opened_target(settings, length, [image]))
        if length:
            copying = CopyOptions(target_is_zero=settings.made_zero)
            copy_disk(Window(image, start, length), made, copying, progress)
        return DdResult(length, skip * block_size > image.size)


def _ignore(_message: str) -> None:
    """The warnings of a caller that did not ask for them."""
