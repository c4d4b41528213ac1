"""Places to listen at that are none."""

from __future__ import annotations

import pytest

from vdisk.errors import InvalidRequestError
from vdisk.nbd_serving.listeners import tcp_sockets


@pytest.mark.parametrize("host", ["..", "a" * 64, "\udcff", "no such host"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequestError):
        tcp_sockets(host, 0)
