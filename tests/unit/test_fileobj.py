"""A device as a file object."""

from __future__ import annotations

import io
import os
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.errors import ClosedError
from vdisk.fileobj import DeviceFile
from vdisk.stores.memory import MemoryStore

SIZE = 64


@given(
    st.lists(
        st.tuples(st.just("read"), st.integers(0, 100))
        | st.tuples(st.just("write"), st.binary(max_size=SIZE // 2))
        | st.tuples(st.just("seek"), st.integers(0, SIZE)),
        max_size=20,
    )
)
def test_it_is_a_file_of_fixed_length(steps: list[tuple[str, object]]) -> None:
    device = MemoryStore(bytes(range(SIZE)), growable=False)
    model = io.BytesIO(bytes(range(SIZE)))
    with DeviceFile(device) as file:
        for name, argument in steps:
            if name == "write":
                assert isinstance(argument, bytes)
                model.write(argument[: SIZE - model.tell()])
                file.write(argument)
            else:
                expected = getattr(model, name)(argument)
                assert getattr(file, name)(argument) == expected
            assert file.tell() == model.tell()
    assert device.content() == model.getvalue()


def test_other_libraries_read_it() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("name", b"content" * 1000)
    device = MemoryStore(packed.getvalue(), growable=False)
    with io.BufferedReader(DeviceFile(device)) as file:
        assert zipfile.ZipFile(file).read("name") == b"content" * 1000
    assert not device.closed


def test_seeking() -> None:
    file = DeviceFile(MemoryStore(bytes(SIZE), growable=False, name="disk"))
    assert file.name == "disk"
    assert file.seek(-4, os.SEEK_END) == SIZE - 4
    assert file.seek(2, os.SEEK_CUR) == SIZE - 2
    assert len(file.read()) == 2
    assert file.seek(1000) == 1000
    assert file.read(1) == b""
    assert file.write(b"x") == 0
    for arguments in ((-1,), (0, 7)):
        with pytest.raises(ValueError):
            file.seek(*arguments)


def test_truncate_resizes_the_device() -> None:
    device = MemoryStore(bytes(SIZE))
    file = DeviceFile(device)
    assert file.truncate(2 * SIZE) == 2 * SIZE == device.size
    file.seek(8)
    assert file.truncate() == 8 == device.size


def test_read_only_devices_are_not_written() -> None:
    device = MemoryStore(bytes(SIZE))
    device.readonly = True
    file = DeviceFile(device)
    assert not file.writable()
    for write in (lambda: file.write(b"x"), lambda: file.truncate(1)):
        with pytest.raises(io.UnsupportedOperation):
            write()


def test_closed_files_and_closed_devices() -> None:
    device = MemoryStore(bytes(SIZE))
    file = DeviceFile(device)
    file.close()
    assert not device.closed
    for use in (file.tell, file.readable, file.writable, file.seekable, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    other = DeviceFile(device)
    device.close()
    with pytest.raises(ClosedError):
        other.read(1)
    other.close()
