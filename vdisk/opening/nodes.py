"""Opening a tree of options, node by node.

A node is a format (its bytes come from its child ``file``), a protocol (a file, a connection)
or a filter (its children are devices).  The order is: find the driver, open the children, open
the node; when something fails, everything opened before is closed.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from vdisk import filters, formats, stores
from vdisk.block import close_all
from vdisk.errors import (
    CorruptImageError,
    InvalidRequestError,
    UnsupportedFeatureError,
    VdiskError,
)
from vdisk.formats import OpenContext
from vdisk.opening.names import (
    overlaid,
    parse_filename,
    parse_name,
    protocol_of,
    relative_to,
    with_format,
)
from vdisk.options import MAX_OPTION_DEPTH, OptionBag, as_bool, as_string, flatten
from vdisk.stores import CacheMode, StoreSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.formats import ChildRequest

MAX_CHAIN_DEPTH = 100
"""Images below one another.  Each holds a descriptor, tables and a few frames of the stack."""


class Backing(enum.Enum):
    """What to do about other files that an image names."""

    FOLLOW = "follow"
    """Open backing and data files."""
    LEAVE = "leave"
    """Open neither: for looking at the image or changing what its header says, not for
    reading the disk."""
    REFUSE = "refuse"
    """An image that names a backing or data file is not opened at all."""


class FileLink(NamedTuple):
    """A file that an image was read from: what it is, what it is called, where it lies."""

    identity: object
    name: str
    directory: str | None


class NodeContext(NamedTuple):
    """What a node inherits from the node above it.

    ``files``: where the nodes under one image leave the files they read.  ``chain``: those of
    the images above, by which loops are seen.  ``depth``: nodes above this one.
    ``writable_backing``: which backing file of this image, counted from 1, is opened for
    writing although the others are not (0: none).
    """

    files: list[FileLink]
    readonly: bool = True
    backing: Backing = Backing.FOLLOW
    cache: CacheMode = CacheMode()
    force_share: bool = False
    secrets: Mapping[str, bytes] = {}
    objects: Mapping[str, Mapping[str, str]] = {}
    repairing: bool = False
    warn: Callable[[str], None] = lambda _message: None
    chain: tuple[FileLink, ...] = ()
    depth: int = 0
    writable_backing: int = 0


Options = dict[str, Any]


def open_node(options: Mapping[str, Any], context: NodeContext) -> BlockDevice:
    """The device that ``options`` describe; without a "driver" it is an image to recognise."""
    if context.depth > MAX_OPTION_DEPTH:
        raise InvalidRequestError(f"nodes are stacked more than {MAX_OPTION_DEPTH} deep")
    own, context = _take_common(options, context)
    name = own.pop("driver", None)
    try:
        if name is None or name in formats.names():
            return _open_image(name, own, context)
        if stores.protocol(as_string(name, "driver")) is not None:
            return _open_store(name, own, context)
        return _open_filter(name, own, context)
    except VdiskError as error:
        error.operation = error.operation or "open"
        raise


def _take_common(options: Mapping[str, Any], context: NodeContext) -> tuple[Options, NodeContext]:
    """The options that every node has, put into the context; the others."""
    own = dict(options)
    own.pop("node-name", None)  # a label for QEMU's monitor
    _take_advice(own)
    if as_bool(own.pop("read-only", False), "option 'read-only'"):
        context = context._replace(readonly=True)
    if as_bool(own.pop("force-share", False), "option 'force-share'"):
        context = context._replace(force_share=True)
    cache = own.pop("cache", {})
    if not isinstance(cache, dict):
        raise InvalidRequestError(f"option 'cache' holds cache.direct and cache.no-flush: {cache}")
    bag = OptionBag(cache, "option 'cache'")
    mode = context.cache
    mode = mode._replace(
        direct=bag.boolean("direct", mode.direct),
        no_flush=bag.boolean("no-flush", mode.no_flush),
    )
    bag.finish()
    if context.force_share and not context.readonly:
        raise InvalidRequestError("force-share opens without locks, so only for reading")
    return own, context._replace(cache=mode, depth=context.depth + 1)


_ADVICE = {
    "auto-read-only": ("on", "off"),
    "discard": ("ignore", "off", "unmap", "on"),
    "detect-zeroes": ("off", "on", "unmap"),
}


def _take_advice(own: Options) -> None:
    """Options of every node of QEMU's that say how, not what: checked, and then left to programs.

    Nothing is read otherwise for any of them.  What cannot be opened for writing is an error, and
    whether discards are passed on and zeroes looked for are options of who writes.
    """
    for name, choices in _ADVICE.items():
        value = own.pop(name, choices[0])
        text = ("on" if value else "off") if isinstance(value, bool) else value
        if text not in choices:
            raise InvalidRequestError(f"option {name!r} is one of {', '.join(choices)}: {value!r}")


# -- protocols and filters -------------------------------------------------------------------


def _open_file_child(options: Options, context: NodeContext) -> BlockDevice:
    """The child that holds an image's bytes: unlike an image, its driver is in its name."""
    if "driver" not in options and "filename" in options:
        options = _file_options(options)
    if "driver" not in options:
        raise InvalidRequestError("the node that holds the image has neither driver nor filename")
    return open_node(options, context)


def _file_options(options: Options) -> Options:
    """``options`` with the driver that their "filename" names: that of a file, if nothing else."""
    own = dict(options)
    named = parse_filename(as_string(own.pop("filename"), "option 'filename'"))
    return {**own, **named}


def _open_store(name: str, options: Options, context: NodeContext) -> BlockDevice:
    driver = stores.protocol(name)
    assert driver is not None
    link = _link(name, options)
    for above in context.chain:
        if link.identity == above.identity:
            names = " -> ".join([*(each.name for each in context.chain), link.name])
            raise InvalidRequestError(
                f"Backing file {link.name!r} creates an infinite loop: {names}; give one of them "
                "another backing file (rebase -u)"
            )
    settings = StoreSettings(
        readonly=context.readonly,
        force_share=context.force_share,
        cache=context.cache,
        secrets=context.secrets,
        objects=context.objects,
    )
    try:
        store = driver.open(OptionBag(options, f"driver {name!r}"), settings)
    except VdiskError as error:
        if context.chain:
            error.message += f" (it is named by {context.chain[-1].name})"
        raise
    context.files.append(link)
    return store


def _link(name: str, options: Options) -> FileLink:
    """What the node reads: for a file the inode, since one file has many names."""
    filename = options.get("filename")
    if not isinstance(filename, str):
        return FileLink((name, *sorted(map(repr, flatten(options)))), name, None)
    filename = filename.removeprefix("file:")
    directory = os.path.dirname(filename)
    try:
        status = os.stat(filename)
    except (OSError, ValueError):  # opening it reports why
        return FileLink(filename, filename, directory)
    return FileLink((status.st_dev, status.st_ino), filename, directory)


def _open_filter(name: str, options: Options, context: NodeContext) -> BlockDevice:
    driver = filters.filter_driver(name)
    if driver is None:
        known = ", ".join(sorted([*formats.names(), *stores.names(), *filters.names()]))
        raise InvalidRequestError(f"Unknown driver {name!r} (known: {known})")
    if "filename" in options:
        options = _named(name, driver.children[-1], options)
    children: dict[str, BlockDevice] = {}
    try:
        for role, node in _nodes(name, driver.children, options):
            may_guess = role.partition(".")[0] in driver.images
            children[role] = (open_node if may_guess else _open_file_child)(node, context)
    except BaseException:
        close_all(*children.values())
        raise
    return driver.open(children, OptionBag(options, f"driver {name!r}"))


def _nodes(name: str, roles: Iterable[str], options: Options) -> Iterator[tuple[str, Options]]:
    """The options of a filter that are nodes, taken out of ``options``."""
    for role in roles:
        given = options.pop(role, None)
        if role != filters.LIST:
            given = {role: given}
        elif isinstance(given, list):
            given = {f"{role}.{number}": node for number, node in enumerate(given)}
        elif isinstance(given, dict) and sorted(given) == sorted(map(str, range(len(given)))):
            given = {f"{role}.{number}": given[str(number)] for number in range(len(given))}
        else:
            raise InvalidRequestError(f"driver {name!r} needs {role}.0, {role}.1 and so on")
        for key, node in given.items():
            if not isinstance(node, dict):
                raise InvalidRequestError(f"driver {name!r} needs the node {key!r}")
            yield key, node


def _named(name: str, child: str, options: Options) -> Options:
    """The options of a filter with a "filename": a name of the filter's own, or its child's."""
    own = dict(options)
    filename = as_string(own.pop("filename"), "option 'filename'")
    if protocol_of(filename) == name:
        stated = parse_filename(filename)
        del stated["driver"]
    else:
        stated = {child: {"filename": filename}}
    return overlaid(stated, own)


# -- images ----------------------------------------------------------------------------------


def _open_image(name: str | None, options: Options, context: NodeContext) -> BlockDevice:
    """A format over its file; ``name`` None: the format that the first bytes show."""
    place = options.pop("file", None)
    if place is None and "filename" in options:
        place = {"filename": options.pop("filename")}
    if isinstance(place, str):
        raise InvalidRequestError(f"'file' describes a node, and {place!r} is none")
    if not isinstance(place, dict):
        raise InvalidRequestError("an image needs 'file', the node that holds its bytes")
    files: list[FileLink] = []
    file = _open_file_child(place, context._replace(files=files))
    context.files.extend(files)
    try:
        children = _Children(file.name, options, files, context)
        if name is None:
            name = _probe(file)
            if name == "raw" and not context.readonly:
                _warn_guessed(file.name, context)
                options["format-guessed"] = True
        driver = formats.driver(name)
    except BaseException:
        file.close()
        raise
    image = driver.open(
        file,
        OpenContext(
            readonly=context.readonly,
            allow_backing=context.backing is not Backing.REFUSE,
            open_child=children.open,
            options=dict(flatten(options)),
            secrets=context.secrets,
            repairing=context.repairing,
        ),
    )
    try:
        children.check_all_used()
    except BaseException:
        image.close()
        raise
    return image


def _probe(file: BlockDevice) -> str:
    return formats.probe(file.read(0, min(formats.PROBE_SIZE, file.size)))


def _warn_guessed(name: str, context: NodeContext) -> None:
    context.warn(
        f"{name}: the format was not given and was guessed to be raw. A guest can make a raw "
        "disk look like another format, so writes to its first sector that do so are refused: "
        "name the format (-f raw) to lift this"
    )


class _Children:
    """Opens what one image names: the callback that its format gets.

    Takes the options "backing" and "data-file", which complete or replace what the image
    stores; a null "backing" means none.
    """

    def __init__(
        self, image: str, options: Options, files: list[FileLink], context: NodeContext
    ) -> None:
        self._image = image
        self._directory = files[0].directory if files else None
        backing = options.pop("backing", {})
        self._without_backing = backing in (None, "")
        self._given = {
            "backing": {} if self._without_backing else _as_node(backing, "backing"),
            "data-file": _as_node(options.pop("data-file", {}), "data-file"),
        }
        self._context = context._replace(
            chain=(*context.chain, *files), files=[], depth=0, repairing=False
        )
        self._asked: set[str] = set()

    def open(self, request: ChildRequest) -> BlockDevice | None:
        """The device of one reference; None where there is none, or it is to be left out."""
        context = self._context
        self._asked.add(request.role)
        if request.name is None and not self._given[request.role]:
            if request.role == "backing":
                return None
            raise CorruptImageError(
                "'data-file' is required for this image: it does not name its external data file",
                path=self._image,
            )
        if context.backing is Backing.LEAVE:
            return None
        if request.role == "backing" and self._without_backing:
            return None
        if context.backing is Backing.REFUSE:
            raise InvalidRequestError(
                f"has the {request.role} {request.name!r}, and following it was forbidden "
                "(backing=False, --no-backing)",
                path=self._image,
                operation="open",
            )
        if len(context.chain) >= MAX_CHAIN_DEPTH:
            raise UnsupportedFeatureError(
                f"the chain of backing files is longer than {MAX_CHAIN_DEPTH} images: shorten it "
                "(commit, rebase or convert)",
                path=self._image,
                operation="open",
            )
        readonly = request.readonly
        if request.role == "backing":
            left = context.writable_backing
            readonly = left != 1
            context = context._replace(writable_backing=max(left - 1, 0))
        return open_node(self._tree(request), context._replace(readonly=readonly))

    def _tree(self, request: ChildRequest) -> Options:
        """What the image stores, completed or replaced by what the user gave."""
        given, name = self._given[request.role], request.name
        as_bytes = request.role == "data-file"  # never an image that might be recognised
        if (
            name is None
            or "file" in given
            or "filename" in given
            or (as_bytes and "driver" in given)
        ):
            return _file_options(given) if as_bytes and "driver" not in given else given
        stored = parse_name(relative_to(self._directory, name))
        if as_bytes and "driver" not in stored:
            stored = parse_filename(stored["file"]["filename"])
        if as_bytes or "driver" in given or request.format is None:
            return {**stored, **given}
        return {**with_format(stored, request.format), **given}

    def check_all_used(self) -> None:
        """Refuse a data file that was given to an image which has its data inside."""
        if self._given["data-file"] and "data-file" not in self._asked:
            raise InvalidRequestError(
                "'data-file' can only be set for images with an external data file",
                path=self._image,
            )


def _as_node(value: Any, role: str) -> Options:
    if isinstance(value, dict):
        return value
    raise InvalidRequestError(f"option {role!r} describes a node, and {value!r} is none")
