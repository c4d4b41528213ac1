"""Stories that a loss of power may end at any point, and the trial of every end.

A story is told once: it writes to files whose writes are logged.  :func:`try_cuts` then builds,
for points of the log, the files that a cut there can leave, and the story says whether each of
them is as it ought to be.  All files of a story lose power at the same moment.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tests.tools.scenes import (
    BITMAPS,
    IMAGE,
    SNAPSHOTS,
    STRUCTURE,
    Operation,
    Scene,
    open_files,
    pattern,
    state_of,
    stores,
)
from vdisk.errors import VdiskError
from vdisk.filters.faults import Effect, Faults, InjectError, IoType, Where
from vdisk.filters.writelog import SECTOR, Cuts, Entry, WriteLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.tools.scenes import State

QEMU_EVERY = 25
"""One disk in so many is looked at by qemu-img, too."""


class Story(Protocol):
    """``initial``: the files that are written to, before; ``log``: what happened to them."""

    initial: Mapping[str, bytes]
    log: list[Entry]

    def check(self, files: Mapping[str, bytes], position: int, folder: Path | None) -> None:
        """Hold the files that a cut at that position of the log left against what they may hold.

        ``folder``: where qemu-img is to look at them; None leaves it out.
        """


class Thoroughness(NamedTuple):
    """How many points of a log are tried (None: all), and how many disks at one of them."""

    points: int | None = 6
    disks: int = 8


def try_cuts(
    story: Story, rng: random.Random, how: Thoroughness, folder: Path, counts: Counter[str]
) -> None:
    """Try the ends of a story; ``counts`` learns how many "points" and "disks" there were.

    "exhausted": points of which every disk was tried.
    """
    cuts = {name: Cuts(content, story.log, name) for name, content in story.initial.items()}
    for position in _points(len(story.log), how.points, rng):
        for one in cuts.values():
            one.advance(position)
        disks = _every(cuts, how.disks)
        counts["points"] += 1
        counts["exhausted"] += disks is not None
        for files in disks if disks is not None else _some(cuts, rng, how.disks):
            look = folder if counts["disks"] % QEMU_EVERY == 0 else None
            counts["disks"] += 1
            counts["seen by qemu-img"] += look is not None
            try:
                story.check(files, position, look)
            except BaseException as error:
                error.add_note(f"cut at {position} of {len(story.log)}")
                raise


def _points(length: int, most: int | None, rng: random.Random) -> list[int]:
    """Positions to cut at: the end among them, where everything is acknowledged."""
    if most is None or length < most:
        return list(range(length + 1))
    return [*sorted(rng.sample(range(length), most - 1)), length]


def _every(cuts: Mapping[str, Cuts], most: int) -> list[dict[str, bytes]] | None:
    """Every combination of what each file may be; None where there are more than ``most``."""
    each = []
    for one in cuts.values():
        disks = one.all(most)
        if disks is None:
            return None
        each.append([disk.content() for disk in disks])
        most //= len(disks)
    return [dict(zip(cuts, chosen, strict=True)) for chosen in itertools.product(*each)]


def _some(cuts: Mapping[str, Cuts], rng: random.Random, most: int) -> list[dict[str, bytes]]:
    """Combinations by chance, each file by itself: where one kept all another may keep nothing."""
    each = {}
    for name, one in cuts.items():
        disks = one.some(rng, most)
        rng.shuffle(disks)
        each[name] = [disk.content() for disk in disks]
    return [
        {name: disks[number % len(disks)] for name, disks in each.items()} for number in range(most)
    ]


# -- one operation on one image --------------------------------------------------------------------

DURABLE = [*SNAPSHOTS, *STRUCTURE, *BITMAPS]
"""What is stable when it has returned; the others are when a flush has."""
ANY = frozenset(IoType) - {IoType.BLOCK_STATUS}


class OperationStory:
    """An operation on the image of a scene, a flush, one more write, and the end of the handle.

    ``fault``: a rule for the file that has the ``role``; it goes when the operation and the flush
    are over, if it is to strike once only.
    """

    def __init__(
        self,
        scene: Scene,
        operation: Operation,
        fault: InjectError | None = None,
        role: str = IMAGE,
    ) -> None:
        self.scene = scene
        self.operation = operation
        self.initial: Mapping[str, bytes] = {name: scene.initial[name] for name in scene.changing}
        self.log: list[Entry] = []
        self.after = _after(scene, operation)
        self.done = self.probed = self.stable = 1 << 62
        """From which position on the operation is stable, the last write may be there, and is."""
        self._tell(fault, role)

    def _tell(self, fault: InjectError | None, role: str) -> None:
        files = stores(self.scene.initial)
        faults = Faults(WriteLog(files[role], entries=self.log, device=role))
        logged = {
            name: faults if name == role else WriteLog(files[name], entries=self.log, device=name)
            for name in self.scene.changing
        }
        image = open_files({**files, **logged})
        if fault is not None:
            faults.set_rules(fault)
        returned = _succeeds(lambda: self.operation(image))
        if returned and self.operation in DURABLE:
            self.done = len(self.log)
        flushed = _succeeds(image.flush)
        if returned and flushed:
            self.done = min(self.done, len(self.log))
        if fault is None or fault.where.once:
            faults.set_rules()
        self.probed = len(self.log)
        if _succeeds(lambda: image.write(0, PROBE)) and _succeeds(image.flush):
            self.stable = len(self.log)
        _succeeds(image.close)

    def check(self, files: Mapping[str, bytes], position: int, folder: Path | None) -> None:
        contents = {**self.scene.initial, **files}
        probed = position > self.probed
        self.scene.inspect(
            self.operation,
            contents,
            self.after,
            head=SECTOR if probed else 0,
            done=position >= self.done,
            folder=folder,
        )
        if position >= self.stable:
            with open_files(stores(contents), repairing=True) as image:
                assert image.read(0, SECTOR) == PROBE


PROBE = pattern(99, SECTOR)
_AFTER: dict[tuple[int, str], State] = {}


def _after(scene: Scene, operation: Operation) -> State:
    """What the operation leaves when nothing comes between."""
    key = id(scene), operation.__name__
    if key not in _AFTER:
        with open_files(stores(scene.initial)) as image:
            operation(image)
            _AFTER[key] = state_of(image)
    return _AFTER[key]


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except VdiskError:
        return False
    return True


def random_fault(rng: random.Random, requests: int) -> InjectError:
    """A rule that makes one of so many requests fail, and perhaps all that follow it."""
    once = rng.random() < 0.7
    where = Where(iotypes=ANY, skip=rng.randrange(max(requests, 1)), once=once)
    return InjectError(where=where, effect=rng.choice(list(Effect)))
