"""Encrypted volumes and qcow2 images against qemu-img, qemu-io (7.2) and cryptsetup (2.6)."""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.tools import peers
from tests.tools.peers import requires_peer
from vdisk import formats
from vdisk.errors import AuthenticationError, UnsupportedFeatureError
from vdisk.opening import open_image
from vdisk.opening.creating import plan_creation

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from vdisk.block import BlockDevice
    from vdisk.formats import CreateOption
    from vdisk.formats.luks import LuksImage
    from vdisk.formats.qcow2 import Qcow2Image

pytestmark = requires_peer("qemu-img", "qemu-io")

MiB = 1 << 20
SECRETS = {"s": b"first passphrase", "new": b"second passphrase"}
OBJECTS = [
    word
    for name, value in SECRETS.items()
    for word in ("--object", f"secret,id={name},data={value.decode()}")
]
ACCURATE = b"Unable to get accurate CPU usage"

VOLUME: dict[str, Any] = {"key-secret": "s", "iter-time": 10, "hash-alg": "sha512"}
"""Options of most volumes. QEMU times its key derivation in ticks of the clock, and gives up
where it takes less than one, as SHA-256 does on most machines; SHA-512 is slow enough."""


# -- the two sides ---------------------------------------------------------------------------------


def qemu_img(command: str, *arguments: str) -> bytes:
    """qemu-img with the secrets, again where it could not time the key derivation."""
    for _attempt in range(60):
        done = peers.run("qemu-img", command, *OBJECTS, *arguments, check=False)
        if done.returncode == 0:
            return done.stdout
        if ACCURATE not in done.stderr:
            break
    raise AssertionError(done.stderr.decode())


def joined(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def qemu_create(path: Path, size: int, format: str, options: dict[str, Any]) -> None:
    qemu_img("create", "-q", "-f", format, "-o", joined(options), str(path), str(size))


def qemu_name(path: Path, format: str, secret: str = "s") -> str:
    prefix = "" if format == "luks" else "encrypt."
    return f"driver={format},{prefix}key-secret={secret},file.filename={path}"


def qemu_io(path: Path, format: str, *commands: str, secret: str = "s") -> None:
    """qemu-io commands on an encrypted image: all must succeed, all patterns must match."""
    words = [word for command in commands for word in ("-c", command)]
    name = qemu_name(path, format, secret)
    done = peers.run("qemu-io", *OBJECTS, "--image-opts", name, *words, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"failed" not in done.stdout, done.stdout


def qemu_info(path: Path) -> dict[str, Any]:
    info = json.loads(peers.run("qemu-img", "info", "--output=json", str(path)).stdout)
    data: dict[str, Any] = info["format-specific"]["data"]
    return data


def vdisk_create(path: Path, size: int, format: str, options: dict[str, Any]) -> None:
    plan_creation(str(path), size, format=format, options=options, secrets=SECRETS).run()


def vdisk_open(
    path: Path, format: str, *, secret: str = "s", readonly: bool = False
) -> BlockDevice:
    prefix = "" if format == "luks" else "encrypt."
    return open_image(
        str(path),
        format=format,
        readonly=readonly,
        secrets=SECRETS,
        options={f"{prefix}key-secret": secret},
    )


def exchange(path: Path, format: str, size: int) -> None:
    """Each side reads what the other wrote, whole sectors and parts of sectors."""
    qemu_io(path, format, f"write -P 0x5a 0 {size}", "write -P 0x11 1000 3000")
    expected = bytearray(b"\x5a" * size)
    expected[1000:4000] = b"\x11" * 3000
    with vdisk_open(path, format) as image:
        assert image.read(0, size) == expected
        assert image.read(999, 3) == b"\x5a\x11\x11"
        image.write(100_001, b"\x22" * 70_000)
        image.write(200_704, b"\x33" * 65536)
        image.write_zeroes(300_000, 100_000)
    qemu_io(
        path,
        format,
        "read -P 0x5a 0 1000",
        "read -P 0x11 1000 3000",
        "read -P 0x5a 4000 96001",
        "read -P 0x22 100001 70000",
        "read -P 0x33 200704 65536",
        "read -P 0 300000 100000",
        f"read -P 0x5a 400000 {size - 400_000}",
    )


# -- luks ------------------------------------------------------------------------------------------

HASHES = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")


def possible(cipher: str, mode: str, ivgen: str) -> bool:
    """Does QEMU make such a volume?  (192-bit keys end inside a sector, where 7.2 aborts.)"""
    if cipher == "cast5-128":
        return mode != "xts" and ivgen != "essiv"
    return cipher != "aes-192" or mode == "xts"


def sampled_options() -> list[dict[str, str]]:
    """Every cipher with every mode and IV generator, each with one of the hashes."""
    chooser = random.Random(1)
    ciphers = ("aes-128", "aes-192", "aes-256", "cast5-128")
    combinations = itertools.product(
        ciphers, ("xts", "cbc", "ctr", "ecb"), ("plain", "plain64", "essiv")
    )
    found = []
    for number, (cipher, mode, ivgen) in enumerate(combinations):
        if possible(cipher, mode, ivgen):
            options = {"cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": ivgen}
            options["hash-alg"] = HASHES[number % len(HASHES)]
            if ivgen == "essiv":
                options["ivgen-hash-alg"] = chooser.choice(["sha256", "md5"])
            found.append(options)
    return found


def name_of(options: dict[str, str]) -> str:
    return "-".join(options.values())


@pytest.mark.parametrize("options", sampled_options()[::4], ids=name_of)
def test_volumes_made_by_qemu(tmp_path: Path, options: dict[str, str]):
    path = tmp_path / "disk.luks"
    qemu_create(path, MiB, "luks", {**VOLUME, **options})
    with open_image(str(path)) as image:
        assert image.format_name == "luks"
        assert image.format_info() == qemu_info(path)
        assert image.size == MiB
    exchange(path, "luks", MiB)


@pytest.mark.parametrize("options", sampled_options(), ids=name_of)
def test_volumes_made_by_vdisk(tmp_path: Path, options: dict[str, str]):
    path = tmp_path / "disk.luks"
    vdisk_create(path, MiB, "luks", {**VOLUME, **options, "iter-time": 0})
    with vdisk_open(path, "luks", readonly=True) as image:
        assert image.format_info() == qemu_info(path)
    exchange(path, "luks", MiB)


def test_defaults_are_those_of_qemu(tmp_path: Path):
    ours, theirs = tmp_path / "ours.luks", tmp_path / "theirs.luks"
    vdisk_create(ours, MiB, "luks", {"key-secret": "s", "iter-time": 0})
    qemu_create(theirs, MiB, "luks", {"key-secret": "s", "iter-time": 10})
    assert ours.stat().st_size == theirs.stat().st_size
    assert ours.stat().st_blocks <= theirs.stat().st_blocks + 16
    described = [qemu_info(path) for path in (ours, theirs)]
    for info in described:
        for changing in ("uuid", "master-key-iters"):
            del info[changing]
        del info["slots"][0]["iters"]
    assert described[0] == described[1]
    # the bytes that describe cipher, key size and layout, and the unused slots
    first, second = (path.read_bytes()[:592] for path in (ours, theirs))
    assert first[:112] == second[:112]
    assert first[256:] == second[256:]


def test_what_qemu_has_and_we_do_not_is_named(tmp_path: Path):
    path = tmp_path / "disk.luks"
    qemu_create(path, MiB, "luks", {**VOLUME, "cipher-alg": "serpent-256"})
    with open_image(str(path)) as image:  # locked, but described
        assert image.format_info() == qemu_info(path)
    with pytest.raises(UnsupportedFeatureError, match="serpent-256"):
        vdisk_open(path, "luks")


def test_a_file_that_ends_inside_a_sector(tmp_path: Path):
    path = tmp_path / "disk.luks"
    qemu_create(path, 1000, "luks", VOLUME)
    with vdisk_open(path, "luks", readonly=True) as image:
        assert image.size == 1024


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_preallocation(tmp_path: Path, mode: str):
    path = tmp_path / "disk.luks"
    vdisk_create(path, MiB, "luks", {"key-secret": "s", "iter-time": 0, "preallocation": mode})
    assert path.stat().st_blocks * 512 >= MiB
    exchange(path, "luks", MiB)


def test_sectors_far_into_the_volume(tmp_path: Path):
    """Past 2**32 sectors, where "plain" begins again and "plain64" does not."""
    far = 2**41 + 512 * 7
    for ivgen in ("plain", "plain64"):
        path = tmp_path / f"{ivgen}.luks"
        options = {"key-secret": "s", "iter-time": 0, "ivgen-alg": ivgen}
        vdisk_create(path, 2**41 + MiB, "luks", options)
        with vdisk_open(path, "luks") as image:
            image.write(far, b"\x77" * 4096)
        qemu_io(path, "luks", f"read -P 0x77 {far} 4096", f"write -P 0x78 {far + 4096} 4096")
        with vdisk_open(path, "luks", readonly=True) as image:
            assert image.read(far, 8192) == b"\x77" * 4096 + b"\x78" * 4096


# -- passphrases -----------------------------------------------------------------------------------


def amend(image: LuksImage | Qcow2Image, options: dict[str, Any], prefix: str) -> None:
    image.amend({prefix + name: value for name, value in options.items()})


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_passphrases_changed_by_vdisk(tmp_path: Path, format: str):
    path = tmp_path / "disk"
    prefix = "" if format == "luks" else "encrypt."
    qemu_create(path, MiB, format, encrypted(VOLUME) if prefix else VOLUME)
    qemu_io(path, format, "write -P 0x42 0 64k")
    with vdisk_open(path, format) as image:
        amend(image, {"state": "active", "new-secret": "new", "iter-time": 10}, prefix)
    qemu_io(path, format, "read -P 0x42 0 64k", secret="new")
    qemu_io(path, format, "read -P 0x42 0 64k", secret="s")
    with vdisk_open(path, format, secret="new") as image:
        amend(image, {"state": "inactive", "old-secret": "s"}, prefix)
    qemu_io(path, format, "read -P 0x42 0 64k", secret="new")
    with pytest.raises(AssertionError, match="Invalid password"):
        qemu_io(path, format, "read 0 64k", secret="s")


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_passphrases_changed_by_qemu(tmp_path: Path, format: str):
    path = tmp_path / "disk"
    prefix = "" if format == "luks" else "encrypt."
    vdisk_create(path, MiB, format, encrypted(VOLUME) if prefix else VOLUME)
    with vdisk_open(path, format) as image:
        image.write(0, b"kept")

    def qemu_amend(**changes: Any) -> None:
        dashed = {prefix + name.replace("_", "-"): value for name, value in changes.items()}
        qemu_img("amend", "--image-opts", "-o", joined(dashed), qemu_name(path, format))

    qemu_amend(state="active", new_secret="new", keyslot=6, iter_time=10)
    qemu_amend(state="inactive", keyslot=0)
    with vdisk_open(path, format, secret="new", readonly=True) as image:
        assert image.read(0, 4) == b"kept"
    with pytest.raises(AuthenticationError, match="Invalid password"):
        vdisk_open(path, format)


# -- qcow2 -----------------------------------------------------------------------------------------


def encrypted(options: dict[str, Any], format: str = "luks") -> dict[str, Any]:
    """The options of a volume as those of an encrypted qcow2."""
    if format == "aes":
        options = {"key-secret": options["key-secret"]}
    return {"encrypt.format": format, **{f"encrypt.{name}": v for name, v in options.items()}}


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"extended_l2": "on", "cluster_size": 32768},
    {"cluster_size": 512},
    {"cluster_size": 2 * MiB},
    {"compat": "0.10"},
    {"refcount_bits": 1},
    {"lazy_refcounts": "on"},
]


def check(path: Path) -> None:
    report = json.loads(
        qemu_img("check", "--output=json", "--image-opts", qemu_name(path, "qcow2"))
    )
    assert not report.get("corruptions")
    assert not report.get("leaks")
    assert not report["check-errors"]


@pytest.mark.parametrize(
    ("maker", "method", "layout"),
    [
        *itertools.product(["vdisk"], ["luks", "aes"], LAYOUTS),
        *itertools.product(["qemu"], ["aes"], LAYOUTS),
        *itertools.product(["qemu"], ["luks"], LAYOUTS[:2]),  # seconds each
    ],
    ids=str,
)
def test_qcow2(tmp_path: Path, maker: str, method: str, layout: dict[str, Any]):
    path = tmp_path / "disk.qcow2"
    create = qemu_create if maker == "qemu" else vdisk_create
    options = encrypted(VOLUME, method)
    create(path, 4 * MiB, "qcow2", {**options, **layout})
    check(path)
    with open_image(str(path)) as image:
        theirs, ours = qemu_info(path), image.format_info()
        assert ours["encrypt"] == theirs["encrypt"]
        assert ours == theirs
    exchange(path, "qcow2", MiB)
    check(path)
    qemu_io(path, "qcow2", f"read -P 0 {MiB} {3 * MiB}")


@pytest.mark.parametrize("method", ["luks", "aes"])
def test_the_guest_data_of_a_qcow2_is_not_in_the_file(tmp_path: Path, method: str):
    path = tmp_path / "disk.qcow2"
    vdisk_create(path, MiB, "qcow2", encrypted({"key-secret": "s", "iter-time": 0}, method))
    with vdisk_open(path, "qcow2") as image:
        image.write(0, b"plain text" * 1000)
        image.write(70_000, b"plain text")
    assert b"plain text" not in path.read_bytes()


@pytest.mark.parametrize("method", ["luks", "aes"])
def test_copy_on_write_over_a_plain_backing_file(tmp_path: Path, method: str):
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    content = random.Random(2).randbytes(MiB)
    base.write_bytes(content)
    options = encrypted({"key-secret": "s", "iter-time": 0}, method)
    vdisk_create(path, MiB, "qcow2", {**options, "backing_file": str(base), "backing_fmt": "raw"})
    expected = bytearray(content)
    with vdisk_open(path, "qcow2") as image:
        for offset, length in ((5, 10), (65_000, 1000), (200_000, 300), (500_000, 200_000)):
            image.write(offset, b"\x99" * length)
            expected[offset : offset + length] = b"\x99" * length
        assert image.read(0, MiB) == expected
    plain = tmp_path / "plain.raw"
    qemu_img("convert", "--image-opts", "-O", "raw", qemu_name(path, "qcow2"), str(plain))
    assert plain.read_bytes() == expected
    check(path)


@pytest.mark.parametrize("method", ["luks", "aes"])
def test_snapshots_of_encrypted_images(tmp_path: Path, method: str):
    path = tmp_path / "disk.qcow2"
    vdisk_create(path, MiB, "qcow2", encrypted({"key-secret": "s", "iter-time": 0}, method))
    with vdisk_open(path, "qcow2") as image:
        image.write(0, b"\x01" * 200_000)
        image.create_snapshot("ours")
        image.write(100, b"\x02" * 100_000)
    name = qemu_name(path, "qcow2")
    qemu_img("snapshot", "--image-opts", "-c", "theirs", name)
    qemu_io(path, "qcow2", "write -P 3 0 64k")
    with vdisk_open(path, "qcow2") as image:
        with image.open_snapshot("theirs") as view:
            assert view.read(0, 1000) == b"\x01" * 100 + b"\x02" * 900
        with image.open_snapshot("ours") as view:
            assert view.read(0, 200_000) == b"\x01" * 200_000
        image.apply_snapshot("theirs")
    qemu_io(path, "qcow2", "read -P 2 100 100000", "read -P 1 100100 99900")
    qemu_img("snapshot", "--image-opts", "-a", "ours", name)
    qemu_io(path, "qcow2", "read -P 1 0 200000", "read -P 0 200000 500000")
    check(path)


def test_external_data_file(tmp_path: Path):
    path = tmp_path / "disk.qcow2"
    options = encrypted({"key-secret": "s", "iter-time": 0})
    vdisk_create(path, MiB, "qcow2", {**options, "data_file": str(tmp_path / "disk.data")})
    exchange(path, "qcow2", MiB)
    check(path)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocated_clusters_read_as_zeroes(tmp_path: Path, mode: str):
    """(In QEMU they read as noise.)"""
    path = tmp_path / "disk.qcow2"
    options = encrypted({"key-secret": "s", "iter-time": 0})
    vdisk_create(path, MiB, "qcow2", {**options, "preallocation": mode})
    qemu_io(path, "qcow2", f"read -P 0 0 {MiB}")
    exchange(path, "qcow2", MiB)
    check(path)


def test_growing_an_encrypted_image(tmp_path: Path):
    path = tmp_path / "disk.qcow2"
    vdisk_create(path, MiB, "qcow2", encrypted({"key-secret": "s", "iter-time": 0}))
    with vdisk_open(path, "qcow2") as image:
        image.write(0, b"\x05" * MiB)
        image.resize(2 * MiB, "falloc")
    qemu_io(path, "qcow2", f"read -P 5 0 {MiB}", f"read -P 0 {MiB} {MiB}")
    check(path)


def test_compression_and_encryption_exclude_each_other(tmp_path: Path):
    path = tmp_path / "disk.qcow2"
    vdisk_create(path, MiB, "qcow2", encrypted({"key-secret": "s", "iter-time": 0}))
    with vdisk_open(path, "qcow2") as image:
        packed = image.compress_cluster(bytes(65536))
        with pytest.raises(UnsupportedFeatureError, match="encryption"):
            image.write_compressed(0, packed)


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_measured_sizes_are_those_of_qemu(format: str):
    options = encrypted(VOLUME) if format == "qcow2" else VOLUME
    words = ("-O", format, "-o", joined(options), "--size", str(10 * MiB))
    answer = json.loads(qemu_img("measure", "--output=json", *words))
    expected = (answer["required"], answer["fully-allocated"])
    assert formats.driver(format).measure(10 * MiB, options) == expected


def test_locked_images_show_their_metadata(tmp_path: Path):
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MiB, "qcow2", encrypted(VOLUME))
    qemu_io(path, "qcow2", "write -P 1 0 64k")
    with open_image(str(path)) as image:
        first, second = list(image.map())
        assert (first.length, second.reads_zero) == (65536, True)
        assert image.read(65536, 100) == bytes(100)
        with pytest.raises(AuthenticationError, match=r"encrypt\.key-secret"):
            image.read(0, 1)


# -- cryptsetup ------------------------------------------------------------------------------------


QUICK = ("--pbkdf-force-iterations", "1000")


def cryptsetup(
    *arguments: str, passphrase: bytes = SECRETS["s"]
) -> subprocess.CompletedProcess[bytes]:
    return peers.run("cryptsetup", "-q", *arguments, input=passphrase, check=False)


@pytest.fixture
def kernel_cipher(tmp_path: Path) -> None:
    """cryptsetup has the kernel encrypt key slots, which not every kernel does for everybody."""
    path = tmp_path / "probe.luks"
    path.write_bytes(bytes(4 * MiB))
    done = cryptsetup("luksFormat", "--type", "luks1", *QUICK, str(path))
    if done.returncode:
        pytest.skip(f"cryptsetup cannot use this kernel's ciphers: {done.stderr.decode()}")


@requires_peer("cryptsetup")
@pytest.mark.usefixtures("kernel_cipher")
@pytest.mark.parametrize(
    ("cipher", "key_bits", "hash"),
    [
        ("aes-xts-plain64", 512, "sha256"),
        ("aes-xts-plain64", 256, "sha1"),
        ("aes-cbc-essiv:sha256", 256, "sha512"),
        ("aes-cbc-plain64", 192, "ripemd160"),  # key material that ends inside a sector
        ("aes-cbc-plain", 128, "sha384"),
    ],
)
def test_volumes_made_by_cryptsetup(tmp_path: Path, cipher: str, key_bits: int, hash: str):
    path = tmp_path / "disk.luks"
    path.write_bytes(bytes(4 * MiB))
    words = ("--cipher", cipher, "--key-size", str(key_bits), "--hash", hash)
    done = cryptsetup("luksFormat", "--type", "luks1", *QUICK, *words, str(path))
    if hash == "ripemd160" and done.returncode:
        pytest.skip(f"cryptsetup has no {hash} here")
    assert done.returncode == 0, done.stderr
    with vdisk_open(path, "luks") as image:
        amend(image, {"state": "active", "new-secret": "new", "iter-time": 10}, "")
        amend(image, {"state": "inactive", "old-secret": "s"}, "")
        image.write(0, b"\x66" * MiB)
    opened = cryptsetup("open", "--test-passphrase", str(path), passphrase=SECRETS["new"])
    assert opened.returncode == 0, opened.stderr
    assert cryptsetup("open", "--test-passphrase", str(path)).returncode != 0


@requires_peer("cryptsetup")
@pytest.mark.usefixtures("kernel_cipher")
def test_volumes_made_by_vdisk_in_cryptsetup(tmp_path: Path):
    path = tmp_path / "disk.luks"
    options = {"key-secret": "s", "iter-time": 0, "cipher-alg": "aes-192", "cipher-mode": "cbc"}
    vdisk_create(path, MiB, "luks", options)
    assert cryptsetup("open", "--test-passphrase", str(path)).returncode == 0
    with vdisk_open(path, "luks") as image:
        image.write(0, b"kept")
    new = tmp_path / "new"
    new.write_bytes(SECRETS["new"])
    done = cryptsetup("luksAddKey", *QUICK, str(path), str(new))
    assert done.returncode == 0, done.stderr
    assert cryptsetup("luksKillSlot", str(path), "0", passphrase=SECRETS["new"]).returncode == 0
    with vdisk_open(path, "luks", secret="new") as image:
        assert image.read(0, 4) == b"kept"


def test_every_creation_option_is_known_to_qemu():
    help_text = peers.run("qemu-img", "create", "-f", "luks", "-o", "help").stdout.decode()
    options: tuple[CreateOption, ...] = formats.driver("luks").create_options
    ours = {option.name for option in options}
    theirs = {line.split("=")[0].strip() for line in help_text.splitlines() if "=<" in line}
    assert theirs <= ours
    assert ours - theirs == {"preallocation"}
