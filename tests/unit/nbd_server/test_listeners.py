"""Places to listen at that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vdisk.errors import InvalidRequestError, UnsupportedFeatureError
from vdisk.nbd_serving.listeners import labelled_sockets, tcp_sockets

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("host", ["..", "a" * 64, "\udcff", "no such host"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequestError):
        tcp_sockets(host, 0)


def test_sockets_are_labelled_while_they_are_made(tmp_path: Path) -> None:
    place = tmp_path / "sockcreate"
    place.write_bytes(b"")
    with labelled_sockets("system_u:object_r:svirt_t:s0", str(place)):
        assert place.read_bytes() == b"system_u:object_r:svirt_t:s0\0"
    with labelled_sockets(None, "/nonexistent"):
        pass
    with (
        pytest.raises(UnsupportedFeatureError, match="SELinux is off"),
        labelled_sockets("a:b:c:d", str(tmp_path / "nothing")),
    ):
        raise AssertionError("not reached")
