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

    from vdisk.formats._qcow2.header import Header


def typed_options(options: Mapping[str, Any], header: Header) -> dict[str, Any]:
    """``options`` for the image of that header: sizes as ints, switches as bools.

    Raises :class:`InvalidRequestError`, for those it does not know, too.
    """
    own = {name: value for name, value in options.items() if name.partition(".")[0] != "encrypt"}
    bag = OptionBag(own, "driver 'qcow2'")
    both = bag.size("cache-size")
    l2 = bag.size("l2-cache-size")
    refcounts = bag.size("refcount-cache-size")
    discard = bag.boolean("pass-discard-request", True)
    lazy = bag.boolean("lazy-refcounts", header.lazy_refcounts)
    if lazy and header.version < 3:
        raise InvalidRequestError(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
        )
    _take_others(bag, header.cluster_size)
    bag.finish()
    if both is not None:
        l2, refcounts = _shares(both, l2, refcounts)
    return {
        "l2-cache-size": layout.DEFAULT_L2_CACHE if l2 is None else l2,
        "refcount-cache-size": layout.DEFAULT_REFCOUNT_CACHE if refcounts is None else refcounts,
        "pass-discard-request": discard,
        "lazy-refcounts": lazy,
    }


MIN_ENTRY = 512
_OVERLAP_PARTS = (
    *("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block"),
    *("snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory"),
)


def _take_others(bag: OptionBag, cluster_size: int) -> None:
    """QEMU's options about how QEMU does it: read, so that its command lines work here.

    What they turn on or off is always done here (metadata is never overwritten, whatever
    ``overlap-check`` says) or by other means.
    """
    for name in ("pass-discard-snapshot", "pass-discard-other"):
        bag.boolean(name, False)
    bag.size("cache-clean-interval")
    entry = bag.size("l2-cache-entry-size")
    if entry is not None and (not MIN_ENTRY <= entry <= cluster_size or entry & (entry - 1)):
        raise InvalidRequestError(
            f"L2 cache entry size must be a power of two between {MIN_ENTRY} and the cluster "
            f"size ({cluster_size})"
        )
    for key in ("overlap-check", "overlap-check.template"):
        bag.choice(key, ("none", "constant", "cached", "all"), "cached")
    for part in _OVERLAP_PARTS:
        bag.boolean(f"overlap-check.{part}", True)


def _shares(both: int, l2: int | None, refcounts: int | None) -> tuple[int, int]:
    """What each cache gets of ``both`` where at most one of them is given."""
    if l2 is not None and refcounts is not None:
        raise InvalidRequestError(
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
        )
    for name, size in (("l2-cache-size", l2), ("refcount-cache-size", refcounts)):
        if (size or 0) > both:
            raise InvalidRequestError(f"{name} may not exceed cache-size")
    if l2 is not None:
        return l2, both - l2
    if refcounts is None:
        refcounts = min(layout.DEFAULT_REFCOUNT_CACHE, both // 4)
    return both - refcounts, refcounts
