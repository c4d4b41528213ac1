"""The image that a job writes: made by it and removed if it is not finished, or there before."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk.errors import InvalidRequestError
from vdisk.jobs.sources import files_under
from vdisk.opening import open_image, parse_name
from vdisk.opening.creating import plan_creation
from vdisk.opening.names import parse_filename, relative_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.options import Secrets


_KEYS = ("key-secret", "encrypt.key-secret")
"""Options for making an encrypted image that are needed for opening it, too."""


class TargetSettings(NamedTuple):
    """How to open or make a target; see :func:`vdisk.jobs.convert.convert`."""

    name: str | Mapping[str, Any]
    format: str | None = "raw"
    options: Mapping[str, Any] = {}
    exists: bool = False
    cache: str = "unsafe"
    secrets: Secrets | None = None
    warn: Callable[[str], None] = lambda _message: None

    @property
    def made_zero(self) -> bool | None:
        """True if the target will be new and read as zeroes; None: its map must tell.

        What was preallocated in a new file counts as zero although the map calls it data; but
        where it is encrypted, it reads as noise, and a block device keeps its old content.
        """
        if self.exists or self.options.get("backing_file") is not None:
            return None
        paths = _paths(self)
        if not paths or not all(map(_is_file_to_be, paths)):
            return None
        preallocated = self.options.get("preallocation", "off") != "off"
        encrypted = self.options.get("encrypt.format") is not None or self.options.get("encryption")
        return None if self.format == "luks" or (encrypted and preallocated) else True


@contextlib.contextmanager
def opened_target(
    settings: TargetSettings, size: int, sources: Iterable[BlockDevice]
) -> Iterator[BlockDevice]:
    """The target, open for writing, with room for ``size`` bytes.

    When the block is left by an exception, a file that was made here is removed; of an image
    that was there before, ``settings.warn`` is told that it is incomplete.
    """
    paths = _paths(settings)
    for path in paths:
        _refuse_source(path, sources)
    if not settings.exists:
        _make(settings, size)
    begun = False
    try:
        with _open(settings) as target:
            if target.size < size:
                raise InvalidRequestError(
                    f"the target holds {target.size} bytes, and the source has {size}",
                    path=target.name,
                )
            begun = True
            yield target
    except BaseException:
        if not settings.exists:
            for path in paths:
                _remove(path)
        elif begun:
            settings.warn(f"{_shown(settings.name)} was not finished: its content is incomplete")
        raise


def _make(settings: TargetSettings, size: int) -> None:
    if not isinstance(settings.name, str) or settings.format is None:
        raise InvalidRequestError(
            "a target given by options cannot be made here: make it first and use -n "
            "(target_exists)"
        )
    plan_creation(
        settings.name,
        size,
        format=settings.format,
        options=settings.options,
        secrets=settings.secrets,
        cache=settings.cache,
    ).run()


def _open(settings: TargetSettings) -> BlockDevice:
    return open_image(
        settings.name,
        readonly=False,
        format=settings.format,
        cache=settings.cache,
        secrets=settings.secrets,
        options={name: settings.options[name] for name in _KEYS if name in settings.options},
        warn=settings.warn,
    )


def _shown(name: str | Mapping[str, Any]) -> str:
    return name if isinstance(name, str) else str(dict(name))


def _paths(settings: TargetSettings) -> list[str]:
    """The files, or block devices, that making the target writes; none of other protocols."""
    tree = parse_name(settings.name) if isinstance(settings.name, str) else settings.name
    node = tree.get("file", tree)
    filename = node.get("filename") if isinstance(node, dict) else None
    place = parse_filename(filename) if isinstance(filename, str) else {}
    if place.get("driver") != "file":
        return []
    path: str = place["filename"]
    data_file = settings.options.get("data_file")
    return [path] if data_file is None else [path, relative_to(os.path.dirname(path), data_file)]


def _is_file_to_be(path: str) -> bool:
    """True for a regular file, or none yet, so that making it makes it empty."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return True


def _refuse_source(path: str, sources: Iterable[BlockDevice]) -> None:
    """Raise if ``path`` is one of the files that the sources are read from."""
    with contextlib.suppress(OSError, ValueError):  # no such file: then it is no source either
        status = os.stat(path)
        for source in sources:
            for file in files_under(source):
                other = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino):
                    raise InvalidRequestError(
                        f"the target is a file that is being read ({file.name}): "
                        "write into another one",
                        path=path,
                    )


def _remove(path: str) -> None:
    """Remove an unfinished file, under each of its names; block devices stay."""
    with contextlib.suppress(OSError):  # it is gone already, or was never made
        if stat.S_ISREG(os.stat(path).st_mode):
            os.truncate(path, 0)
            os.unlink(path)
