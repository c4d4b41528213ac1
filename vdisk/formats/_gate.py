"""A lock that many share or one holds alone, as what they do to an image allows.

Writers of guest data share it, and what changes the structure around them (a snapshot, a resize)
holds it alone; writers of whole encrypted sectors share it, a writer of a part of one is alone.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Shared:
    """The context manager of :attr:`Gate.shared`; one serves all, it holds nothing."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.begin_sharing()

    def __exit__(self, *_exception: object) -> None:
        self._gate.end_sharing()


class _Alone(_Shared):
    __slots__ = ()

    def __enter__(self) -> None:
        self._gate.begin_alone()

    def __exit__(self, *_exception: object) -> None:
        self._gate.end_alone()


class Gate:
    """Shared by many or held by one thread, which may enter it again either way.

    ``fair``: whoever waits to be alone lets nobody else in meanwhile, so that its time comes
    however many share; a thread that shares must then not enter a second time.
    """

    def __init__(self, *, fair: bool = False) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._fair = fair
        self._sharing = self._waiting = 0
        self._holder: int | None = None
        self._depth = 0
        self.shared = _Shared(self)
        """``with gate.shared:`` wait for whoever is alone, then keep others from being so."""
        self.alone = _Alone(self)
        """``with gate.alone:`` wait until nobody shares, then hold the gate."""

    def begin_sharing(self) -> None:
        """Enter as one of many."""
        with self._lock:
            if self._holder is not None and self._holder != threading.get_ident():
                self._wait(lambda: self._holder is None)
            self._sharing += 1

    def end_sharing(self) -> None:
        """Leave; whoever wants to be alone may be waiting."""
        with self._lock:
            self._sharing -= 1
            if self._waiting and not self._sharing:
                self._condition.notify_all()

    def begin_alone(self) -> None:
        """Enter as the only one."""
        me = threading.get_ident()
        with self._lock:
            if self._holder != me:
                if self._fair:
                    self._wait(lambda: self._holder is None)
                    self._holder = me
                    self._wait(lambda: not self._sharing)
                else:
                    self._wait(lambda: self._holder is None and not self._sharing)
                    self._holder = me
            self._depth += 1

    def end_alone(self) -> None:
        """Leave; everybody else may be waiting."""
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._holder = None
                self._condition.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            self._condition.wait_for(until)
        finally:
            self._waiting -= 1
