"""A mouse that only knows how far it moved, led by displays that only know where it is."""

from __future__ import annotations


class AbsolutePointer:
    """Positions of one display's pointer, made into motion: the first of them moves nothing."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def move_to(self, x: int, y: int) -> tuple[int, int]:
        """How far it is from the last position."""
        last, self._last = self._last or (x, y), (x, y)
        return x - last[0], y - last[1]

    def forget(self) -> None:
        """The next position is a first one."""
        self._last = None
