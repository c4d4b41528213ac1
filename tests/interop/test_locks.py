"""QEMU (7.2) and vdisk keep out of each other's images.

qemu-img and qemu-io lock as a machine would, but share raw images, where no metadata can be caught
half-written; vdisk, like a machine, shares nothing with a writer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tools import peers, qemu
from tests.tools.peers import requires_peer
from vdisk.errors import ImageLockedError
from vdisk.opening import open_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img", "qemu-io", "qemu-nbd")


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Path and format of an image that holds "abc"."""
    path = tmp_path / "image"
    qemu.create(path, 1 << 20, request.param)
    qemu.io(path, "write -P 0x61 0 64k", format=request.param)
    return str(path), request.param


def qemu_can_open(path: str, format: str, *flags: str) -> bool:
    """Whether qemu-io gets the image; any complaint but one about a lock fails the test."""
    done = peers.run("qemu-io", "-f", format, *flags, "-c", "length", path, check=False)
    assert done.returncode == 0 or b"lock" in done.stderr, done.stderr
    return done.returncode == 0


# -- QEMU was first --------------------------------------------------------------------------------


@pytest.mark.parametrize("readonly", [True, False])
def test_an_image_that_qemu_writes_is_refused(image: tuple[str, str], readonly: bool) -> None:
    path, format = image
    with qemu.holding(path, format), pytest.raises(ImageLockedError) as caught:
        open_image(path, format=format, readonly=readonly)
    assert caught.value.path == path
    assert "force_share" in str(caught.value)


@pytest.mark.parametrize("readonly", [True, False])
def test_an_image_that_qemu_nbd_serves_is_refused(image: tuple[str, str], readonly: bool) -> None:
    path, format = image
    with qemu.nbd(path, format), pytest.raises(ImageLockedError):
        open_image(path, format=format, readonly=readonly)


def test_force_share_reads_what_qemu_writes(image: tuple[str, str]) -> None:
    path, format = image
    with (
        qemu.holding(path, format),
        open_image(path, format=format, force_share=True) as device,
    ):
        assert device.read(0, 3) == b"aaa"
        with pytest.raises(ImageLockedError):  # QEMU's lock is still there
            open_image(path, format=format)


def test_readers_share(image: tuple[str, str]) -> None:
    path, format = image
    with qemu.holding(path, format, readonly=True), open_image(path, format=format) as device:
        assert device.read(0, 3) == b"aaa"


def test_a_qcow2_image_that_qemu_reads_is_not_written(tmp_path: Path) -> None:
    path = str(tmp_path / "image")
    qemu.create(path, 1 << 20)
    with qemu.holding(path, "qcow2", readonly=True), pytest.raises(ImageLockedError):
        open_image(path, format="qcow2", readonly=False)


def test_the_lock_goes_with_the_process(image: tuple[str, str]) -> None:
    path, format = image
    with qemu.holding(path, format):
        pass
    with open_image(path, format=format, readonly=False) as device:
        device.write(0, b"new")


# -- vdisk was first -------------------------------------------------------------------------------


def test_qemu_refuses_what_vdisk_writes(image: tuple[str, str]) -> None:
    path, format = image
    with open_image(path, format=format, readonly=False):
        assert not qemu_can_open(path, format)
        assert qemu_can_open(path, format, "-r") == (format == "raw")
        assert qemu_can_open(path, format, "-r", "-U")
    assert qemu_can_open(path, format)


def test_qemu_reads_but_does_not_write_what_vdisk_reads(image: tuple[str, str]) -> None:
    path, format = image
    with open_image(path, format=format):
        assert qemu_can_open(path, format, "-r")
        assert not qemu_can_open(path, format)
    assert qemu_can_open(path, format)


def test_a_refused_opening_holds_nothing(image: tuple[str, str]) -> None:
    path, format = image
    with open_image(path, format=format):
        for _ in range(2):
            with pytest.raises(ImageLockedError):
                open_image(path, format=format, readonly=False)
        assert qemu_can_open(path, format, "-r")
    assert qemu_can_open(path, format)


# -- chains ----------------------------------------------------------------------------------------


def test_overlays_share_their_base(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu.create(base, 1 << 20)
    overlays = [tmp_path / "first.qcow2", tmp_path / "second.qcow2"]
    for overlay in overlays:
        qemu.img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
    with (
        qemu.holding(overlays[0], "qcow2"),
        open_image(str(overlays[1]), format="qcow2", readonly=False) as device,
    ):
        device.write(0, b"abc")
        with pytest.raises(ImageLockedError, match=r"base\.qcow2"):
            open_image(str(base), format="qcow2", readonly=False)
    with open_image(str(overlays[0]), format="qcow2", readonly=False):
        assert not qemu_can_open(str(base), "qcow2")
        assert qemu_can_open(str(overlays[1]), "qcow2")
