"""How names become devices.

A name is a path, ``file:path``, ``json:{…}`` or a URI such as ``nbd://host/export``; each
stands for a tree of options (:mod:`~vdisk.opening.names`), and a tree of options is opened node
by node (:mod:`~vdisk.opening.nodes`)::

    disk.qcow2  ->  {"file": {"filename": "disk.qcow2"}}
                ->  {"driver": "qcow2",                             the format, stated or guessed
                     "file": {"driver": "file", "filename": "disk.qcow2"},
                     "backing": {"driver": "raw", "file": …}}       as the image says

What an image may lead to is decided here: its backing and data file, read relative to its own
directory, and nothing at all where ``backing=Backing.REFUSE``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vdisk import filters
from vdisk.errors import InvalidRequestError
from vdisk.opening.names import overlaid, parse_name, with_format
from vdisk.opening.nodes import Backing, NodeContext, open_node
from vdisk.options import nest, split_secrets
from vdisk.stores import CacheMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdisk.block import BlockDevice
    from vdisk.options import Secrets

__all__ = ["Backing", "CacheMode", "NodeContext", "open_image", "open_node", "parse_name"]


def open_image(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    readonly: bool = True,
    format: str | None = None,
    cache: str = "writeback",
    force_share: bool = False,
    backing: Backing = Backing.FOLLOW,
    secrets: Secrets | None = None,
    options: Mapping[str, Any] | None = None,
    repairing: bool = False,
    writable_backing: int = 0,
    warn: Callable[[str], None] | None = None,
) -> BlockDevice:
    """The device that ``name`` (or a tree of options) means; close it when done.

    ``format``: None guesses it, from the first bytes of this file only.  ``cache``: "none",
    "writeback", "writethrough", "directsync" or "unsafe": how writes to files reach the disk
    (an image's own tables are written when it is flushed, in every mode).  ``force_share``: open
    without locks, to read an image that another process writes.  ``options``: run-time options of
    the top node, such as ``{"l2-cache-size": 1 << 20}``.  ``secrets``: what options refer to by
    id, see :data:`vdisk.options.Secrets`.  ``repairing``: allow writing to an
    image that is marked dirty or corrupt.  ``writable_backing``: open this backing file, counted
    from 1, for writing too (commit).  ``warn``: told, in one line, what the user should
    know.

    Raises :class:`~vdisk.errors.VdiskError` of the kind that fits; whatever was opened on the
    way is closed again.
    """
    if force_share and not readonly:
        raise InvalidRequestError("force_share (-U) opens without locks, so only for reading")
    passphrases, objects = split_secrets(secrets)
    context = NodeContext(
        files=[],
        readonly=readonly,
        cache=CacheMode.parse(cache),
        force_share=force_share,
        backing=backing,
        secrets=passphrases,
        objects=objects,
        repairing=repairing,
        writable_backing=writable_backing,
        warn=warn or _ignore,
    )
    tree = nest(name) if isinstance(name, Mapping) else parse_name(os.fspath(name))
    if format is not None:
        tree = with_format(tree, format)
    return open_node(_with_options(tree, nest(options or {})), context)


def _with_options(tree: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` for the top node; if that is to be a filter, ``tree``'s name is the filter's."""
    file = tree.get("file")
    filtered = options.get("driver") in filters.names()
    if filtered and tree.keys() == {"file"} and isinstance(file, dict):
        tree = file
    return overlaid(tree, options)


def _ignore(_message: str) -> None:
    """The warnings of a caller that did not ask for them."""
