"""Where the parts of a device stand in files, remembered for as long as they stay there.

A small read of an image needs one fact: which file, and where in it.  A format looks it up for
each request, layer by layer; here it is one word, for a chain of images, too::

    offset  |  number of the page  |  of the unit in it  |  within the unit  |
                       |                     |
                       v                     v
                 pages[number][    unit    ] = host offset | number of the file; 0: not known yet

Tables of words, not a dictionary: what is looked up at random should fit the processor's cache.

A device says what the unit is (``locate_unit``), and how long its answers hold: its ``moves()``
counts the changes after which something may stand elsewhere.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from vdisk.stores.file import WHOLE, FileStore

if TYPE_CHECKING:
    from vdisk.block import BlockDevice

PAGE_BITS: Final = 9
PAGE_MASK: Final = (1 << PAGE_BITS) - 1
"""A page knows 512 units: 32 MiB of a usual qcow2 image, in 4 KiB of memory."""

MOST_PAGES: Final = 1 << 12
"""Pages kept of one device: 16 MiB of memory for 128 GiB of a usual qcow2 image."""

FILE_MASK: Final = 511
"""Where a word has the number of the file: units begin at multiples of a sector there."""

UNKNOWN: Final = array("Q", bytes(8 << PAGE_BITS))
"""A page about which nothing is known."""


class Places:
    """Of one device; for one thread, which calls :meth:`refresh` whenever it has begun to hold it.

    (Not needed where there is nothing to hold, which is where nothing ever moves.)

    ``pages``: see the module; ``files``: descriptors, by the number of the file.  Both are for
    those who cannot afford the call of :meth:`find`.
    """

    def __init__(self, device: BlockDevice) -> None:
        self.unit_bits = device.locate_unit.bit_length() - 1
        self.unit = 1 << self.unit_bits
        self.undivided = self.unit >= WHOLE
        """What is true of the place of one range is true of all others."""
        self.pages: dict[int, array[int]] = {}
        self.files = [-1]
        self._device = device
        self._moves = device.moves()

    def refresh(self) -> None:
        """Forget what may not be so any longer."""
        moves = self._device.moves()
        if moves != self._moves:
            self.pages.clear()
            self._moves = moves

    def find(self, offset: int, length: int) -> tuple[int, int] | None:
        """(descriptor, host offset) of a range that stands in one piece of a file, else None.

        Raises VdiskError, as the device's ``locate`` does.
        """
        within = offset & (self.unit - 1)
        if self._moves is None or within + length > self.unit:
            return self._locate(offset, length)
        number = offset >> self.unit_bits
        word = self.pages.get(number >> PAGE_BITS, UNKNOWN)[number & PAGE_MASK]
        if word:
            file = word & FILE_MASK
            return self.files[file], word - file + within
        start = offset - within
        found = self._locate(start, min(self.unit, self._device.size - start))
        if found is None:  # not as a whole
            return self._locate(offset, length)
        self._remember(number, *found)
        return found[0], found[1] + within

    def _locate(self, offset: int, length: int) -> tuple[int, int] | None:
        found = self._device.locate(offset, length)
        if found is None or type(found[0]) is not FileStore:
            return None
        return found[0].fileno(), found[1]

    def _remember(self, number: int, descriptor: int, host: int) -> None:
        if descriptor not in self.files:
            self.files.append(descriptor)
        file = self.files.index(descriptor)
        if host & FILE_MASK or file > FILE_MASK:
            return
        page = self.pages.get(number >> PAGE_BITS)
        if page is None:
            if len(self.pages) >= MOST_PAGES:
                del self.pages[next(iter(self.pages))]
            page = self.pages[number >> PAGE_BITS] = UNKNOWN[:]
        page[number & PAGE_MASK] = host | file
