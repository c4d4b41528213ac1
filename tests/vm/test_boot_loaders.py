"""Boot loaders from Debian on the whole machine: our BIOS or SeaBIOS, our chips, our processor."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

import vdisk
from tests.tools import bootable, peers
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.errors import InvalidRequestError, NotFoundError
from vdisk.vm import Machine
from vdisk.vm.monitor.control import MachineEvent

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
ACCELERATORS = [each for each in guests.accelerators() if each != "kvm"]
"""A paravirtual KVM lacks instructions that boot loaders use."""


@pytest.fixture(params=ACCELERATORS or [pytest.param("none", marks=pytest.mark.skip("llvmlite"))])
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@requires_peer("syslinux", "mformat", "mcopy")
@pytest.mark.parametrize(
    ("interface", "kind"), [("ide", "raw"), ("virtio", "qcow2"), ("ide", "chain")]
)
def test_syslinux_boots_from_a_disk(tmp_path: Path, accel: str, interface: str, kind: str) -> None:
    raw = bootable.syslinux_disk(tmp_path)
    image = raw
    if kind != "raw":
        image = tmp_path / "disk.qcow2"
        vdisk.create(image, format="qcow2", backing_file=str(raw), backing_format="raw")
    if kind == "chain":
        top = tmp_path / "top.qcow2"
        vdisk.create(top, format="qcow2", backing_file=str(image), backing_format="qcow2")
        image = top
    options = ",format=raw" if kind == "raw" else ""
    with Machine(
        memory=32 * MIB, accel=accel, disks=[f"{image},if={interface},snapshot=on{options}"]
    ) as machine:
        machine.run_until(screen="boot:", timeout=PATIENCE)
        assert bootable.GREETING in machine.screen_text()
        machine.type_keys("hello")
        machine.run_until(screen="boot: hello", timeout=PATIENCE)


@requires_peer("grub-mkrescue", "xorriso")
@guests.either_firmware
def test_grub_boots_from_a_cdrom(tmp_path: Path, accel: str, bios: str | None) -> None:
    image = bootable.grub_rescue(tmp_path)
    with Machine(memory=64 * MIB, accel=accel, bios=bios, cdroms=[str(image)]) as machine:
        machine.run_until(screen="GNU GRUB", timeout=PATIENCE)
        machine.screenshot(str(tmp_path / "menu.png"))
    assert (tmp_path / "menu.png").stat().st_size > 1000


@requires_peer("xorriso")
def test_another_cdrom_is_put_in_while_the_machine_waits(tmp_path: Path, accel: str) -> None:
    image = bootable.isolinux(tmp_path)
    events: list[MachineEvent] = []
    with Machine(memory=32 * MIB, accel=accel, cdroms=[None]) as machine:
        machine.subscribe(events.append)
        machine.run_until(screen="any key", timeout=PATIENCE)
        with pytest.raises(NotFoundError, match="there is no drive 'cd'"):
            machine.insert("cd", str(image))
        machine.insert("ide1-cd0", str(image))
        machine.press_keys("spc")
        machine.run_until(screen="boot:", timeout=PATIENCE)
        machine.eject("ide1-cd0", force=True)
        (drive,) = machine.control.drives()
        assert drive.medium is None and drive.tray_open
        moves = [event.data["tray-open"] for event in events if event.name == "DEVICE_TRAY_MOVED"]
        assert moves[-2:] == [False, True]


@requires_peer("nasm", "xorriso")
def test_a_cdrom_once_and_then_the_disk(tmp_path: Path, accel: str) -> None:
    disk, cdrom = guests.boot_disk(tmp_path, "'B'"), bootable.isolinux(tmp_path)
    with Machine(
        memory=32 * MIB, accel=accel, disks=[disk], cdroms=[str(cdrom)], boot="c,once=d"
    ) as machine:
        machine.run_until(screen="boot:", timeout=PATIENCE)
        machine.reset()
        machine.run_until(serial="B", timeout=PATIENCE)
        assert machine.serial[0].output() == b"B"


@requires_peer("nasm")
@guests.either_firmware
def test_the_boot_menu(tmp_path: Path, accel: str, bios: str | None) -> None:
    disks = []
    for name in "AB":
        (tmp_path / name).mkdir()
        disks.append(guests.boot_disk(tmp_path / name, f"'{name}'"))
    with Machine(
        memory=32 * MIB, accel=accel, disks=disks, bios=bios, boot="menu=on,splash-time=60000"
    ) as machine:
        machine.run_until(screen="boot menu", timeout=PATIENCE)
        machine.press_keys("esc")
        machine.run_until(screen="2. ", timeout=PATIENCE)
        machine.type_keys("2")
        machine.run_until(serial="B", timeout=PATIENCE)
        assert machine.serial[0].output() == b"B"


@requires_peer("nasm")
@guests.either_firmware
@pytest.mark.parametrize("strict", [False, True])
def test_a_strict_order_boots_nothing_else(
    tmp_path: Path, accel: str, bios: str | None, strict: bool
) -> None:
    boot = "order=d,strict=on" if strict else "d"
    disk = guests.boot_disk(tmp_path, "'B'")
    with Machine(memory=32 * MIB, accel=accel, disks=[disk], bios=bios, boot=boot) as machine:
        if strict:
            machine.run_until(screen="No bootable device", timeout=PATIENCE)
            assert machine.serial[0].output() == b""
        else:
            machine.run_until(serial="B", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("firmware", "prompt"),
    [
        ("/usr/share/ovmf/OVMF.fd", "UEFI Interactive Shell"),
        ("/usr/lib/u-boot/qemu-x86_64/u-boot.rom", "Hit any key to stop autoboot"),
    ],
    ids=["OVMF", "U-Boot"],
)
def test_other_firmware_begins(firmware: str, prompt: str) -> None:
    """What expects a PC's chips, MSRs and modes before any BIOS has touched them."""
    peers.check_required([firmware])
    with Machine(memory=256 * MIB, accel="llvm", bios=firmware) as machine:
        machine.run_until(serial=prompt, timeout=2 * PATIENCE)


def test_grub_is_firmware() -> None:
    """It sets up the video card itself, and its registers no further than QEMU needs."""
    firmware = "/usr/share/qemu/grub.bin"
    peers.check_required([firmware])
    with Machine(memory=64 * MIB, accel="llvm", bios=firmware) as machine:
        machine.run_until(screen="Search & load /boot/multiboot.img", timeout=PATIENCE)


@guests.either_firmware
def test_a_machine_without_a_disk_starts_again(accel: str, bios: str | None) -> None:
    resets = threading.Event()
    with Machine(memory=32 * MIB, accel=accel, bios=bios, boot="reboot-timeout=100") as machine:
        machine.subscribe(lambda event: resets.set() if event.name == "RESET" else None)
        machine.start()
        assert resets.wait(PATIENCE), machine.screen_text()


def test_a_disk_is_no_cdrom(tmp_path: Path, accel: str) -> None:
    vdisk.create(tmp_path / "disk.qcow2", MIB, format="qcow2")
    with Machine(memory=4 * MIB, accel=accel, disks=[tmp_path / "disk.qcow2"]) as machine:
        with pytest.raises(InvalidRequestError, match="not removable"):
            machine.eject("ide0-hd0")
        with pytest.raises(InvalidRequestError, match="removable"):
            machine.insert("ide0-hd0", str(tmp_path / "disk.qcow2"))


@requires_peer("qemu-img")
def test_a_running_disk_goes_on_in_an_overlay(tmp_path: Path, accel: str) -> None:
    vdisk.create(tmp_path / "disk.qcow2", MIB, format="qcow2")
    with Machine(memory=4 * MIB, accel=accel, disks=[tmp_path / "disk.qcow2"]) as machine:
        machine.start()
        disk = machine.drives.find("ide0-hd0").disk
        assert disk.device is not None
        disk.device.write(0, b"below")
        machine.control.snapshot_disk("ide0-hd0", str(tmp_path / "top.qcow2"))
        disk.device.write(512, b"above")
        (drive,) = machine.control.drives()
        assert drive.medium is not None
        assert drive.medium.filename == str(tmp_path / "top.qcow2")
        assert drive.medium.backing == [str(tmp_path / "disk.qcow2")]
        with pytest.raises(InvalidRequestError, match="already"):
            machine.control.snapshot_disk("ide0-hd0", str(tmp_path / "disk.qcow2"))
    with vdisk.open(tmp_path / "top.qcow2") as top, vdisk.open(tmp_path / "disk.qcow2") as below:
        assert (top.read(0, 5), top.read(512, 5)) == (b"below", b"above")
        assert below.read(512, 5) == bytes(5)


@requires_peer("syslinux", "mformat", "mcopy")
@guests.either_firmware
def test_syslinux_boots_from_a_diskette(tmp_path: Path, accel: str, bios: str | None) -> None:
    """By our BIOS's int 13h; and by SeaBIOS's, which drives the controller and its DMA."""
    floppy = f"{bootable.syslinux_floppy(tmp_path)},format=raw,snapshot=on"
    disk = guests.boot_disk(tmp_path, "'B'")
    with Machine(
        memory=32 * MIB, accel=accel, bios=bios, boot="a", floppies=[floppy], disks=[disk]
    ) as machine:
        machine.run_until(screen="boot:", timeout=PATIENCE)
        assert bootable.GREETING in machine.screen_text()
        assert machine.serial[0].output() == b""
        assert machine.statistics()["drives"]["floppy0"]["read"]["failed"] == 0


COPY = """
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov ax, 0x0212              ; both heads' sides of cylinder 70: 18 sectors each
    mov bx, 0x1000
    mov cx, 0x4601
    mov dx, 0x0000
    int 0x13
    jc failed
    mov ax, 0x0312
    mov bx, 0x1000
    mov cx, 0x4f01              ; to the last cylinder's other head
    mov dx, 0x0100
    int 0x13
    jc failed
    mov al, 'k'
    jmp say
failed:
    mov al, ah
say:
    mov dx, 0x3f8
    out dx, al
    cli
    hlt
times 510 - ($ - $$) db 0
dw 0xaa55
"""


@requires_peer("nasm")
@guests.either_firmware
def test_a_diskette_is_written_to(tmp_path: Path, accel: str, bios: str | None) -> None:
    content = bytearray(random.Random(70).randbytes(bootable.DISKETTE))
    content[:512] = guests.assemble(tmp_path, COPY)
    image = tmp_path / "floppy.img"
    image.write_bytes(content)
    with Machine(
        memory=4 * MIB, accel=accel, bios=bios, floppies=[f"{image},format=raw"]
    ) as machine:
        machine.run_until(serial="k", timeout=PATIENCE)
    track = 18 * 512
    content[159 * track :] = content[140 * track : 141 * track]
    assert image.read_bytes() == content
