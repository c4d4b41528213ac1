"""The commands that do not transfer data: looking at the image, resizing, opening, waiting."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from vdisk.block import Kind
from vdisk.cli._io.arguments import CommandFailed, UsageError, parse_number
from vdisk.cli._io.report import size_text
from vdisk.cli._io.requests import failure
from vdisk.cli._io.session import Settings
from vdisk.errors import VdiskError
from vdisk.options import flatten
from vdisk.stores.file import FileStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vdisk.block import BlockDevice, Extent
    from vdisk.cli._io.arguments import Arguments
    from vdisk.cli._io.session import Session

AIO_MODES = ("threads", "native", "io_uring")
"""How QEMU may do its I/O. The names are checked, and vdisk goes about it in its own way."""

DISCARD_MODES = {"unmap": True, "on": True, "ignore": False, "off": False}
PREALLOCATION_MODES = ("off", "metadata", "falloc", "full")


# -- the image -------------------------------------------------------------------------------------


def flush(session: Session, _arguments: Arguments) -> None:
    """flush"""
    try:
        session.device.flush()
    except VdiskError as error:
        raise failure("flush", error) from error


def aio_flush(session: Session, _arguments: Arguments) -> None:
    """aio_flush"""
    session.finish_pending()


def length(session: Session, _arguments: Arguments) -> None:
    """length"""
    print(size_text(session.device.size))


def truncate(session: Session, arguments: Arguments) -> None:
    """truncate [-m mode] size"""
    mode = arguments.options.get("m", "off")
    if mode not in PREALLOCATION_MODES:
        raise CommandFailed(f"vdisk io: Invalid preallocation mode '{mode}'", to_stderr=True)
    if len(arguments.operands) != 1:
        raise UsageError
    size = parse_number(arguments.operands[0])
    from vdisk.cli.resize import resize_device

    try:
        resize_device(session.image, size, mode)
    except VdiskError as error:
        raise CommandFailed(f"vdisk io: {error}", to_stderr=True) from error


def _is_allocated(extent: Extent) -> bool:
    """True if the top image itself says what the bytes are; its backing file does not count."""
    return extent.depth == 0 and extent.kind is not Kind.HOLE


def _allocation_runs(device: BlockDevice, start: int, length: int) -> Iterator[tuple[bool, int]]:
    """(allocated?, bytes) from ``start`` on; neighbours differ."""
    allocated, count = True, 0
    for extent in device.map(start, length):
        if count and _is_allocated(extent) != allocated:
            yield allocated, count
            count = 0
        allocated = _is_allocated(extent)
        count += extent.length
    if count:
        yield allocated, count


def map_image(session: Session, _arguments: Arguments) -> None:
    """map"""
    position = 0
    for allocated, count in _allocation_runs(session.device, 0, session.device.size):
        state = "    allocated" if allocated else "not allocated"
        print(
            f"{size_text(count)} ({count:#x}) bytes {state} at offset "
            f"{size_text(position)} ({position:#x})"
        )
        position += count


def alloc(session: Session, arguments: Arguments) -> None:
    """alloc offset [count]"""
    offset = parse_number(arguments.operands[0])
    count = parse_number(arguments.operands[1]) if len(arguments.operands) > 1 else 512
    count = max(min(count, session.device.size - offset), 0)
    runs = _allocation_runs(session.device, offset, count) if count else iter(())
    found = sum(length for allocated, length in runs if allocated)
    print(f"{found}/{count} bytes allocated at offset {size_text(offset)}")


def info(session: Session, _arguments: Arguments) -> None:
    """info"""
    from vdisk.cli.info import tree_lines
    from vdisk.formats.qcow2 import Qcow2Image

    device: Any = session.image
    image = device if isinstance(device, Qcow2Image) else None
    print(f"format name: {getattr(device, 'format_name', 'raw')}")
    print(f"cluster size: {size_text(image.cluster_size if image else 0)}")
    print(f"vm state offset: {size_text(image.vm_state().offset if image else 0)}")
    if hasattr(device, "format_info"):
        print("Format specific information:")
        for line in tree_lines(device.format_info(), "    "):
            print(line)


# -- opening and closing -----------------------------------------------------------------------


def cache_mode(given: str) -> str:
    """The cache mode ``given``, or the error that the command reports."""
    from vdisk.opening import CacheMode

    try:
        CacheMode.parse(given)
    except VdiskError:
        message = f"vdisk io: Invalid cache option: {given}"
        raise CommandFailed(message, to_stderr=True) from None
    return given


def discard_mode(given: str) -> bool:
    """True if the mode ``given`` passes discards on."""
    if given not in DISCARD_MODES:
        raise CommandFailed(f"vdisk io: Invalid discard option: {given}", to_stderr=True)
    return DISCARD_MODES[given]


def check_aio_mode(given: str) -> None:
    """Refuse what is none of :data:`AIO_MODES`."""
    if given not in AIO_MODES:
        raise CommandFailed(f"vdisk io: Invalid aio option: {given}", to_stderr=True)


def node_options(text: str) -> dict[str, Any]:
    """``-o driver=qcow2,file.filename=…`` as options of the top node."""
    from vdisk.opening.names import parse_image_options

    try:
        return parse_image_options(text) if text else {}
    except VdiskError as error:
        raise CommandFailed(f"vdisk io: {error}", to_stderr=True) from error


def open_image(session: Session, arguments: Arguments) -> None:
    """open [-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]"""
    if len(arguments.operands) > 1 or not (arguments.operands or arguments.has("o")):
        raise UsageError
    check_aio_mode(arguments.options.get("i", AIO_MODES[0]))
    name = arguments.operands[0] if arguments.operands else None
    options = node_options(arguments.options.get("o", ""))
    if name is not None and session.image_opts:
        options, name = {**options, **node_options(name)}, None
    session.open(
        Settings(
            name=name,
            readonly=arguments.has("r"),
            snapshot=arguments.has("s"),
            copy_on_read=arguments.has("C"),
            force_share=arguments.has("U"),
            cache=cache_mode(
                arguments.options.get("t", "none" if arguments.has("n") else "writeback")
            ),
            discard=discard_mode(arguments.options.get("d", "unmap")),
            options=options,
        )
    )


def reopen(session: Session, arguments: Arguments) -> None:
    """reopen [(-r|-w)] [-c cache] [-o options]"""
    if arguments.operands:
        raise UsageError
    if arguments.has("r") and arguments.has("w"):
        raise CommandFailed("vdisk io: Only one -r/-w option may be given", to_stderr=True)
    settings = session.settings
    added = node_options(arguments.options.get("o", ""))
    if (arguments.has("r") or arguments.has("w")) and "read-only" in added:
        raise CommandFailed("vdisk io: Cannot set both -r/-w and 'read-only'", to_stderr=True)
    if arguments.has("c") and "cache" in added:
        raise CommandFailed("vdisk io: Cannot set both -c and the cache options", to_stderr=True)
    _refuse_other_nodes(session, added)
    if arguments.has("r") or arguments.has("w"):
        settings = settings._replace(readonly=arguments.has("r"))
    if arguments.has("c"):
        settings = settings._replace(cache=cache_mode(arguments.options["c"]))
    session.reopen(settings._replace(options=_joined(settings.options, added)))


def _refuse_other_nodes(session: Session, added: Mapping[str, Any]) -> None:
    """What a node is, and what it is called, is not changed while it is open."""
    device, before = session.image, dict(flatten(session.settings.options))
    for key, value in flatten(added):
        path, _, name = key.rpartition(".")
        if name == "node-name":
            now = before.get(key)
        elif name == "driver":
            node: Any = device
            for child in filter(None, path.split(".")):
                node = getattr(node, child, None)
            kind = "file" if isinstance(node, FileStore) else getattr(node, "format_name", value)
            now = before.get(key, kind)
        else:
            continue
        if value != now:
            raise CommandFailed(f"vdisk io: Cannot change the option '{name}'", to_stderr=True)


_CACHE_SIZES = frozenset({"cache-size", "l2-cache-size", "refcount-cache-size"})


def _joined(old: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` options with those ``added``; of three cache sizes, which determine one another,
    only the new ones."""
    joined = {**old, **added}
    if joined.keys() >= _CACHE_SIZES:
        return {name: joined[name] for name in joined.keys() - (_CACHE_SIZES - added.keys())}
    return joined


def close(session: Session, _arguments: Arguments) -> None:
    """close"""
    session.close()


# -- the process -------------------------------------------------------------------------------


def sleep(_session: Session, arguments: Arguments) -> None:
    """sleep milliseconds"""
    text = arguments.operands[0]
    if not (text.isascii() and text.isdigit()):
        raise CommandFailed(f"{text} is not a valid number")
    time.sleep(int(text) / 1000)


def abort(_session: Session, _arguments: Arguments) -> None:
    """abort"""
    sys.stdout.flush()
    os.abort()


def sigraise(_session: Session, arguments: Arguments) -> None:
    """sigraise number"""
    number = parse_number(arguments.operands[0])
    if not 0 < number < signal.NSIG:
        raise CommandFailed(f"signal argument '{number}' is not a signal")
    sys.stdout.flush()
    signal.raise_signal(number)
