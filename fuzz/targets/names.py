"""Any name or options: a device or a VdiskError, and described it is found again; ≤ 256 MiB, ≤ 2 s.

Input: text that is read as a name, as ``json:`` and as ``--image-opts``.  What the names lead to
is opened only inside a directory of small images, and never over a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz.images import small_images
from fuzz.text import change_text
from vdisk.errors import VdiskError
from vdisk.opening import open_image
from vdisk.opening.names import parse_image_options, parse_name
from vdisk.options import flatten, nest, parse_keyval

if TYPE_CHECKING:
    import random

LONGEST = 2048
TREES: list[dict[str, Any]] = [
    {"driver": "raw", "offset": 512, "size": "4k", "file": {"filename": "plain"}},
    {"driver": "qcow2", "file.driver": "file", "file.filename": "image", "backing": None},
    {"driver": "qcow2", "l2-cache-size": 65536, "file": {"filename": "file:overlay"}},
    {"driver": "luks", "key-secret": "s", "file": {"filename": "plain", "locking": "off"}},
    {"driver": "copy-on-read", "file": {"driver": "qcow2", "file": {"filename": "overlay"}}},
    {"driver": "raw", "file": {"driver": "null-co", "size": 65536, "read-zeroes": "on"}},
    {"driver": "throttle", "file": {"driver": "file", "filename": "plain"}},
    {
        "driver": "raw",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": "plain"},
            "inject-error": [{"event": "read_aio", "errno": 5, "once": True}],
        },
    },
]
_SIGNS = """ " { } [ ] , : null true 1e999 \\ud800 . = ,, -1 4k 1T json: file: on off read-only
    cache.direct cache.no-flush force-share node-name discard """
WORDS = [
    *{word for tree in TREES for word in json.dumps(tree).replace('"', " ").split()},
    *_SIGNS.split(),
]
FORBIDDEN = ("nbd", "http", "ssh", "host_device", "/", "..")
"""No name that has any of these is opened: a fuzzer has no business there."""


def seeds() -> dict[str, bytes]:
    options = ["driver=qcow2,file.filename=image", "driver=raw,offset=1k,file.filename=a,,b"]
    texts = [*map(json.dumps, TREES), *options, "image", "file:plain"]
    return {f"{number}": text.encode() for number, text in enumerate(texts)}


def mutate(data: bytes, rng: random.Random) -> bytes:
    return change_text(data, WORDS, rng)


@cache
def folder() -> Path:
    """A directory of images, gone when the process ends."""
    made = Path(_keep(tempfile.TemporaryDirectory(prefix="vdisk-fuzz-")).name)
    made.joinpath("plain").write_bytes(bytes(4096))
    made.joinpath("base").write_bytes(bytes(20_000))
    made.joinpath("image").write_bytes(small_images()["small clusters"])
    made.joinpath("overlay").write_bytes(small_images()["backing file"])
    return made


_kept: list[Any] = []


def _keep(directory: tempfile.TemporaryDirectory[str]) -> tempfile.TemporaryDirectory[str]:
    _kept.append(directory)
    return directory


def run(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(VdiskError):
        flat = parse_keyval(text)
        assert nest(dict(flatten(nest(flat)))) == nest(flat)
    with contextlib.chdir(folder()):
        for parse in (parse_name, _parse_json, parse_image_options):
            with contextlib.suppress(VdiskError):
                _open(parse(text))


def _parse_json(text: str) -> dict[str, Any]:
    return parse_name("json:" + text)


def _open(tree: dict[str, Any]) -> None:
    texts = [str(value) + key for key, value in flatten(tree)]
    if any(word in text for word in FORBIDDEN for text in texts):
        return
    for readonly in (True, False):
        with contextlib.suppress(VdiskError), open_image(tree, readonly=readonly) as disk:
            disk.read(0, min(disk.size, 512))
            assert os.fspath(disk.name) is not None
