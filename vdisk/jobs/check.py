"""Checking an image's tables, and repairing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.opening import Backing, open_image

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from vdisk.formats._qcow2.findings import CheckResult
    from vdisk.formats.qcow2 import Qcow2Image
    from vdisk.options import Secrets


class NoCheckError(UnsupportedFeatureError):
    """The image's format has nothing that could be checked."""


REPAIRS = {"leaks": ("leaks",), "all": ("leaks", "errors")}
"""What ``-r`` asks for, as what :meth:`~vdisk.formats.qcow2.Qcow2Image.check` may repair."""


def check(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    repair: str | None = None,
    format: str | None = None,
    backing: bool = True,
    cache: str = "writeback",
    force_share: bool = False,
    secrets: Secrets | None = None,
    warn: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Check the image ``name``; the disk's content is not read.

    ``repair``: "leaks" gives unused clusters back, "all" mends everything that can be mended.
    ``backing`` False: an image that names a backing or data file is refused.
    Raises :class:`NoCheckError` for a format that has no check, and what opening raises.
    """
    if repair is not None and repair not in REPAIRS:
        raise InvalidRequestError(f"repair is one of {', '.join(REPAIRS)}, not {repair!r}")
    with open_image(
        name,
        readonly=repair is None,
        format=format,
        cache=cache,
        force_share=force_share,
        backing=Backing.FOLLOW if backing else Backing.REFUSE,
        secrets=secrets,
        repairing=True,
        warn=warn,
    ) as image:
        if getattr(image, "format_name", None) != "qcow2":
            format = getattr(image, "format_name", "raw")
            # Word for word what scripts look for in the output of "qemu-img check".
            raise NoCheckError("This image format does not support checks")
        return cast("Qcow2Image", image).check(
            repair=REPAIRS[repair] if repair is not None else (), progress=progress
        )
