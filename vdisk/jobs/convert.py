"""convert: the disk in one image, or in several, in a new image or in one that exists.

What the map calls zero is not read, and not written to a target that is zero by itself; what it
calls data is looked at for zeroes, so that an image full of written zeroes becomes a sparse one.
Names, opening and making are dealt with here; :mod:`vdisk.jobs.copying` says what is copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.filters.concat import Concatenation
from vdisk.jobs.bitmaps import copy_bitmaps, copyable_bitmaps
from vdisk.jobs.copying import SECTOR, SPARSE_SIZE, CopyOptions, Zeroes, copy_disk
from vdisk.jobs.parallel import MAX_WORKERS
from vdisk.jobs.sources import snapshot_of
from vdisk.jobs.target import TargetSettings, opened_target
from vdisk.opening import Backing, open_image
from vdisk.units import round_down

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vdisk.block import BlockDevice
    from vdisk.formats._qcow2.bitmaps import BitmapInfo
    from vdisk.jobs.progress import ProgressCallback
    from vdisk.options import Secrets

    Name = str | os.PathLike[str] | Mapping[str, Any]


class ConvertResult(NamedTuple):
    """What was done.

    ``size``: of the disk.  ``copied``, ``zeroed``: bytes written as data and as zeroes.
    ``bitmaps``: the names of those that were copied.
    """

    size: int
    copied: int
    zeroed: int
    bitmaps: tuple[str, ...] = ()


def convert(
    sources: Name | Sequence[Name],
    target: Name,
    *,
    format: str | None = None,
    snapshot: str | None = None,
    source_cache: str = "writeback",
    force_share: bool = False,
    backing: Backing = Backing.FOLLOW,
    target_format: str | None = "raw",
    options: Mapping[str, Any] | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    target_exists: bool = False,
    target_is_zero: bool = False,
    target_cache: str = "unsafe",
    sparse_size: int = SPARSE_SIZE,
    compress: bool = False,
    copy_offload: bool = False,
    workers: int | None = None,
    out_of_order: bool = False,
    rate_limit: int | None = None,
    salvage: bool = False,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    secrets: Secrets | None = None,
    warn: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> ConvertResult:
    """Copy the disk in ``sources``: one name, or several whose disks follow one another.

    What is read: ``format`` (None guesses it), ``snapshot`` (id or name of an internal one), and
    ``source_cache``, ``force_share``, ``backing`` as :func:`vdisk.opening.open_image` has them.

    What is written: an image of ``target_format`` made with creation ``options``, perhaps over
    ``backing_file`` (then only what the source's top layer holds is copied); or, if
    ``target_exists``, an image that is there, of which ``target_is_zero`` says that it reads as
    zeroes.  ``target_cache`` "unsafe": the system may write it to its disk when it likes.

    How: ``sparse_size`` (zeroes in a row that become a hole; 0 allocates everything),
    ``compress``, ``copy_offload`` (let the system copy, without looking for zeroes),
    ``workers`` (threads), ``out_of_order`` (they write as they come), ``rate_limit`` (bytes a
    second), ``salvage`` (zeroes for what cannot be read), ``bitmaps`` (persistent bitmaps too)
    and ``skip_broken_bitmaps`` (but not those that were not closed properly).

    ``progress`` is told of bytes of data, those copied and all that are to be.  A file made here
    is removed when the copy fails or ``progress`` cancels it.
    """
    tell = warn or _ignore
    made_with = _creation_options(options, backing_file, backing_format)
    copying = CopyOptions(
        sparse_size=round_down(sparse_size, SECTOR),
        zeroes=Zeroes.HOLES if sparse_size >= SECTOR else Zeroes.DATA,
        over_backing=made_with.get("backing_file") is not None,
        target_is_zero=True if target_is_zero else None,
        compress=compress,
        offload=copy_offload,
        workers=workers,
        out_of_order=out_of_order,
        rate_limit=rate_limit,
        salvage=tell if salvage else None,
    )
    _check(copying, target_exists)
    place = TargetSettings(
        _plain(target), target_format, made_with, target_exists, target_cache, secrets, tell
    )
    access = {"cache": source_cache, "force_share": force_share, "backing": backing}
    with _opened(sources, format=format, secrets=secrets, warn=tell, **access) as images:
        chosen = _choose_bitmaps(images, skip_broken_bitmaps, tell) if bitmaps else []
        return _copy(images, _one_disk(images, snapshot, copying), chosen, place, copying, progress)


def _creation_options(
    options: Mapping[str, Any] | None, backing_file: str | None, backing_format: str | None
) -> dict[str, Any]:
    """The options a target is made with, the backing file among them."""
    made_with = dict(options or {})
    if backing_file is not None:
        made_with["backing_file"] = backing_file
        if backing_format is not None:
            made_with["backing_fmt"] = backing_format
    return made_with


def _plain(name: Name) -> str | Mapping[str, Any]:
    return os.fspath(name) if isinstance(name, os.PathLike) else name


@contextmanager
def _opened(sources: Name | Sequence[Name], **how: Any) -> Iterator[list[BlockDevice]]:
    """The images to be read."""
    names = [sources] if isinstance(sources, (str, os.PathLike, Mapping)) else sources
    with ExitStack() as stack:
        yield [stack.enter_context(open_image(name, **how)) for name in names]


def _copy(
    images: Sequence[BlockDevice],
    disk: BlockDevice,
    bitmaps: list[BitmapInfo],
    place: TargetSettings,
    copying: CopyOptions,
    progress: ProgressCallback | None,
) -> ConvertResult:
    """Make or open the target, and copy the disk of the ``images`` into it."""
    copying = copying._replace(count_copied=progress is not None)
    if place.made_zero:
        copying = copying._replace(target_is_zero=True)
    with opened_target(place, disk.size, images) as image:
        totals = copy_disk(disk, image, copying, progress)
        if bitmaps:
            copy_bitmaps(images[0], bitmaps, image)
    names = tuple(bitmap.name for bitmap in bitmaps)
    return ConvertResult(disk.size, totals.copied, totals.zeroed, names)


def _check(copying: CopyOptions, target_exists: bool) -> None:
    """Refuse what contradicts itself, before anything is opened."""
    if copying.target_is_zero and not target_exists:
        raise InvalidRequestError(
            "--target-is-zero is about a target that exists: it needs -n (target_exists)"
        )
    if copying.target_is_zero and copying.over_backing:
        raise InvalidRequestError("a target with a backing file does not read as zeroes")
    if copying.workers is not None and not 1 <= copying.workers <= MAX_WORKERS:
        raise InvalidRequestError(f"the number of workers (-m) is between 1 and {MAX_WORKERS}")
    if copying.compress and copying.out_of_order:
        raise InvalidRequestError("compressed clusters are written in order: leave -W or -c out")
    if copying.compress and copying.offload:
        raise InvalidRequestError("the system cannot compress while copying: leave -C or -c out")


def _one_disk(
    images: Sequence[BlockDevice], snapshot: str | None, copying: CopyOptions
) -> BlockDevice:
    """The disk to be copied: the image's, its snapshot's, or that of several in a row."""
    if not images:
        raise InvalidRequestError("there is no image to convert")
    if len(images) > 1:
        if snapshot is not None:
            raise InvalidRequestError("a snapshot (-l) is of one image, and there are several")
        if copying.over_backing:
            raise InvalidRequestError(
                "Having a backing file for the target makes no sense when concatenating multiple "
                "input images"
            )
        return Concatenation(images)
    if snapshot is None:
        return images[0]
    return snapshot_of(images[0], snapshot)


def _choose_bitmaps(
    images: Sequence[BlockDevice], skip_broken: bool, warn: Callable[[str], None]
) -> list[BitmapInfo]:
    if len(images) > 1:
        raise InvalidRequestError("bitmaps are copied from one image, and there are several")
    return copyable_bitmaps(images[0], skip_broken=skip_broken, warn=warn)


def _ignore(_message: str) -> None:
    """The warnings of a caller that did not ask for them."""
