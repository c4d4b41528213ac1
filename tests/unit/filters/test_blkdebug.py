"""Fault rules as options, names and configuration files say them."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import pytest

import vdisk
from vdisk.errors import DeviceError, InvalidRequestError, NoSpaceError, NotFoundError
from vdisk.filters.blkdebug import FILTER, parse_config, parse_rules
from vdisk.filters.faults import Corrupt, Delay, Effect, InjectError, IoType, SetState, Where
from vdisk.opening import open_image
from vdisk.opening.names import parse_image_options

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
# two rules
[set-state]
event = "l2_update"
state = "1"
new_state = "2"

[inject-error "named"]
event = "flush_to_disk"
state = "2"
errno = "28"
once = "on"
immediately = "off"
sector = "3"
"""


def test_a_configuration_file() -> None:
    rules = parse_rules(parse_config(CONFIG, "rules"))
    where = Where(offset=3 * 512, length=512, once=True)
    assert rules == [
        SetState("l2_update", 1, 2),
        InjectError("flush_to_disk", 2, where, errno.ENOSPC),
    ]


@pytest.mark.parametrize(
    "text", ["event = 'x'", 'event = "none"', "[set-state", "[set-state]\nevent", "[a]\nb = c"]
)
def test_what_is_no_configuration_file(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="line"):
        parse_config(text, "rules")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"inject-error": [{"event": "none"}]}, InjectError()),
        (
            {"inject-error": {"0": {"event": "none", "errno": "ENOSPC", "sector": -1}}},
            InjectError(errno=errno.ENOSPC),
        ),
        (
            {"inject-error": [{"event": "none", "iotype": "write-zeroes", "effect": "half"}]},
            InjectError(where=Where(iotypes=frozenset({IoType.WRITE_ZEROES})), effect=Effect.HALF),
        ),
        (
            {"inject-error": [{"event": "none", "offset": "64k", "skip": 3}]},
            InjectError(where=Where(offset=65536, skip=3)),
        ),
        ({"corrupt": [{"event": "none", "length": 9}]}, Corrupt(where=Where(offset=0, length=9))),
        ({"delay": [{"event": "l2_load", "latency-ns": 500_000_000}]}, Delay(0.5, "l2_load")),
    ],
)
def test_options(options: dict[str, Any], rule: object) -> None:
    assert parse_rules(options) == [rule]


@pytest.mark.parametrize(
    "options",
    [
        {"inject-errors": []},
        {"inject-error": "none"},
        {"inject-error": ["none"]},
        {"inject-error": {"1": {"event": "none"}}},
        {"inject-error": [{}]},
        {"inject-error": [{"event": "lunch"}]},
        {"inject-error": [{"event": "none", "errno": 99999}]},
        {"inject-error": [{"event": "none", "errno": "EWHAT"}]},
        {"inject-error": [{"event": "none", "iotype": "guess"}]},
        {"inject-error": [{"event": "none", "sector": "x"}]},
        {"inject-error": [{"event": "none", "state": 1 << 40}]},
        {"inject-error": [{"event": "none", "colour": "red"}]},
        {"set-state": [{"event": "none", "errno": 5}]},
        {"delay": [{"event": "none", "latency-ns": 1 << 62}]},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        parse_rules(options)


# -- names -----------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    vdisk.create(path, 1 << 20, format="qcow2")
    return path


def test_a_name_with_a_configuration(image: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text('[inject-error]\nevent = "cluster_alloc"\nerrno = "28"\nonce = "on"\n')
    with open_image(f"blkdebug:{rules}:{image}", readonly=False) as device:
        with pytest.raises(NoSpaceError):
            device.write(0, b"x")
        assert device.read(0, 1) == b"\0"
    with open_image(f"blkdebug::{image}", readonly=False) as device:
        device.write(0, b"x")
    with pytest.raises(NotFoundError):
        open_image(f"blkdebug:{rules}.not:{image}")


@pytest.mark.parametrize("name", ["blkdebug:", "blkdebug:x", "blkdebug:x:", "blkdebug::"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="form"):
        FILTER.parse_name(name)


def test_rules_in_a_json_name_and_in_image_options(image: Path) -> None:
    tree = {
        "driver": "qcow2",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(image)},
            "inject-error": [{"event": "write_aio", "errno": 5, "once": True}],
        },
    }
    text = (
        f"driver=qcow2,file.driver=blkdebug,file.image.filename={image},"
        "file.inject-error.0.event=write_aio,file.inject-error.0.errno=5,"
        "file.inject-error.0.once=on"
    )
    for name in ("json:" + json.dumps(tree), parse_image_options(text)):
        with open_image(name, readonly=False) as device:
            with pytest.raises(DeviceError) as caught:
                device.write(0, b"x")
            assert caught.value.errno == errno.EIO
            device.write(0, b"x")
            assert device.read(0, 1) == b"x"


def test_what_cannot_be_opened_leaves_nothing_open(image: Path) -> None:
    with pytest.raises(InvalidRequestError):
        open_image({"driver": "blkdebug", "image.filename": str(image), "inject-error": 1})
    with open_image(image, readonly=False) as device:  # no lock is left
        device.write(0, b"x")


def test_one_rule_needs_no_number() -> None:
    rule = {"event": "l2_load", "errno": "28"}
    assert parse_rules({"inject-error": rule}) == parse_rules({"inject-error": [rule]})


def test_reading_guest_data_is_an_event(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    vdisk.create(path, 1 << 20, format="qcow2")
    with vdisk.open(path, "r+") as image:
        image.write(0, b"x" * 65536)
    rule = {"event": "read_aio", "once": True}
    file = {"driver": "blkdebug", "image": {"filename": path}, "inject-error": [rule]}
    with open_image({"driver": "qcow2", "file": file}) as image:
        with pytest.raises(DeviceError):
            image.read(0, 512)
        assert image.read(0, 512) == b"x" * 512
