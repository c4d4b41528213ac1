"""Images to boot, made from Debian's packages without root: boot loaders on disks and CD-ROMs."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tools import ext4, peers

if TYPE_CHECKING:
    from collections.abc import Mapping

GREETING = "hello from syslinux"
SYSLINUX_MBR = Path("/usr/lib/SYSLINUX/mbr.bin")
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
SYSLINUX_MODULES = Path("/usr/lib/syslinux/modules/bios")

SYSLINUX_CONFIG = f"PROMPT 1\nTIMEOUT 0\nSAY {GREETING}\nDEFAULT none\nLABEL none\n KERNEL none\n"
GRUB_CONFIG = """
set timeout=-1
menuentry "First choice" { echo "chosen: one"; sleep 600 }
menuentry "Second choice" { echo "chosen: two"; sleep 600 }
"""
GRUB = Path("/usr/lib/grub/i386-pc")
MEMTEST = Path("/boot/memtest86+x64.bin")
DISKETTE = 1440 << 10
GRUB_GRAPHICS = """
set gfxmode=800x600x32
loadfont unicode
insmod all_video
insmod gfxterm
terminal_output gfxterm
"""
GRUB_FONT = Path("/usr/share/grub/unicode.pf2")
MIB = 1 << 20
DISK_SIZE = 64 * MIB
SECTOR = 512
PARTITION_START = 2048
FAT32_LBA, LINUX = 0x0C, 0x83
LABEL = "installed"


def syslinux_floppy(directory: Path) -> Path:
    """A 1.44 MB diskette with syslinux on FAT12."""
    image = directory / "floppy.img"
    peers.run("mformat", "-C", "-f", "1440", "-i", image, "::")
    _install_syslinux(directory, image, 0)
    return image


def syslinux_disk(
    directory: Path, config: str = SYSLINUX_CONFIG, files: Mapping[str, Path] | None = None
) -> Path:
    """A disk with one FAT32 partition, syslinux on it and syslinux's MBR before it.

    ``files``: what else it holds, by name.
    """
    image = directory / "disk.img"
    sectors = DISK_SIZE // SECTOR - PARTITION_START
    _partition(image, SYSLINUX_MBR.read_bytes(), FAT32_LBA)
    place, shape = f"{image}@@1M", ("-h", "255", "-s", "63", "-T", str(sectors))
    peers.run("mformat", "-i", place, *shape, "-H", str(PARTITION_START), "-v", LABEL, "-F", "::")
    for name, source in (files or {}).items():
        peers.run("mcopy", "-i", place, source, f"::{name}")
    _install_syslinux(directory, image, PARTITION_START * SECTOR, config)
    return image


def grub_disk(
    directory: Path,
    config: str,
    files: Mapping[str, Path] | None = None,
    *,
    tree: Path | None = None,
    size: int = DISK_SIZE,
) -> Path:
    """A disk with one ext4 partition (:data:`LABEL`), and GRUB on both as grub-install leaves it.

    The MBR loads GRUB's core from the sectors behind it, and that its modules and configuration
    from the file system.  ``tree``: what the partition holds beside GRUB, which is added there
    too; ``files``: what else is in ``/boot``, by name.
    """
    image, core = directory / "disk.img", directory / "core.img"
    tree = tree or directory / "tree"
    grub = tree / "boot" / "grub"
    (grub / GRUB.name).mkdir(parents=True)
    for module in (*GRUB.glob("*.mod"), *GRUB.glob("*.lst")):
        shutil.copy(module, grub / GRUB.name)
    (grub / "grub.cfg").write_text(config)
    for name, source in (files or {}).items():
        shutil.copy(source, tree / "boot" / name)
    peers.run("grub-mkimage", "-O", GRUB.name, "-p", "(hd0,msdos1)/boot/grub", "-o", core,
              "biosdisk", "part_msdos", "ext2")  # fmt: skip
    _partition(image, (GRUB / "boot.img").read_bytes(), LINUX, size)
    with image.open("r+b") as file:
        file.seek(SECTOR)
        file.write(core.read_bytes())
    ext4.make_partition(image, PARTITION_START * SECTOR, size, LABEL, tree)
    return image


def _partition(image: Path, boot_code: bytes, kind: int, size: int = DISK_SIZE) -> None:
    """An empty disk but for an MBR, which has an active partition from 1 MiB to the end."""
    sectors = size // SECTOR - PARTITION_START
    first, overflow = b"\x20\x21\x00", b"\xfe\xff\xff"  # CHS says: look at the LBA
    entry = struct.pack("<B3sB3sII", 0x80, first, kind, overflow, PARTITION_START, sectors)
    with image.open("wb") as file:
        file.write(boot_code[:440].ljust(446, b"\0") + entry + bytes(48) + b"\x55\xaa")
        file.truncate(size)


def _install_syslinux(
    directory: Path, image: Path, offset: int, config: str = SYSLINUX_CONFIG
) -> None:
    file = directory / "syslinux.cfg"
    file.write_text(config)
    peers.run("mcopy", "-i", f"{image}@@{offset}", file, "::")
    peers.run("syslinux", "-t", str(offset), "--install", image)


def isolinux(directory: Path) -> Path:
    """A CD-ROM with isolinux, booted without emulation."""
    tree = directory / "tree"
    tree.mkdir()
    shutil.copy(ISOLINUX, tree)
    shutil.copy(SYSLINUX_MODULES / "ldlinux.c32", tree)
    (tree / "isolinux.cfg").write_text(SYSLINUX_CONFIG)
    options = ("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    return _cdrom(directory, tree, "isolinux.bin", *options)


def floppy_on_cdrom(directory: Path) -> Path:
    """A CD-ROM whose boot image is a diskette."""
    tree = directory / "tree"
    tree.mkdir()
    syslinux_floppy(tree)
    return _cdrom(directory, tree, "floppy.img")


def _cdrom(directory: Path, tree: Path, boot: str, *options: str) -> Path:
    image = directory / "cd.iso"
    peers.run(
        "xorriso", "-as", "mkisofs", "-quiet", "-o", image, "-b", boot, "-c", "boot.cat",
        *options, tree,
    )  # fmt: skip
    return image


def grub_rescue(directory: Path, config: str = GRUB_CONFIG) -> Path:
    """GRUB on an image that boots as a CD-ROM and as a disk."""
    tree = directory / "tree"
    (tree / "boot" / "grub").mkdir(parents=True)
    (tree / "boot" / "grub" / "grub.cfg").write_text(config)
    if GRUB_GRAPHICS in config:
        (tree / "boot" / "grub" / "fonts").mkdir()
        shutil.copy(GRUB_FONT, tree / "boot" / "grub" / "fonts")
    image = directory / "grub.iso"
    peers.run("grub-mkrescue", "-o", image, tree)
    return image


def memtest_floppy(directory: Path) -> Path:
    """memtest86+ on a diskette, which its own boot sector loads."""
    image = directory / "memtest.img"
    image.write_bytes(MEMTEST.read_bytes().ljust(DISKETTE, b"\0"))
    return image


def memtest_cdrom(directory: Path) -> Path:
    """memtest86+ on a CD-ROM, which isolinux loads as it does Linux."""
    tree = directory / "tree"
    tree.mkdir()
    shutil.copy(ISOLINUX, tree)
    shutil.copy(SYSLINUX_MODULES / "ldlinux.c32", tree)
    shutil.copy(MEMTEST, tree / "memtest")
    (tree / "isolinux.cfg").write_text("DEFAULT m\nLABEL m\n LINUX memtest\n")
    options = ("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    return _cdrom(directory, tree, "isolinux.bin", *options)
