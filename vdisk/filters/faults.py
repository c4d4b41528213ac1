r"""Faults on purpose: a device whose requests fail when, where and how rules say.

The rules are those of QEMU's ``blkdebug``.  The format above says which step of its work it is
at (:meth:`BlockDevice.note <vdisk.block.BlockDevice.note>`: "l2_update", "cluster_alloc"…); an
event may change the *state*, a number that begins at 1, and it arms the rules that name it::

    [set-state]                     [inject-error]
    event = "l2_update"             event = "flush_to_disk"
    state = "1"                     state = "2"          0, or none given: in any state
    new_state = "2"                 errno = "5"
                                    once = "on"          else: until others are armed

Armed rules stay so until an event that has rules for the present state arms those instead.  Rules
for the event "none" are armed from the start.  Of each request, the first armed rule that fits
its kind and place decides.

Beyond QEMU: ``skip`` lets that many fitting requests pass first; ``offset`` and ``length`` name a
range of bytes where QEMU has but one ``sector``; ``effect`` says how much of a failed request
takes place all the same ("none", "half" of it, as of a torn write or a short read, or all of it:
"done"); the kind "truncate" exists; and there are two more kinds of rules, [delay] (``latency-ns``)
and [corrupt], which inverts the bits of what is read or written inside the range.
"""

from __future__ import annotations

import enum
import errno
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from vdisk.errors import from_os_error
from vdisk.filters.breakpoints import Breakpoints
from vdisk.filters.passing import Between
from vdisk.units import round_down

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vdisk.block import BlockDevice, Extent
    from vdisk.errors import VdiskError

SECTOR: Final = 512

_EVENTS = """none l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table
    l2_load l2_update l2_update_compressed l2_alloc_cow_read l2_alloc_write read_aio
    read_backing_aio read_compressed write_aio write_compressed vmstate_load vmstate_save
    cow_read cow_write reftable_load reftable_grow reftable_update refblock_load refblock_update
    refblock_update_part refblock_alloc refblock_alloc_hookup refblock_alloc_write
    refblock_alloc_write_blocks refblock_alloc_write_table refblock_alloc_switch_table
    cluster_alloc cluster_alloc_bytes cluster_free flush_to_os flush_to_disk pwritev_rmw_head
    pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero
    pwritev_done empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write
    cluster_alloc_space"""
EVENTS: Final = frozenset(_EVENTS.split())
"""QEMU's BlkdebugEvent.  Which of them a format notes is the format's affair; "pwritev",
"pwritev_zero" and "pwritev_done" (around writes) are noted here."""


class IoType(enum.Enum):
    """A kind of request, by QEMU's name."""

    READ = "read"
    WRITE = "write"
    WRITE_ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    BLOCK_STATUS = "block-status"
    TRUNCATE = "truncate"


USUAL: Final = frozenset(IoType) - {IoType.BLOCK_STATUS, IoType.TRUNCATE}
"""What a rule is about that names no kind of request, as in QEMU."""


class Effect(enum.Enum):
    """How much of a request that fails takes place all the same."""

    NONE = "none"
    HALF = "half"
    """About its first half, to the end of a sector of the device; nothing of a flush."""
    DONE = "done"

    def part(self, offset: int, length: int) -> int:
        """How many of the request's bytes."""
        if self is Effect.HALF:
            return max(round_down(offset + length // 2, SECTOR) - offset, 0)
        return length if self is Effect.DONE else 0


class SetState(NamedTuple):
    """At ``event``, in ``state`` (0: in any), the state becomes ``new_state``."""

    event: str
    state: int = 0
    new_state: int = 1


class Where(NamedTuple):
    """Which requests a rule is about: their kinds, and the bytes they touch.

    ``length`` None: to the end of the device.  Requests without a place (flush) fit only where
    ``offset`` is None.  ``skip``: how many fitting requests pass first; ``once``: one is enough.
    """

    iotypes: frozenset[IoType] = USUAL
    offset: int | None = None
    length: int | None = None
    skip: int = 0
    once: bool = False

    def fits(self, iotype: IoType, offset: int, length: int) -> bool:
        if iotype not in self.iotypes:
            return False
        if self.offset is None:
            return True
        end = offset + length if self.length is None else self.offset + self.length
        return max(offset, self.offset) < min(offset + length, end)

    def clip(self, offset: int, length: int) -> tuple[int, int]:
        """The part of a fitting request inside the range, counted from the request's start."""
        first = 0 if self.offset is None else max(self.offset - offset, 0)
        end = length
        if self.offset is not None and self.length is not None:
            end = min(self.offset + self.length - offset, length)
        return first, end


class InjectError(NamedTuple):
    """From ``event`` in ``state`` on, requests fail with ``errno``."""

    event: str = "none"
    state: int = 0
    where: Where = Where()
    errno: int = errno.EIO
    effect: Effect = Effect.NONE


class Delay(NamedTuple):
    """From ``event`` in ``state`` on, requests take ``seconds`` longer."""

    seconds: float
    event: str = "none"
    state: int = 0
    where: Where = Where()


class Corrupt(NamedTuple):
    """From ``event`` in ``state`` on, bits that are read or written come out inverted."""

    event: str = "none"
    state: int = 0
    where: Where = Where()


Acting = InjectError | Delay | Corrupt
Rule = SetState | Acting


class _Armed:
    """A rule that acts now; ``skip``: how many requests it still lets pass."""

    __slots__ = ("rule", "skip")

    def __init__(self, rule: Acting) -> None:
        self.rule = rule
        self.skip = rule.where.skip


class _Verdict(NamedTuple):
    """What is to become of a request: bytes carried out, the error then raised, what is wrong.

    ``whole``: all of it is carried out.  ``inverted``: (start, end) in the request.
    """

    part: int
    whole: bool
    error: VdiskError | None
    inverted: tuple[tuple[int, int], ...]

    def spoil(self, data: memoryview) -> None:
        """Invert what is to come out wrong."""
        for start, end in self.inverted:
            data[start:end] = bytes(byte ^ 0xFF for byte in data[start:end])

    def announce(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error


class Faults(Between):
    """``inner``, with requests failing by ``rules``.  ``sleep``: how delays pass.

    ``state``: the present one.  ``requests`` and ``events``: how many there were of each kind.
    ``breakpoints``: events at which requests are held.
    """

    def __init__(
        self,
        inner: BlockDevice,
        rules: Iterable[Rule] = (),
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self.state = 1
        self.requests: Counter[IoType] = Counter()
        self.events: Counter[str] = Counter()
        self._rules = list(rules)
        self._sleep = sleep
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self.breakpoints = Breakpoints()
        self.note("none")

    def set_rules(self, *rules: Rule) -> None:
        """Put other rules in the place of all; those for "none" are armed at once."""
        with self._lock:
            self._rules = list(rules)
            self._armed = []
        self.note("none")

    def note(self, event: str) -> None:
        """Change the state and arm rules, as those for ``event`` say."""
        with self._lock:
            self.events[event] += 1
            state = self.state
            mine = [r for r in self._rules if r.event == event and r.state in (0, state)]
            arming = [_Armed(rule) for rule in mine if not isinstance(rule, SetState)]
            if arming:
                self._armed = arming
            for rule in mine:
                if isinstance(rule, SetState):
                    self.state = rule.new_state
        self.breakpoints.meet(event)
        self.inner.note(event)

    # -- judging a request -----------------------------------------------------------------------

    def _judge(self, iotype: IoType, offset: int = 0, length: int = 0) -> _Verdict:
        with self._lock:
            self.requests[iotype] += 1
            acting = self._acting(iotype, offset, length)
        for rule in acting:
            if isinstance(rule, Delay):
                self._sleep(rule.seconds)
        inverted = tuple(
            rule.where.clip(offset, length) for rule in acting if isinstance(rule, Corrupt)
        )
        for rule in acting:
            if isinstance(rule, InjectError):
                error, effect = self._error(rule.errno, iotype, offset), rule.effect
                return _Verdict(effect.part(offset, length), effect is Effect.DONE, error, inverted)
        return _Verdict(length, True, None, inverted)

    def _acting(self, iotype: IoType, offset: int, length: int) -> list[Acting]:
        """The armed rules that act on a request; those for one request only are then spent."""
        found: list[Acting] = []
        failed = False
        for armed in self._armed[:]:
            rule = armed.rule
            if not rule.where.fits(iotype, offset, length):
                continue
            if isinstance(rule, InjectError) and failed:
                continue
            if armed.skip:
                armed.skip -= 1
                continue
            failed = failed or isinstance(rule, InjectError)
            found.append(rule)
            if rule.where.once:
                self._armed.remove(armed)
                self._rules = [other for other in self._rules if other is not rule]
        return found

    def _error(self, number: int, iotype: IoType, offset: int) -> VdiskError:
        return from_os_error(
            OSError(number, f"{os.strerror(number)} (injected)"),
            path=self.name,
            operation=iotype.value.replace("-", " "),
            offset=None if iotype in (IoType.FLUSH, IoType.TRUNCATE) else offset,
        )

    # -- the device ------------------------------------------------------------------------------

    def _map(self, start: int, length: int) -> Iterator[Extent]:
        self._judge(IoType.BLOCK_STATUS, start, length).announce()
        yield from super()._map(start, length)

    def _read_into(self, offset: int, view: memoryview) -> None:
        verdict = self._judge(IoType.READ, offset, len(view))
        if verdict.part:
            self.inner.read_into(offset, view[: verdict.part])
        verdict.spoil(view)
        verdict.announce()

    def _readv(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            self._read_into(offset, view)
            offset += len(view)

    def _write(self, offset: int, view: memoryview) -> None:
        self.note("pwritev")
        verdict = self._judge(IoType.WRITE, offset, len(view))
        if verdict.inverted:
            view = memoryview(bytearray(view))
            verdict.spoil(view)
        if verdict.part:
            self.inner.write(offset, view[: verdict.part])
        verdict.announce()
        self.note("pwritev_done")

    def _writev(self, offset: int, views: Sequence[memoryview]) -> None:
        self._write(offset, views[0] if len(views) == 1 else memoryview(b"".join(views)))

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.note("pwritev_zero")
        verdict = self._judge(IoType.WRITE_ZEROES, offset, length)
        if verdict.part:
            self.inner.write_zeroes(offset, verdict.part, unmap=unmap)
        verdict.announce()
        self.note("pwritev_done")

    def _discard(self, offset: int, length: int) -> None:
        verdict = self._judge(IoType.DISCARD, offset, length)
        if verdict.part:
            self.inner.discard(offset, verdict.part)
        verdict.announce()

    def _flush(self) -> None:
        verdict = self._judge(IoType.FLUSH)
        if verdict.whole:
            self.inner.flush()
        verdict.announce()

    def _truncate(self, size: int) -> None:
        verdict = self._judge(IoType.TRUNCATE, min(size, self.size), abs(size - self.size))
        if verdict.whole:
            self.inner.truncate(size)
        verdict.announce()
