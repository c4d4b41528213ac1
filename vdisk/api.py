"""``vdisk.open``, ``vdisk.create`` and ``vdisk.map``: the doors of the library."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.opening import Backing, open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.jobs.map import MapEntry
    from vdisk.options import Secrets

Name = str | os.PathLike[str]
"""A path, or a name such as ``json:{…}`` or ``nbd://host/export``."""


def open(
    name: Name | Mapping[str, Any],
    mode: Literal["r", "r+"] = "r",
    *,
    format: str | None = None,
    snapshot: str | None = None,
    backing: bool = True,
    cache: str = "writeback",
    force_share: bool = False,
    secrets: Secrets | None = None,
    options: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] | None = None,
) -> BlockDevice:
    """Open an image; use it in a ``with`` statement, or close it.

    ``mode``: "r" to read, "r+" to write as well.  ``format``: None guesses it; an image whose
    format was guessed to be raw does not take a write that would make it look like another
    format.  ``snapshot``: read an internal snapshot, by id or name.  ``backing`` False: an image
    that names a backing or data file is refused.  The others are those of
    :func:`vdisk.opening.open_image`.

    Raises :class:`vdisk.VdiskError` of the kind that fits.
    """
    if mode not in ("r", "r+"):
        raise InvalidRequestError(f"mode is 'r' or 'r+', not {mode!r}")
    if snapshot is not None and mode != "r":
        raise InvalidRequestError("a snapshot can only be read: apply it to write to it")
    image = open_image(
        name,
        readonly=mode == "r",
        format=format,
        cache=cache,
        force_share=force_share,
        backing=Backing.FOLLOW if backing else Backing.REFUSE,
        secrets=secrets,
        options=options,
        warn=warn,
    )
    return image if snapshot is None else _open_snapshot(image, snapshot)


def _open_snapshot(image: BlockDevice, tag: str) -> BlockDevice:
    """The snapshot of ``image`` with this id or name; closing it closes the image."""
    try:
        if getattr(image, "format_name", None) != "qcow2":
            raise UnsupportedFeatureError("only qcow2 images have snapshots", path=image.name)
        view = cast("Qcow2Image", image).open_snapshot(tag)
    except BaseException:
        image.close()
        raise
    view.owns_image = True
    return view


def create(
    name: Name,
    size: int | None = None,
    *,
    format: str = "raw",
    backing_file: str | None = None,
    backing_format: str | None = None,
    options: Mapping[str, Any] | None = None,
    secrets: Secrets | None = None,
) -> None:
    """Make a new image of ``size`` bytes; an old file of that name is replaced.

    ``size`` None: as large as the backing file.  ``backing_file``: relative to the new image,
    with its ``backing_format``.  ``options``: by the names that ``vdisk create -o help`` lists,
    such as ``{"cluster_size": 1 << 20, "compression_type": "zstd"}``.

    Raises :class:`vdisk.InvalidRequestError` for options that cannot work.
    """
    from vdisk.opening.creating import plan_creation

    chosen = dict(options or {})
    if backing_file is not None:
        chosen["backing_file"] = backing_file
    if backing_format is not None:
        chosen["backing_fmt"] = backing_format
    plan_creation(os.fspath(name), size, format=format, options=chosen, secrets=secrets).run()


def map(
    name: Name | Mapping[str, Any],
    start: int = 0,
    length: int | None = None,
    *,
    format: str | None = None,
    backing: bool = True,
    force_share: bool = False,
    secrets: Secrets | None = None,
) -> Iterator[MapEntry]:
    """Where the bytes of the disk in an image are, from ``start`` on: as ``vdisk map`` lists.

    The image is open, and locked for reading, until the last entry has been taken.
    """
    from vdisk.jobs.map import map_entries

    with open(
        name, format=format, backing=backing, force_share=force_share, secrets=secrets
    ) as image:
        yield from map_entries(image, start, length)
