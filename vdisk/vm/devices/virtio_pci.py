"""Virtio over PCI: modern, and transitional with the legacy registers (VIRTIO 1.2, section 4.1).

One memory BAR (4) holds the four structures of a modern device, each announced by a vendor-specific
capability; a fifth one reaches them through configuration space.  A transitional device has the
legacy registers in I/O BAR 0 beside them::

    BAR 4   0000 common configuration     BAR 0   00 device features     0E queue select
            1000 ISR status                       04 driver features     10 queue notify
            2000 device configuration             08 queue address (PFN) 12 status
            3000 notify, 4 bytes a queue          0C queue size          13 ISR status
    BAR 1   MSI-X                                 (14 config vector  16 queue vector)
                                                  14 or 18 device configuration

Interrupts are messages while MSI-X is enabled, and INTA# with the ISR status else.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from vdisk.vm.devices.pci import BAR_IO, Identity, PciDevice
from vdisk.vm.devices.virtio import DRIVER_OK, LEGACY_FEATURES, Slot, VirtioDevice

if TYPE_CHECKING:
    from vdisk.vm.bus import Bus
    from vdisk.vm.devices.base import State

VENDOR_ID: Final = 0x1AF4
MODERN_DEVICE_ID: Final = 0x1040  # plus the type (4.1.2)
TRANSITIONAL_DEVICE_IDS: Final = {1: 0x1000, 2: 0x1001, 3: 0x1003, 4: 0x1005, 5: 0x1002}
VENDOR_CAPABILITY: Final = 0x09
NO_VECTOR: Final = 0xFFFF

LEGACY_BAR, MSIX_BAR, MODERN_BAR = 0, 1, 4
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
MODERN_SIZE: Final = 0x4000
NOTIFY_MULTIPLIER: Final = 4
ISR_QUEUE, ISR_CONFIG = 1, 2

CAP_COMMON_CFG, CAP_NOTIFY_CFG, CAP_ISR_CFG, CAP_DEVICE_CFG, CAP_PCI_CFG = 1, 2, 3, 4, 5
_CAPABILITY: Final = struct.Struct("<BBB2xII")  # cfg_type, bar, id; offset, length

_COMMON: Final = struct.Struct("<IIIIHHBBHHHHHQQQHH")
"""4.1.4.3: the whole common configuration, 60 bytes, then queue_notify_data and queue_reset."""

LEGACY_CONFIG, LEGACY_CONFIG_MSIX = 0x14, 0x18
LEGACY_ALIGNMENT: Final = 4096  # of the used ring, and the unit of the queue's address (2.7.2)


class VirtioPci(PciDevice):
    """The PCI function of ``device``.

    ``transitional`` False: a modern device only, without the legacy registers.
    """

    SAVED: ClassVar[tuple[str, ...]] = (
        *PciDevice.SAVED,
        "_device_select",
        "_driver_select",
        "_queue_select",
        "_config_vector",
        "_vectors",
        "_isr",
        "_legacy",
    )

    def __init__(self, bus: Bus, device: VirtioDevice, *, transitional: bool = True) -> None:
        kind = device.device_type
        transitional = transitional and kind in TRANSITIONAL_DEVICE_IDS
        identity = Identity(
            VENDOR_ID,
            TRANSITIONAL_DEVICE_IDS[kind] if transitional else MODERN_DEVICE_ID + kind,
            device.class_code,
            revision=0 if transitional else 1,
            subsystem_vendor_id=VENDOR_ID,
            subsystem_id=kind if transitional else MODERN_DEVICE_ID + kind,
            interrupt_pin=1,
        )
        super().__init__(device.name, bus, identity)
        self.device = device
        self._device_select = self._driver_select = self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._vectors = [NO_VECTOR] * len(device.slots)
        self._isr = 0
        self._legacy = False
        """The driver uses the legacy registers."""
        device.transport = self
        if transitional:
            size = 1 << (LEGACY_CONFIG_MSIX + len(device.config()) - 1).bit_length()
            self.add_bar(LEGACY_BAR, size, self._legacy_read, self._legacy_write, BAR_IO)
        self.add_msix(len(device.slots) + 1, MSIX_BAR)
        self.add_bar(MODERN_BAR, MODERN_SIZE, self._modern_read, self._modern_write)
        self._add_capabilities()

    def _add_capabilities(self) -> None:
        """4.1.4: where the structures are.  The list begins with the last one added."""
        window = _CAPABILITY.pack(CAP_PCI_CFG, 0, 0, 0, 0) + bytes(4)
        writable = b"\0\0\xff" + bytes(3) + b"\xff" * 12
        self._window = self.add_capability(
            VENDOR_CAPABILITY, bytes([len(window) + 3]) + window, writable
        )
        length = max(len(self.device.config()), 4)
        for kind, offset, size, more in (
            (CAP_NOTIFY_CFG, NOTIFY, NOTIFY_MULTIPLIER * len(self._vectors), NOTIFY_MULTIPLIER),
            (CAP_DEVICE_CFG, DEVICE, length, None),
            (CAP_ISR_CFG, ISR, 4, None),
            (CAP_COMMON_CFG, COMMON, _COMMON.size, None),
        ):
            body = _CAPABILITY.pack(kind, MODERN_BAR, 0, offset, size)
            body += b"" if more is None else struct.pack("<I", more)
            self.add_capability(VENDOR_CAPABILITY, bytes([len(body) + 3]) + body)

    # -- interrupts --------------------------------------------------------------------------

    def queue_interrupt(self, index: int) -> None:
        assert self.msix is not None
        if self.msix.enabled:
            self.msix.notify(self._vectors[index])
        else:
            self._isr |= ISR_QUEUE
            self.set_intx(True)

    def config_interrupt(self) -> None:
        assert self.msix is not None
        if self.msix.enabled:
            self.msix.notify(self._config_vector)
        else:
            self._isr |= ISR_CONFIG
            self.set_intx(True)

    def _read_isr(self) -> int:
        """Reading acknowledges (4.1.4.5)."""
        value, self._isr = self._isr, 0
        self.set_intx(False)
        return value

    def _vector(self, value: int) -> int:
        """What a vector register holds after a write: no vector where there is none (4.1.5.1.2)."""
        assert self.msix is not None
        return value if value < self.msix.vectors else NO_VECTOR

    # -- modern ------------------------------------------------------------------------------

    def _modern_read(self, offset: int, size: int) -> int:
        if offset < ISR:
            return self._common_read(offset, size)
        if offset >= NOTIFY:
            return 0
        if offset >= DEVICE:
            return _slice(self.device.config(), offset - DEVICE, size)
        return self._read_isr() if offset == ISR else 0

    def _modern_write(self, offset: int, size: int, value: int) -> None:
        if offset >= NOTIFY:
            if self.bus_master:
                self.device.notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)
        elif offset >= DEVICE:
            self.device.write_config(offset - DEVICE, value.to_bytes(size, "little"))
        elif offset < ISR:
            if size == 8:
                self._common_write(offset, 4, value & 0xFFFF_FFFF)
                self._common_write(offset + 4, 4, value >> 32)
            else:
                self._common_write(offset, size, value)

    def _selected(self) -> Slot | None:
        slots = self.device.slots
        return slots[self._queue_select] if self._queue_select < len(slots) else None

    def _common_read(self, offset: int, size: int) -> int:
        if offset == 0x14 and size == 1:  # what drivers read in loops
            return self.device.status
        return _slice(self._common(), offset, size)

    def _common(self) -> bytes:
        device, slot = self.device, self._selected()
        shifts = (self._device_select * 32, self._driver_select * 32)
        queue = (0, NO_VECTOR, 0, 0, 0, 0, 0)
        if slot is not None:
            queue = (
                slot.size,
                self._vectors[slot.index],
                int(slot.ring is not None),
                slot.index,
                slot.descriptors,
                slot.driver,
                slot.device,
            )
        return _COMMON.pack(
            self._device_select,
            device.offered >> shifts[0] & 0xFFFF_FFFF if shifts[0] < 64 else 0,
            self._driver_select,
            device.features >> shifts[1] & 0xFFFF_FFFF if shifts[1] < 64 else 0,
            self._config_vector,
            len(device.slots),
            device.status,
            device.generation,
            self._queue_select,
            *queue,
            0,
            0,
        )

    def _common_write(self, offset: int, size: int, value: int) -> None:
        """Fields are written with accesses of their own size (4.1.3.1); others are lost."""
        if (offset, size) == (0x00, 4):
            self._device_select = value
        elif (offset, size) == (0x08, 4):
            self._driver_select = value
        elif (offset, size) == (0x0C, 4):
            self._take_features(value)
        elif (offset, size) == (0x10, 2):
            self._config_vector = self._vector(value)
        elif (offset, size) == (0x14, 1):
            self._write_status(value, legacy=False)
        elif (offset, size) == (0x16, 2):
            self._queue_select = value
        elif (slot := self._selected()) is not None:
            self._queue_write(slot, offset, size, value)

    def _take_features(self, value: int) -> None:
        shift = self._driver_select * 32
        if shift < 64:
            kept = self.device.features & ~(0xFFFF_FFFF << shift)
            self.device.set_features(kept | value << shift)

    def _queue_write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        if (offset, size) == (0x1A, 2):
            self._vectors[slot.index] = self._vector(value)
        elif slot.ring is not None:  # nothing of an enabled queue changes (4.1.4.3.2)
            return
        elif (offset, size) == (0x18, 2):
            if 0 < value <= slot.largest:
                slot.size = value
        elif (offset, size) == (0x1C, 2):
            if value == 1:
                self.device.enable_queue(slot)
        elif 0x20 <= offset < 0x38 and size == 4 and not offset & 3:
            field = ("descriptors", "driver", "device")[(offset - 0x20) // 8]
            shift = offset % 8 * 8
            kept = getattr(slot, field) & ~(0xFFFF_FFFF << shift)
            setattr(slot, field, kept | value << shift)

    def _write_status(self, value: int, *, legacy: bool) -> None:
        if value:
            self._legacy = legacy
            self.device.set_status(value, legacy=legacy)
        else:
            self._reset_device()

    def _reset_device(self) -> None:
        """What writing 0 to the status does."""
        self._isr = 0
        self._config_vector = NO_VECTOR
        self._vectors[:] = [NO_VECTOR] * len(self._vectors)
        self.set_intx(False)
        self.device.reset()
        self._isr = 0
        self.set_intx(False)

    # -- legacy ------------------------------------------------------------------------------

    @property
    def _legacy_config(self) -> int:
        assert self.msix is not None
        return LEGACY_CONFIG_MSIX if self.msix.enabled else LEGACY_CONFIG

    def _legacy_read(self, offset: int, size: int) -> int:
        if offset == 0x13:
            return self._read_isr()
        if offset >= self._legacy_config:
            return _slice(self.device.config(), offset - self._legacy_config, size)
        slot, device = self._selected(), self.device
        header = struct.pack(
            "<IIIHHHBBHH",
            device.offered & LEGACY_FEATURES,
            device.features & LEGACY_FEATURES,
            0 if slot is None else slot.descriptors // LEGACY_ALIGNMENT & 0xFFFF_FFFF,
            0 if slot is None else slot.largest,
            self._queue_select,
            0,
            device.status,
            0,
            self._config_vector,
            NO_VECTOR if slot is None else self._vectors[slot.index],
        )
        return _slice(header, offset, size)

    def _legacy_write(self, offset: int, size: int, value: int) -> None:
        if offset == 0x10:
            if self.bus_master:
                self.device.notify(value)
        elif offset == 0x12:
            self._write_status(value & 0xFF, legacy=True)
        elif offset >= self._legacy_config:
            data = value.to_bytes(size, "little")
            self.device.write_config(offset - self._legacy_config, data)
        elif (offset, size) == (0x04, 4):
            self.device.set_features(value & self.device.offered)
        elif (offset, size) == (0x0E, 2):
            self._queue_select = value
        elif (offset, size) == (0x14, 2):
            self._config_vector = self._vector(value)
        elif (slot := self._selected()) is not None:
            if (offset, size) == (0x08, 4):
                self._legacy_queue(slot, value)
            elif (offset, size) == (0x16, 2):
                self._vectors[slot.index] = self._vector(value)

    def _legacy_queue(self, slot: Slot, page: int) -> None:
        """2.7.2: one piece of memory, the used ring on the next page after the available one."""
        if not page:
            self._reset_device()
            return
        if slot.ring is not None:
            return
        size = slot.size = slot.largest
        slot.descriptors = page * LEGACY_ALIGNMENT
        slot.driver = slot.descriptors + 16 * size
        end = slot.driver + 6 + 2 * size
        slot.device = -(-end // LEGACY_ALIGNMENT) * LEGACY_ALIGNMENT
        self.device.enable_queue(slot)
        if self.device.status & DRIVER_OK:
            self.device.notify(slot.index)

    # -- the window in configuration space (4.1.4.9) -----------------------------------------

    def _window_target(self) -> tuple[int, int] | None:
        """(offset in the modern BAR, bytes) of the access, if there can be one."""
        place = self._window
        bar = self.config[place + 4]
        offset, length = struct.unpack_from("<II", self.config, place + 8)
        if bar != MODERN_BAR or length not in (1, 2, 4) or offset % length:
            return None
        return (offset, length) if offset + length <= MODERN_SIZE else None

    def config_read(self, offset: int, size: int) -> int:
        data = self._window + 16
        if data <= offset < data + 4 and (target := self._window_target()) is not None:
            value = self._modern_read(*target)
            self.config[data : data + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
        return super().config_read(offset, size)

    def config_written(self, offset: int, size: int) -> None:
        data = self._window + 16
        if data <= offset < data + 4 and (target := self._window_target()) is not None:
            value = int.from_bytes(self.config[data : data + target[1]], "little")
            self._modern_write(*target, value)

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        self._device_select = self._driver_select = self._queue_select = 0
        self._legacy = False
        self._reset_device()
        super().reset()

    def save_state(self) -> State:
        return super().save_state() | {"device": self.device.save_state()}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        for select in (self._device_select, self._driver_select, self._queue_select):
            self.require(0 <= select < 1 << 32, "a select register")
        for vector in (self._config_vector, *self._vectors):
            self.require(vector == NO_VECTOR or vector == self._vector(vector), "a vector")
        self.require(0 <= self._isr < 4, "the ISR status")
        self.device.load_state(state.get("device", {}))


def _slice(data: bytes, offset: int, size: int) -> int:
    """``size`` bytes of a structure, zeroes behind its end."""
    return int.from_bytes(data[offset : offset + size], "little")
