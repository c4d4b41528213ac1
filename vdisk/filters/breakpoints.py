"""Requests held where they are: the next one that comes to an event waits until it is let go.

So a test can have one request in the middle of its work and send others past it.
"""

from __future__ import annotations

import threading
from typing import NamedTuple


class Breakpoint(NamedTuple):
    """The next request that comes to ``event`` is held, and known as ``tag``."""

    event: str
    tag: str


class Breakpoints:
    """Those of one device.  Requests are held in the threads that carry them out."""

    def __init__(self) -> None:
        self._set: list[Breakpoint] = []
        self._held: list[Breakpoint] = []
        self._changed = threading.Condition()

    def set(self, event: str, tag: str) -> None:
        """Hold the next request that comes to ``event``; once."""
        with self._changed:
            self._set.append(Breakpoint(event, tag))

    def meet(self, event: str) -> None:
        """A request is at ``event``: return when nothing holds it."""
        if not self._set:
            return
        with self._changed:
            mine = [each for each in self._set if each.event == event]
            for each in mine:
                self._set.remove(each)
                self._held.append(each)
            self._changed.notify_all()
            while any(each is one for each in mine for one in self._held):
                self._changed.wait()

    def is_held(self, tag: str) -> bool:
        """Whether a request waits at the breakpoint of that tag."""
        return any(each.tag == tag for each in self._held)

    def wait(self, tag: str, seconds: float) -> bool:
        """Wait so long for a request to be held; whether one is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_held(tag), seconds)

    def resume(self, tag: str) -> bool:
        """Let the request go on that was held first under that tag; False if there is none."""
        with self._changed:
            for each in self._held:
                if each.tag == tag:
                    self._held.remove(each)
                    self._changed.notify_all()
                    return True
            return False

    def remove(self, tag: str) -> bool:
        """Forget the breakpoints of a tag and let go what they hold; False if there are none."""
        with self._changed:
            before = len(self._set) + len(self._held)
            self._set = [each for each in self._set if each.tag != tag]
            self._held = [each for each in self._held if each.tag != tag]
            self._changed.notify_all()
            return len(self._set) + len(self._held) < before

    def clear(self) -> None:
        """Forget all of them and let everything go on."""
        with self._changed:
            self._set, self._held = [], []
            self._changed.notify_all()
