"""Machines saved in their disks, loaded again, and loaded from files that somebody has damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import vdisk
from tests.tools import peers
from tests.tools import small_guests as guests
from tests.tools.patience import PATIENCE
from tests.tools.peers import requires_peer
from vdisk.errors import (
    CorruptImageError,
    DeviceError,
    FormatError,
    InvalidRequestError,
    NotFoundError,
    VdiskError,
)
from vdisk.formats.qcow2 import Qcow2Image
from vdisk.vm import Machine
from vdisk.vm._machine import sections
from vdisk.vm.monitor.control import RunState

pytestmark = requires_peer("nasm")
MIB = 1 << 20
TABLES = 4
"""Clusters of tables that a machine's state needs, and that may stay."""

COUNTER = (
    guests.TIMER
    + """
    ; for each byte received: the next letter, from a register, from memory, from a timer's ticks
    mov bl, 'A'
    mov byte [0x5000], 'a'
    sti
    mov al, '>'
    call putc
again:
    hlt
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz again
    mov dx, 0x3f8
    in al, dx
    mov al, bl
    call putc
    inc bl
    mov al, [0x5000]
    call putc
    inc byte [0x5000]
    jmp again
tick:
    push ax
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
"""
)

MakeSaved = Callable[..., Machine]


@pytest.fixture
def again(make: guests.Make, tmp_path: Path) -> MakeSaved:
    """Makes machines that count, all on the same disk."""

    def again(**options: Any) -> Machine:
        if not (tmp_path / "disk.qcow2").exists():
            vdisk.create(tmp_path / "disk.qcow2", 4 * MIB, format="qcow2")
        return make(COUNTER, **{"disks": [tmp_path / "disk.qcow2"], **options})

    return again


def ask(machine: Machine, expected: str) -> None:
    machine.serial[0].send(".")
    machine.run_until(serial=expected, timeout=PATIENCE)


def test_a_machine_goes_on_from_where_it_was_saved(again: MakeSaved, tmp_path: Path) -> None:
    machine = again()
    machine.run_until(serial=">", timeout=PATIENCE)
    ask(machine, "Aa")
    machine.save("first")
    assert machine.state is RunState.RUNNING
    ask(machine, "Bb")
    ask(machine, "Cc")
    machine.load("first")
    ask(machine, "Bb")
    (saved,) = machine.saving.snapshots()
    assert saved.tag == "first" and saved.vm_clock_ns > 0
    machine.close()
    other = again()  # another process might do this
    other.load("first")
    assert other.state is RunState.PRELAUNCH
    other.start()
    ask(other, "Bb")


@requires_peer("qemu-img")
def test_disks_are_saved_with_the_machine(again: MakeSaved, tmp_path: Path) -> None:
    vdisk.create(tmp_path / "second.qcow2", MIB, format="qcow2")
    machine = again(disks=[tmp_path / "disk.qcow2", f"{tmp_path}/second.qcow2,if=virtio"])
    disk = machine.drives.find("virtio0").disk.device
    assert disk is not None
    disk.write(0, b"before")
    machine.run_until(serial=">", timeout=PATIENCE)
    machine.save("one")
    disk.write(0, b"after!")
    machine.save("one")  # replaces it
    disk.write(0, b"later!")
    machine.load("one")
    assert disk.read(0, 6) == b"after!"
    machine.saving.delete("one")
    with pytest.raises(NotFoundError):
        machine.saving.delete("one")
    machine.close()
    for name in ("disk", "second"):
        peers.run("qemu-img", "check", tmp_path / f"{name}.qcow2")


def test_what_cannot_be_saved_says_why(again: MakeSaved, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(MIB))
    with pytest.raises(InvalidRequestError, match="ide0-hd0 is not a qcow2 image"):
        again(disks=[f"{tmp_path}/raw,format=raw"]).save("x")
    with pytest.raises(InvalidRequestError, match="no writable qcow2 disk"):
        again(disks=[]).save("x")
    with pytest.raises(InvalidRequestError, match="needs a name"):
        again().save("")


@pytest.mark.parametrize("step", ["the state", "the snapshot", "the second disk"])
def test_saving_that_fails_leaves_nothing(
    again: MakeSaved, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even clusters: what was written of the machine is given back."""
    vdisk.create(tmp_path / "second.qcow2", MIB, format="qcow2")
    machine = again(disks=[tmp_path / "disk.qcow2", tmp_path / "second.qcow2"])
    ask(machine, "Aa")
    machine.memory.write(MIB, random.Random(1).randbytes(2 * MIB))
    image = machine.drives.find("ide0-hd0").disk.device
    assert isinstance(image, Qcow2Image)
    before = _clusters_in_use(image)
    with monkeypatch.context() as patch:
        if step == "the state":
            patch.setattr(sections.Writer, "finish", _no_space)
        else:
            create = Qcow2Image.create_snapshot
            bad = "second" if step == "the second disk" else "disk"

            def failing(self: Qcow2Image, tag: str, **options: Any) -> Any:
                if bad in self.name:
                    _no_space()
                return create(self, tag, **options)

            patch.setattr(Qcow2Image, "create_snapshot", failing)
        with pytest.raises(DeviceError, match="no space"):
            machine.save("x")
    assert _clusters_in_use(image) <= before + TABLES
    assert machine.saving.snapshots() == []
    ask(machine, "Bb")
    machine.save("x")
    machine.close()
    for name in ("disk", "second"):
        peers.run("qemu-img", "check", tmp_path / f"{name}.qcow2")


def _no_space(*_arguments: object) -> None:
    raise DeviceError("there is no space left")


def _clusters_in_use(image: Qcow2Image) -> int:
    image.flush()
    refcounts = image._core.refcounts
    return sum(refcounts.count(cluster) > 0 for cluster in range(refcounts.last_used() + 1))


def test_another_machine_is_refused_and_nothing_has_changed(again: MakeSaved) -> None:
    machine = again()
    machine.run_until(serial=">", timeout=PATIENCE)
    machine.save("here")
    ask(machine, "Aa")
    with pytest.raises(NotFoundError, match="no snapshot 'there'"):
        machine.load("there")
    ask(machine, "Bb")
    machine.close()
    other = again(memory=8 * MIB)
    other.run_until(serial=">", timeout=PATIENCE)
    with pytest.raises(InvalidRequestError, match="other memory: 4194304"):
        other.load("here")
    ask(other, "Aa")


def test_a_snapshot_of_the_disk_alone_is_no_machine(again: MakeSaved, tmp_path: Path) -> None:
    machine = again()
    image = machine.drives.find("ide0-hd0").disk.device
    assert isinstance(image, Qcow2Image)
    image.create_snapshot("disk only")
    assert machine.saving.snapshots() == []
    with pytest.raises(FormatError, match="no state of a machine"):
        machine.load("disk only")
    image.create_snapshot("other", vm_state=b"QEVM" + bytes(100))
    with pytest.raises(FormatError, match="not vdisk's"):
        machine.load("other")


def saved_file(machine: Machine) -> list[sections.Section]:
    image = machine.drives.find("ide0-hd0").disk.device
    assert isinstance(image, Qcow2Image)
    view = image.open_snapshot("good")
    found = list(sections.sections(view.read_vm_state, view.snapshot.vm_state_size))
    view.close()
    return found


def store(machine: Machine, found: list[sections.Section], tag: str) -> None:
    data = bytearray()

    def write(offset: int, piece: bytes) -> None:
        data[offset : offset + len(piece)] = piece

    writer = sections.Writer(write)
    for section in found:
        writer.section(section.kind, section.data)
    writer.finish()
    image = machine.drives.find("ide0-hd0").disk.device
    assert isinstance(image, Qcow2Image)
    image.create_snapshot(tag, vm_state=bytes(data))


def changed(section: sections.Section, change: Callable[[Any], None]) -> sections.Section:
    state = sections.read_state(section)
    change(state)
    text = json.dumps(state, default=sections._encode).encode()
    return section._replace(data=zstandard.compress(text))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("devices"),
        lambda state: state["devices"].pop("pic"),
        lambda state: state["devices"]["pit"].update(counters=3),
        lambda state: state.update(clock=-1),
        lambda state: state["processors"].clear(),
        lambda state: state["processors"][0]["vcpu"]["registers"].update(gprs=[0]),
        lambda state: state["processors"][0]["vcpu"]["system"].update(cs=None),
    ],
    ids=["no devices", "no pic", "no counters", "clock", "no processors", "gprs", "cs"],
)
def test_impossible_chips_are_an_error_and_a_reset_helps(
    again: MakeSaved, change: Callable[[Any], None]
) -> None:
    machine = again()
    machine.run_until(serial=">", timeout=PATIENCE)
    machine.save("good")
    found = saved_file(machine)
    store(machine, [*found[:-1], changed(found[-1], change)], "bad")
    with pytest.raises(CorruptImageError):
        machine.load("bad")
    assert machine.state is RunState.INTERNAL_ERROR and "could not be loaded" in machine.error
    machine.reset()
    machine.run_until(serial=">", timeout=PATIENCE)


def test_a_damaged_file_leaves_the_machine_as_it_is(again: MakeSaved) -> None:
    machine = again()
    machine.run_until(serial=">", timeout=PATIENCE)
    machine.save("good")
    found = saved_file(machine)
    ram = next(section for section in found if section.kind == sections.RAM)
    head = sections.RAM_HEAD
    damaged = {
        "cut": [found[0]],
        "elsewhere": [*found, ram._replace(data=head.pack(64 * MIB, 0, 4) + bytes(4))],
        "length": [*found, ram._replace(data=head.pack(0, 0, 4) + bytes(5))],
        "bomb": [*found, ram._replace(data=head.pack(0, 1, 4) + zstandard.compress(bytes(MIB)))],
        "form": [*found, ram._replace(data=head.pack(0, 7, 4) + bytes(4))],
        "json": [found[0], *found[1:-1], found[-1]._replace(data=zstandard.compress(b"[" * 9999))],
    }
    for tag, content in damaged.items():
        store(machine, content, tag)
        with pytest.raises(VdiskError):
            machine.load(tag)
    ask(machine, "Aa")
    assert machine.state is RunState.RUNNING
