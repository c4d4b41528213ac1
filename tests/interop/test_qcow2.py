"""qcow2 images made by one side and read, written, checked and compared by the other.

Peers: qemu-img and qemu-io (written against QEMU 7.2).
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import images, qemu
from tests.tools.peers import requires_peer, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_peer("qemu-img", "qemu-io")

SIZE = 5 << 20

COMPATS = ("0.10", "1.1")
CLUSTER_SIZES = (512, 4096, 65536, 2 << 20)
REFCOUNT_BITS = (1, 2, 4, 8, 16, 32, 64)
PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def combinations() -> list[dict[str, Any]]:
    """Creation options: every value of each, and every pair of values that can go together."""
    axes: dict[str, tuple[Any, ...]] = {
        "compat": COMPATS,
        "cluster_size": CLUSTER_SIZES,
        "refcount_bits": REFCOUNT_BITS,
        "preallocation": PREALLOCATIONS,
        "lazy_refcounts": (False, True),
        "compression_type": ("zlib", "zstd"),
        "extended_l2": (False, True),
    }
    found: list[dict[str, Any]] = []
    for (first, values), (second, others) in itertools.combinations(axes.items(), 2):
        for value, other in itertools.product(values, others):
            options = {first: value, second: other}
            if possible(options):
                found.append(options)
    return found


def possible(options: dict[str, Any]) -> bool:
    if options.get("compat") == "0.10" and (
        options.get("refcount_bits", 16) != 16
        or options.get("lazy_refcounts")
        or options.get("compression_type") == "zstd"
        or options.get("extended_l2")
    ):
        return False
    return not options.get("extended_l2") or options.get("cluster_size", 65536) >= 16384


def name_of(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def change(image: Any, model: bytearray, seed: int) -> None:
    """Some writes, zeroes, discards and compressed clusters, done to the model too."""
    rng = random.Random(seed)
    size, unit = len(model), image.cluster_size
    for _ in range(12):
        offset = rng.randrange(size)
        length = min(rng.choice([1, 4096, 65536, 200_000]), size - offset)
        if rng.random() < 0.6:
            data = rng.randbytes(length)
            image.write(offset, data)
        else:
            data = bytes(length)
            image.write_zeroes(offset, length, unmap=rng.random() < 0.5)
        model[offset : offset + length] = data
    cluster = bytes([rng.randrange(256)]) * unit
    compressed = image.compress_cluster(cluster)
    assert compressed is not None
    image.write_compressed(0, compressed)
    model[:unit] = cluster


@pytest.mark.parametrize("options", combinations(), ids=name_of)
def test_ours_is_theirs(tmp_path: Path, options: dict[str, Any]) -> None:
    path, raw = tmp_path / "ours.qcow2", tmp_path / "expected.raw"
    images.create(path, SIZE, **options)
    assert qemu.check(path)["check-errors"] == 0
    model = bytearray(SIZE)
    with images.open_image(path) as image:
        change(image, model, 1)
    raw.write_bytes(model)
    qemu.check(path)
    qemu.compare(path, raw, "-f", "qcow2", "-F", "raw")
    io = ["write -P 0x5a 100000 300000", "write -z 0 70000", "discard 2M 2M", "write -c -P 7 4M 4k"]
    if options.get("cluster_size") != 4096 or options.get("preallocation", "off") != "off":
        io.pop()  # qemu-io compresses whole clusters that are not allocated yet
    run("qemu-io", "-d", "unmap", "-f", "qcow2", *(w for c in io for w in ("-c", c)), path)
    run("qemu-io", "-d", "unmap", "-f", "raw", *(w for c in io[:2] for w in ("-c", c)), raw)
    expected = bytearray(raw.read_bytes())
    expected[2 << 20 : 4 << 20] = bytes(2 << 20)
    if len(io) == 4:
        expected[4 << 20 : (4 << 20) + 4096] = bytes([7]) * 4096
    with images.open_image(path) as image:
        assert image.read(0, SIZE) == expected
        change(image, expected, 2)
    raw.write_bytes(expected)
    qemu.check(path)
    qemu.compare(path, raw, "-f", "qcow2", "-F", "raw")


@pytest.mark.parametrize("options", combinations(), ids=name_of)
def test_theirs_is_ours(tmp_path: Path, options: dict[str, Any]) -> None:
    path, raw = tmp_path / "theirs.qcow2", tmp_path / "expected.raw"
    qemu.create(path, SIZE, **options)
    with images.open_image(path, readonly=True) as image:
        assert image.size == SIZE
        assert image.read(0, SIZE) == bytes(SIZE)
        facts = image.format_info()
    assert facts == qemu.img_json("info", path)["format-specific"]["data"]
    model = bytearray(SIZE)
    with images.open_image(path) as image:
        change(image, model, 3)
    raw.write_bytes(model)
    qemu.check(path)
    qemu.compare(path, raw, "-f", "qcow2", "-F", "raw")


@pytest.mark.parametrize("raw_file", [False, True], ids=["data_file", "data_file_raw"])
def test_external_data_file(tmp_path: Path, raw_file: bool) -> None:
    path, data = tmp_path / "image.qcow2", tmp_path / "data.raw"
    qemu.create(path, SIZE, data_file=data, data_file_raw=raw_file)
    model = bytearray(SIZE)
    with images.open_image(path) as image:
        image.write(70_000, b"x" * 200_000)
        image.write_zeroes(65536 * 3, 65536)
        image.discard(65536, 65536)
        model[70_000:270_000] = b"x" * 200_000
        model[65536 : 65536 * 2] = bytes(65536)
        model[65536 * 3 : 65536 * 4] = bytes(65536)
        assert image.read(0, SIZE) == model
    qemu.check(path)
    assert qemu.content(path) == model
    if raw_file:
        assert data.read_bytes() == model


def test_snapshots_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, SIZE)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", path)
    qemu.img("snapshot", "-c", "theirs", path)
    with images.open_image(path) as image:
        image.write(0, b"\x02" * (1 << 19))
        image.create_snapshot("ours", date=1_700_000_000.5, vm_clock_nsec=61_000_000_000)
        image.resize(SIZE * 2)
        image.write(SIZE, b"\x03" * 4096)
    qemu.check(path)
    listed = qemu.img_json("info", path)["snapshots"]
    assert [(s["id"], s["name"]) for s in listed] == [("1", "theirs"), ("2", "ours")]
    assert (listed[1]["date-sec"], listed[1]["date-nsec"]) == (1_700_000_000, 500_000_000)
    assert (listed[1]["vm-clock-sec"], listed[1]["vm-state-size"]) == (61, 0)
    qemu.img("snapshot", "-a", "ours", path)
    qemu.img("snapshot", "-d", "theirs", path)
    qemu.check(path)
    with images.open_image(path) as image:
        assert image.size == SIZE
        half = 1 << 19
        assert image.read(0, 1 << 20) == b"\x02" * half + b"\x01" * half
        image.apply_snapshot("ours")
        image.delete_snapshot("2")
        assert image.snapshots() == []
    qemu.check(path)


def test_unknown_extensions_survive(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    images.create(path, SIZE)
    with images.open_image(path) as image:
        image.header.extensions.append((0x12345678, b"not known here"))
        image.change_backing(None, None)
    qemu.img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
    with images.open_image(path) as image:
        assert (0x12345678, b"not known here") in image.header.extensions
        assert image.header.lazy_refcounts
        image.amend({"refcount_bits": 8})
    with images.open_image(path, readonly=True) as image:
        assert (0x12345678, b"not known here") in image.header.extensions
    qemu.check(path)


def test_shared_clusters_of_a_preallocated_chain(tmp_path: Path) -> None:
    """Subclusters under preallocation leave the backing file visible (QEMU allows only these)."""
    base, path = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(random.Random(1).randbytes(SIZE))
    images.create(
        path,
        SIZE,
        extended_l2=True,
        preallocation="metadata",
        backing_file=str(base),
        backing_fmt="raw",
    )
    qemu.compare(path, base, "-f", "qcow2", "-F", "raw")
    with images.open_image(path) as image:
        image.write(5000, b"y" * 10)
    qemu.check(path)
    expected = bytearray(base.read_bytes())
    expected[5000:5010] = b"y" * 10
    assert qemu.content(path) == expected
