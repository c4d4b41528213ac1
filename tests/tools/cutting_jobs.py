"""Stories of whole programs that a loss of power may end: commit, rebase, convert, repair.

Jobs are run as a program would run them, by names.  Meanwhile every file that is opened for
writing is logged, all of them in one log, so that they lose power at the same moment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import vdisk
from tests.tools import damage, images, qemu
from tests.tools.scenes import IMAGE, open_files, pattern, stores
from vdisk.errors import CorruptImageError, VdiskError
from vdisk.filters.faults import Faults
from vdisk.filters.writelog import SECTOR, Operation, WriteLog
from vdisk.opening import creating
from vdisk.stores.file import FileStore
from vdisk.stores.file_protocol import FileProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vdisk.block import BlockDevice
    from vdisk.filters.faults import InjectError
    from vdisk.filters.writelog import Entry
    from vdisk.options import OptionBag
    from vdisk.stores import CacheMode, StoreSettings

UNIT = 1024
SIZE, LARGER = 48 * UNIT, 52 * UNIT


class _Unflushed(WriteLog):
    """The log of a file whose flushes are ignored."""

    def _flush(self) -> None:
        """As the cache mode "unsafe" wants it."""


@contextmanager
def recording(
    log: list[Entry], fault: InjectError | None = None, faulty: str = ""
) -> Iterator[None]:
    """While inside, what is written to files goes to ``log``, too, by the names of the files.

    ``fault``: a rule for the file called ``faulty``.
    """

    def logged(file: FileStore, path: str, *, ignored: bool) -> BlockDevice:
        name = path.rpartition("/")[2]
        device = (_Unflushed if ignored else WriteLog)(file, entries=log, device=name)
        return Faults(device, [fault]) if fault and name == faulty else device

    def open_file(_self: FileProtocol, options: OptionBag, settings: StoreSettings) -> BlockDevice:
        path = options.required("filename")
        options.finish()
        file = FileStore(path, readonly=settings.readonly, ignore_flush=True)
        if settings.readonly:
            return file
        return logged(file, path, ignored=settings.cache.no_flush)

    def create_file(path: str, cache: CacheMode, _secrets: Mapping[str, bytes]) -> BlockDevice:
        file = FileStore(path, readonly=False, create=True, ignore_flush=True)
        return logged(file, path, ignored=cache.no_flush)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(FileProtocol, "open", open_file))
        stack.enter_context(mock.patch.object(creating, "_create_file", create_file))
        yield


# -- jobs on a chain of images ---------------------------------------------------------------------


def commit(folder: Path) -> None:
    vdisk.commit(folder / "overlay.qcow2")


def commit_deep(folder: Path) -> None:
    vdisk.commit(folder / "overlay.qcow2", base=str(folder / "bottom.qcow2"))


def rebase(folder: Path) -> None:
    vdisk.rebase(folder / "overlay.qcow2", str(folder / "other.qcow2"), backing_format="qcow2")


def flatten(folder: Path) -> None:
    vdisk.rebase(folder / "overlay.qcow2", None)


def convert(folder: Path) -> None:
    _convert(folder, "qcow2", options={"cluster_size": UNIT})


def convert_compressed(folder: Path) -> None:
    _convert(folder, "qcow2", options={"cluster_size": UNIT}, compress=True)


def convert_to_raw(folder: Path) -> None:
    _convert(folder, "raw")


def convert_over(folder: Path) -> None:
    _convert(folder, "qcow2", target_exists=True, target="there.qcow2")


def _convert(folder: Path, format: str, *, target: str = "target", **options: Any) -> None:
    vdisk.convert(
        folder / "overlay.qcow2",
        folder / target,
        format="qcow2",
        target_format=format,
        target_cache="writeback",
        **options,
    )


Job = Callable[[Path], None]

JOBS: list[Job] = [
    commit,
    commit_deep,
    rebase,
    flatten,
    convert,
    convert_compressed,
    convert_to_raw,
    convert_over,
]
CHANGED: dict[Job, list[str]] = {
    commit: ["overlay.qcow2", "base.qcow2"],
    commit_deep: ["bottom.qcow2"],
    rebase: ["overlay.qcow2"],
    flatten: ["overlay.qcow2"],
    convert_over: ["there.qcow2"],
}
"""The files that a job writes to; those of the others are called "target"."""
CONVERTING = [convert, convert_compressed, convert_to_raw, convert_over]


def make_chain(folder: Path) -> None:
    """``bottom <- base <- overlay``, another base, and an image to be written over."""
    for name, seed in (("bottom", 1), ("other", 2), ("there", 3)):
        size = LARGER if name == "there" else SIZE
        images.create(folder / f"{name}.qcow2", size, cluster_size=UNIT)
        with images.open_image(folder / f"{name}.qcow2") as image:
            image.write(0, pattern(seed, 24 * UNIT))
    for name, below, size in (("base", "bottom", SIZE), ("overlay", "base", LARGER)):
        path = folder / f"{name}.qcow2"
        vdisk.create(
            path,
            size,
            options={"cluster_size": UNIT},
            format="qcow2",
            backing_file=f"{below}.qcow2",
            backing_format="qcow2",
        )
    with vdisk.open(folder / "base.qcow2", "r+") as disk:
        disk.write(3 * UNIT, pattern(4, 4 * UNIT))
        disk.write_zeroes(10 * UNIT, 2 * UNIT)
    with vdisk.open(folder / "overlay.qcow2", "r+") as disk:
        disk.write(5 * UNIT, pattern(5, 6 * UNIT))
        disk.write(25 * UNIT + 100, pattern(6, UNIT))
        disk.write_zeroes(15 * UNIT, 3 * UNIT)


def read(path: Path, format: str = "qcow2") -> bytes:
    with vdisk.open(path, format=format) as disk:
        return disk.read(0, disk.size)


class JobStory:
    """A job in ``folder``, which holds a chain of images."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        fault: InjectError | None = None,
        faulty: str = "",
    ) -> None:
        self.job = job
        self.folder = folder
        self.names = CHANGED.get(job, ["target"])
        make_chain(folder)
        folder.joinpath("target").unlink(missing_ok=True)
        self.contents = {name: self._file(name) for name in sorted(_IMAGES)}
        self.initial: Mapping[str, bytes] = {name: self._file(name) for name in self.names}
        self.disks = {name: read(folder / name) for name in sorted(_IMAGES)}
        self.format = "raw" if job is convert_to_raw else "qcow2"
        self.log: list[Entry] = []
        with recording(self.log, fault, faulty):
            try:
                job(folder)
                self.done = len(self.log)
            except VdiskError:
                if fault is None:
                    raise
                self.done = 1 << 62

    def _file(self, name: str) -> bytes:
        path = self.folder / name
        return path.read_bytes() if path.exists() else b""

    def check(self, files: Mapping[str, bytes], position: int, folder: Path | None) -> None:
        for name, content in {**self.contents, **files}.items():
            self.folder.joinpath(name).write_bytes(content)
        done = position >= self.done
        for name in self.names:
            if not self._is_nothing_yet(name, position):
                self._check_file(name, look=folder is not None)
        if self.job in CONVERTING:
            self._check_target(position, done=done)
            return
        wanted = self.disks["overlay.qcow2"]
        if self.job is commit_deep:
            self._check_bottom(done=done)
        else:
            assert read(self.folder / "overlay.qcow2") == wanted
        if done and self.job is commit:
            assert read(self.folder / "base.qcow2") == wanted
        if done and self.job in (rebase, flatten):
            below = vdisk.info(self.folder / "overlay.qcow2").backing_filename
            assert below == (str(self.folder / "other.qcow2") if self.job is rebase else None)

    def _is_nothing_yet(self, name: str, position: int) -> bool:
        """An image in the making, whose header was never stable: it may not even open."""
        if self.initial[name]:
            return False
        mine = [entry for entry in self.log[:position] if entry.device == name]
        begun = [entry.operation is Operation.WRITE and entry.offset == 0 for entry in mine]
        made = begun.index(True) if True in begun else len(mine)
        return not any(entry.operation is Operation.FLUSH for entry in mine[made:])

    def _check_file(self, name: str, *, look: bool) -> None:
        if self.format == "raw":
            return
        path = self.folder / name
        result = vdisk.check(path, format="qcow2")
        assert not result.corruptions + result.check_errors, (name, result.findings)
        if look:
            assert qemu.img("check", "-f", "qcow2", path, check=False).returncode in (0, 3)
        if result.leaks:
            assert vdisk.check(path, format="qcow2", repair="leaks").clean, name
        if look:
            assert qemu.img("check", "-f", "qcow2", path, check=False).returncode == 0

    def _check_target(self, position: int, *, done: bool) -> None:
        (name,) = self.names
        wanted = self.disks["overlay.qcow2"]
        try:
            found = read(self.folder / name, self.format)
        except VdiskError:
            assert self._is_nothing_yet(name, position)
            return
        before = self.disks.get(name, b"").ljust(len(wanted), b"\0")
        if done:
            assert found[: len(wanted)] == wanted
        elif not self._is_nothing_yet(name, position):
            _each_sector(found, [before, wanted, bytes(len(wanted))])

    def _check_bottom(self, *, done: bool) -> None:
        bottom = read(self.folder / "bottom.qcow2")
        before, wanted = self.disks["bottom.qcow2"], self.disks["overlay.qcow2"]
        _each_sector(bottom, [before.ljust(len(wanted), b"\0"), wanted])
        assert not done or bottom == wanted


_IMAGES = ["overlay.qcow2", "base.qcow2", "bottom.qcow2", "other.qcow2", "there.qcow2"]


def _each_sector(found: bytes, allowed: list[bytes]) -> None:
    for start in range(0, len(found), SECTOR):
        sector = found[start : start + SECTOR]
        assert sector in [one[start : start + SECTOR] for one in allowed], f"sector at {start}"


# -- repair ----------------------------------------------------------------------------------------

MENDABLE = [
    "refcount too high",
    "refcount zero",
    "refcount of an L2 table zero",
    "a leaked cluster",
    "COPIED set on a shared cluster",
    "L1 entry with reserved bits",
    "L1 table as L2 table",
    "L2 entry past the end",
    "two L2 entries, one cluster",
    "L2 table as its own data",
    "L1 table as data",
    "refcount block as data",
    "refcount block missing",
    "two blocks in one cluster",
    "refcount table not aligned",
    "snapshot's L1 table is the active one",
    "snapshot's L2 table past the end",
]
"""Damages that a repair mends, the disk being the same before and after it, if it can be read."""


class RepairStory:
    """An image with that damage is repaired: cut short, the disk reads as before, and a second
    repair ends it."""

    def __init__(self, name: str, fault: InjectError | None = None) -> None:
        content = damage.damaged(damage.sample(snapshot=True, cluster_size=1024), name)
        self.initial: Mapping[str, bytes] = {IMAGE: content}
        self.log: list[Entry] = []
        self.done = 1 << 62
        self.before = self._disk(content)
        self.mended = self._repaired(content)[1]
        assert self.before in (None, self.mended)
        file: BlockDevice = WriteLog(stores(self.initial)[IMAGE], entries=self.log, device=IMAGE)
        file = Faults(file, [fault]) if fault else file
        try:
            with open_files({IMAGE: file}, repairing=True) as image:
                if image.check(repair={"leaks", "errors"}).clean:
                    self.done = len(self.log)
        except VdiskError:
            pass

    @staticmethod
    def _disk(content: bytes) -> bytes | None:
        """What the disk holds; None where the damage keeps it from being read."""
        with open_files(stores({IMAGE: content}), readonly=True, repairing=True) as image:
            try:
                return image.read(0, image.size)
            except CorruptImageError:
                return None

    @staticmethod
    def _repaired(content: bytes) -> tuple[bytes, bytes]:
        """The file and the disk after a whole repair."""
        files = stores({IMAGE: content})
        with open_files(files, repairing=True) as image:
            result = image.check(repair={"leaks", "errors"})
            assert result.clean, result.remaining
            disk = image.read(0, image.size)
        return files[IMAGE].content(), disk

    def check(self, files: Mapping[str, bytes], position: int, folder: Path | None) -> None:
        assert self._disk(files[IMAGE]) in (self.before, self.mended)
        if position >= self.done:
            with open_files(stores(files), readonly=True) as image:
                assert not image.check().corruptions
        file, disk = self._repaired(files[IMAGE])
        assert disk == self.mended
        if folder is not None:
            folder.joinpath(IMAGE).write_bytes(file)
            qemu.check(folder / IMAGE)
