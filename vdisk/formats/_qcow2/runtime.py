"""Run-time options: how an image is used while it is open, not what it is.

``cache-size`` is the whole of both caches, of which L2 tables get what the reference counts
leave.  The options of the passphrase (``encrypt.*``) are read by :mod:`.crypto`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import InvalidRequestError
from vdisk.formats._qcow2 import layout
from vdisk.options import OptionBag

if TYPE_CHECKING:
    from collections.abc import Mapping


def typed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with sizes as ints and switches as bools; refuses those it does not know.

    Raises :class:`InvalidRequestError`.
    """
    own = {name: value for name, value in options.items() if name.partition(".")[0] != "encrypt"}
    bag = OptionBag(own, "driver 'qcow2'")
    both = bag.size("cache-size")
    l2 = bag.size("l2-cache-size")
    refcounts = bag.size("refcount-cache-size")
    discard = bag.boolean("pass-discard-request", True)
    _take_others(bag)
    bag.finish()
    if both is not None:
        l2, refcounts = _shares(both, l2, refcounts)
    return {
        "l2-cache-size": layout.DEFAULT_L2_CACHE if l2 is None else l2,
        "refcount-cache-size": layout.DEFAULT_REFCOUNT_CACHE if refcounts is None else refcounts,
        "pass-discard-request": discard,
    }


MIN_ENTRY = 512
_OVERLAP_PARTS = (
    *("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block"),
    *("snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory"),
)


def _take_others(bag: OptionBag) -> None:
    """QEMU's options about how QEMU does it: read, so that its command lines work here.

    What they turn on or off is always done here (metadata is never overwritten, whatever
    ``overlap-check`` says), never (counts are not left behind), or by other means.
    """
    for name in ("lazy-refcounts", "pass-discard-snapshot", "pass-discard-other"):
        bag.boolean(name, False)
    bag.size("cache-clean-interval")
    entry = bag.size("l2-cache-entry-size")
    if entry is not None and (entry < MIN_ENTRY or entry & (entry - 1)):
        raise InvalidRequestError(
            f"driver 'qcow2': l2-cache-entry-size is a power of two from {MIN_ENTRY} on: {entry}"
        )
    for key in ("overlap-check", "overlap-check.template"):
        bag.choice(key, ("none", "constant", "cached", "all"), "cached")
    for part in _OVERLAP_PARTS:
        bag.boolean(f"overlap-check.{part}", True)


def _shares(both: int, l2: int | None, refcounts: int | None) -> tuple[int, int]:
    """What each cache gets of ``both`` where at most one of them is given."""
    if l2 is not None and refcounts is not None:
        raise InvalidRequestError(
            "driver 'qcow2': cache-size, l2-cache-size and refcount-cache-size: give two at most"
        )
    if max(l2 or 0, refcounts or 0) > both:
        raise InvalidRequestError("driver 'qcow2': a cache is larger than cache-size")
    if l2 is not None:
        return l2, both - l2
    if refcounts is None:
        refcounts = min(layout.DEFAULT_REFCOUNT_CACHE, both // 4)
    return both - refcounts, refcounts
