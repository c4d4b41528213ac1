"""Whatever a name says, opening it gives a device or an error of the family, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import VdiskError
from vdisk.opening import open_image
from vdisk.opening.names import describe_tree, parse_image_options, parse_name

WORDS = """
    driver file filename backing data-file offset size locking aio cache cache.direct read-only
    force-share node-name file.driver file.filename file.file l2-cache-size cache-size
    encrypt.key-secret key-secret . a..b
"""
KEYS = st.sampled_from(WORDS.split()) | st.text(max_size=6)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["raw", "qcow2", "luks", "file", "host_device", "copy-on-read", "on", "off"])
    | st.sampled_from(["/dev/null", os.devnull, ".", "absent", "file:absent", "nbd:x:1", "64k"])
    | st.text(max_size=8)
)

TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=2),
        max_leaves=12,
    ),
    max_size=4,
)


def attempt(name: Any) -> None:
    try:
        open_image(name).close()
    except VdiskError as error:
        assert str(error)


@given(TREES)
def test_trees(tree: dict[str, Any]) -> None:
    attempt(tree)
    attempt("json:" + json.dumps(tree))


@given(st.text(max_size=40))
def test_text(name: str) -> None:
    attempt("absent/" + name)
    attempt("json:" + name)
    with contextlib.suppress(VdiskError):
        attempt(parse_image_options(name))


@given(st.dictionaries(st.sampled_from(["offset", "size"]), st.integers(0, 1 << 40)), st.text())
def test_what_is_described_is_found_again(options: dict[str, int], filename: str) -> None:
    tree = {**options, "file": {"driver": "file", "filename": filename or "x"}}
    again = parse_name(describe_tree(tree, "raw"))
    if options:
        assert again == {"driver": "raw", **tree}
    elif not filename.startswith(("json:", "file:")):
        name = filename or "x"
        # What stands before a colon would be read as a protocol.
        assert again["file"]["filename"] in ({name, f"./{name}"} if ":" in name else {name})
