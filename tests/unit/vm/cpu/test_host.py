"""Code is kept for the LLVM and the processor that it was compiled by and for."""

from __future__ import annotations

import os

import llvmlite
import pytest

from vdisk.vm.cpu import host

FIRST = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Xeon
stepping\t: 7
cpu MHz\t\t: 2596.122
flags\t\t: fpu sse2 avx2

"""


@pytest.fixture
def cpuinfo(tmp_path):
    def written(text: str) -> str:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return host.processor(str(path))

    return written


@pytest.mark.parametrize(
    "change",
    [
        ("GenuineIntel", "AuthenticAMD"),
        ("family\t: 6", "family\t: 15"),
        ("model\t\t: 85", "model\t\t: 86"),
        ("stepping\t: 7", "stepping\t: 8"),
        ("avx2", "avx2 avx512f"),
    ],
)
def test_a_processor_is_what_it_can_do(cpuinfo, change):
    assert cpuinfo(FIRST.replace(*change)) != cpuinfo(FIRST)


def test_its_speed_and_its_neighbours_do_not_count(cpuinfo):
    found = cpuinfo(FIRST)
    assert cpuinfo(FIRST.replace("2596", "3100")) == found
    assert cpuinfo(FIRST + FIRST.replace("avx2", "")) == found


@pytest.mark.parametrize("text", ["", "Processor\t: AArch64\n", FIRST.replace("flags", "Features")])
def test_llvm_is_asked_where_the_system_does_not_tell(cpuinfo, text):
    assert cpuinfo(text) == host.processor("/nowhere") != cpuinfo(FIRST)
    assert "sse2" in host.processor("/nowhere")


def test_this_host_tells():
    assert "sse2" in host.processor()


def test_an_exchanged_library_is_another_llvm(tmp_path, monkeypatch):
    library = tmp_path / "binding" / "libllvmlite.so"
    library.parent.mkdir()
    library.write_bytes(b"LLVM")
    monkeypatch.setattr(llvmlite, "__file__", str(tmp_path / "__init__.py"))
    found = host.llvm()
    assert llvmlite.__version__ in found
    (tmp_path / "binding" / "ffi.py").write_bytes(b"")
    assert host.llvm() == found
    os.utime(library, (1, 1))
    assert host.llvm() != found
