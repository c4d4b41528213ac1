"""Names of images, read into trees of options.

=====================  ==========================================================================
``disk.img``           a path; one with a colon before any slash needs ``./`` or ``file:``
``file:disk.img``      the same
``json:{"driver":…}``  the tree itself, nested or with dotted keys
``nbd://host/export``  a protocol of :mod:`vdisk.stores`, which reads its own names
``blkdebug:CFG:IMG``   a filter of :mod:`vdisk.filters`, likewise
=====================  ==========================================================================
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.options import nest, parse_keyval

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_JSON_NAME = 1 << 20
"""Characters of a ``json:`` name: far more than a stack of nodes needs, little to parse."""


def protocol_of(name: str) -> str | None:
    """``nbd`` of ``nbd://host``: what stands before a colon that comes before any slash."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and "/" not in prefix else None


def parse_name(name: str) -> dict[str, Any]:
    """The options that ``name`` stands for; without "driver" where the format is not stated."""
    if not name:
        raise InvalidRequestError("the name of the image is empty")
    if name.startswith("json:"):
        return _parse_json(name[len("json:") :])
    return {"file": {"filename": name}}


def parse_image_options(text: str) -> dict[str, Any]:
    """What ``--image-opts`` takes: ``driver=qcow2,file.filename=disk.qcow2``."""
    return nest(parse_keyval(text))


def parse_filename(filename: str) -> dict[str, Any]:
    """Options with a "driver" for the file, connection… that ``filename`` names."""
    from vdisk.filters import filter_for_scheme
    from vdisk.stores import protocol_for_scheme

    scheme = protocol_of(filename)
    if scheme is None:
        return {"driver": "file", "filename": filename}
    if scheme == "file":
        return {"driver": "file", "filename": filename[len("file:") :]}
    protocol = protocol_for_scheme(scheme) or filter_for_scheme(scheme)
    if protocol is None:
        raise InvalidRequestError(
            f"unknown protocol {scheme!r} in {filename!r}; a file of this name is './{filename}'"
        )
    return protocol.parse_name(filename)


def relative_to(directory: str | None, name: str) -> str:
    """``name`` as an image in ``directory`` means it; None: the image is not in a directory."""
    if os.path.isabs(name) or protocol_of(name) is not None:
        return name
    if directory is None:
        raise InvalidRequestError(
            f"{name!r} is relative to the image that names it, and that image is not a file: "
            "store an absolute name in it"
        )
    return os.path.join(directory, name)


def _parse_json(text: str) -> dict[str, Any]:
    from vdisk.opening.json_text import loads

    if len(text) > MAX_JSON_NAME:
        raise InvalidRequestError(f"a json: name of more than {MAX_JSON_NAME} characters")
    try:
        tree = loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the json: name is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise InvalidRequestError("a json: name holds an object: json:{…}")
    return nest(tree)


def overlaid(tree: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options``, and deep down what they leave of ``tree``."""
    found = {**tree, **options}
    for key, value in options.items():
        below = tree.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            found[key] = overlaid(below, value)
    return found


def with_format(tree: dict[str, Any], format: str) -> dict[str, Any]:
    """``tree`` read as an image of ``format``, whatever format it states itself."""
    from vdisk import formats

    driver = tree.get("driver")
    if driver not in (None, format, *formats.names()):  # the tree is but the file
        return {"driver": format, "file": tree}
    return {**tree, "driver": format}


_NBD_PLACE = frozenset({"driver", "uri", "server", "host", "port", "path", "export"})
"""The options of an NBD node that its URI says as well."""


def describe_tree(tree: Mapping[str, Any], format: str) -> str:
    """The shortest name that opens ``tree``: a path or URI if it is but that, else json:{…}.

    ``format``: the driver of the top node, which may have been guessed.
    """
    file = tree.get("file", {})
    import json

    from vdisk.stores import path_of

    simple = tree.keys() <= {"driver", "file"} and isinstance(file, dict)
    if simple and file.keys() <= {"driver", "filename"} and file.get("driver", "file") == "file":
        name = str(file.get("filename"))
        return path_of(name) if "driver" in file or name.startswith("file:") else name
    if tree.get("driver") == "file" and tree.keys() == {"driver", "filename"}:
        return path_of(str(tree["filename"]))
    node = file if simple and file else tree
    if node.get("driver") == "nbd" and node.keys() <= _NBD_PLACE:
        from vdisk.options import OptionBag
        from vdisk.stores.nbd_protocol import place

        return str(place(OptionBag(node, "driver 'nbd'")))
    return "json:" + json.dumps({"driver": format, **tree})
