"""Making a new image: options read and checked first, the file touched last.

:func:`plan_creation` finds everything that can be wrong without writing; the
:class:`Creation` it returns can be shown, and :meth:`Creation.run` writes.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import formats
from vdisk.errors import InvalidRequestError
from vdisk.formats.raw import preallocate
from vdisk.opening import Backing, open_image
from vdisk.opening.names import parse_filename, relative_to
from vdisk.opening.nodes import NodeContext, open_node
from vdisk.options import as_bool, as_size, as_string, parse_keyval, split_secrets
from vdisk.stores import CacheMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vdisk.block import BlockDevice
    from vdisk.formats import CreateOption
    from vdisk.options import Secrets

MAX_IMAGE_SIZE = (1 << 63) - 1
"""An off_t: no file, and no QEMU, takes an offset beyond."""


MAX_EXTENT_SIZE = (1 << 32) - 1
"""Bytes: a 32-bit field of Linux's struct fsxattr."""


class Creation(NamedTuple):
    """An image about to be made.  ``options``: typed, defaults not filled in."""

    name: str
    format: str
    size: int
    options: Mapping[str, Any]
    secrets: Secrets = formats.NO_SECRETS
    cache: CacheMode = CacheMode()

    def run(self) -> None:
        """Make the image; a file that did not exist before is removed when that fails."""
        driver = formats.driver(self.format)
        existed = os.path.lexists(_path(self.name) or "")
        try:
            if self.options.get("data_file") is not None:
                self._make_data_file()
            with _create_file(self.name, self.cache, self.secrets) as file:
                self._hint_layout(file)
                passphrases, _objects = split_secrets(self.secrets)
                driver.create(file, self.size, self.options, passphrases)
        except BaseException:
            path = _path(self.name)
            if path is not None and not existed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise

    def _hint_layout(self, file: BlockDevice) -> None:
        """The options that are the file's, whatever its format."""
        from vdisk.stores.file import FileStore

        given = {
            option.name: self.options[option.name]
            for option in formats.FILE_OPTIONS
            if self.options.get(option.name)
        }
        if given.get("extent_size_hint", 0) > MAX_EXTENT_SIZE:
            raise InvalidRequestError(f"extent_size_hint is at most {MAX_EXTENT_SIZE}")
        if isinstance(file, FileStore):
            file.hint_layout(
                extent_size=given.get("extent_size_hint", 0), nocow=given.get("nocow", False)
            )
        elif given:
            raise InvalidRequestError(f"{', '.join(given)}: {self.name} is no file")

    def _make_data_file(self) -> None:
        """The external data file: as long as the disk, and named relative to the image.

        (qemu-img 7.2 makes it relative to the working directory and then looks for it relative
        to the image.)
        """
        directory = os.path.dirname(_path(self.name) or "")
        name = relative_to(directory, self.options["data_file"])
        with _create_file(name, self.cache, self.secrets) as file:
            file.truncate(self.size)
            mode = self.options.get("preallocation", "off")
            preallocate(file, 0, self.size, "off" if mode == "metadata" else mode)


def plan_creation(
    name: str,
    size: int | None = None,
    *,
    format: str = "raw",
    options: Mapping[str, Any] | None = None,
    check_backing: bool = True,
    secrets: Secrets | None = None,
    cache: str = "writeback",
) -> Creation:
    """What making the image ``name`` would do.

    ``options``: as ``-o`` names them, values typed or text; ``backing_file`` is read relative
    to the new image and needs ``backing_fmt``.  ``size`` None: the option "size", or that of
    the backing file.  ``check_backing`` False: do not open the backing file.

    Raises :class:`InvalidRequestError` for options that cannot work.
    """
    typed = convert_options(format, options or {})
    option_size = typed.pop("size", None)
    if size is not None and option_size is not None:
        raise InvalidRequestError(
            "The image size must be specified only once, not as an argument and as option 'size'"
        )
    size = option_size if size is None else size
    if typed.get("backing_file") is not None:
        size = _check_backing(name, size, typed, check_backing, secrets)
    elif "backing_fmt" in typed:
        raise InvalidRequestError("a backing format (-F) needs a backing file (-b)")
    if size is None:
        raise InvalidRequestError(f"the size of {name} is missing")
    if not 0 <= size <= MAX_IMAGE_SIZE:
        raise InvalidRequestError(f"the size {size} is not between 0 and {MAX_IMAGE_SIZE}")
    formats.driver(format).measure(size, typed)  # refuses, before an old file is emptied
    return Creation(
        name, format, size, typed, secrets or formats.NO_SECRETS, CacheMode.parse(cache)
    )


def _check_backing(
    name: str,
    size: int | None,
    options: Mapping[str, Any],
    check: bool,
    secrets: Secrets | None,
) -> int | None:
    backing, format = options["backing_file"], options.get("backing_fmt")
    if not backing:
        raise InvalidRequestError("Expected backing file name, got empty string")
    if backing == name:
        raise InvalidRequestError(f"{name} cannot be its own backing file")
    if format is None:
        raise InvalidRequestError(
            f"Use of backing file requires explicit backing format: name it with -F for {backing} "
            "(option backing_fmt), so that nobody has to guess it"
        )
    if format not in formats.names():
        formats.driver(format)  # says which formats there are
    if not check:
        return size
    directory = os.path.dirname(_path(name) or "")
    with open_image(
        relative_to(directory, backing), format=format, backing=Backing.FOLLOW, secrets=secrets
    ) as image:
        return image.size if size is None else size


def _path(name: str) -> str | None:
    """Where in the file system ``name`` is; None for a name of another protocol."""
    options = parse_filename(name)
    filename = options.get("filename")
    return filename if options["driver"] == "file" and isinstance(filename, str) else None


def _create_file(name: str, cache: CacheMode, secrets: Secrets) -> BlockDevice:
    """An empty file; of another protocol, what is there already, opened for writing."""
    path = _path(name)
    if path is None:
        passphrases, objects = split_secrets(secrets)
        context = NodeContext([], readonly=False, cache=cache, secrets=passphrases, objects=objects)
        return open_node(parse_filename(name), context)
    from vdisk.stores.file import FileStore

    return FileStore(path, readonly=False, create=True, ignore_flush=cache.no_flush)


# -- options ---------------------------------------------------------------------------------


def parse_create_options(format: str, text: str) -> dict[str, Any]:
    """``name=value,name=value`` typed as the format declares its options."""
    return convert_options(format, parse_keyval(text) if text else {})


def convert_options(
    format: str, options: Mapping[str, Any], declared: Sequence[CreateOption] | None = None
) -> dict[str, Any]:
    """``options`` typed as ``declared`` (None: as ``format`` declares those of creation)."""
    if declared is None:
        declared = (*formats.driver(format).create_options, *formats.FILE_OPTIONS)
    by_name = {option.name: option for option in declared}
    typed = {}
    for name, value in options.items():
        if name not in by_name:
            if name in {option.name for option in formats.driver(format).create_options}:
                raise InvalidRequestError(f"option {name!r} is only supported for image creation")
            known = ", ".join(sorted(by_name))
            raise InvalidRequestError(f"format {format} has no such option {name!r}: {known}")
        typed[name] = convert_option(by_name[name], value)
    return typed


def convert_option(option: CreateOption, value: Any) -> Any:
    """``value`` as the type that ``option`` has; raises :class:`InvalidRequestError`."""
    what = f"option {option.name!r}"
    if option.type == "bool":
        return as_bool(value, what)
    if option.type == "size":
        return as_size(value, what)
    if option.type == "number":
        return _as_number(value, what)
    text = as_string(value, what)
    if option.choices and text not in option.choices:
        raise InvalidRequestError(f"{what} is one of {', '.join(option.choices)}, not {text!r}")
    return text


def _as_number(value: Any, what: str) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise InvalidRequestError(f"{what} is a number, not {value!r}") from None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequestError(f"{what} is a number from 0 on, not {value!r}")
    return value
