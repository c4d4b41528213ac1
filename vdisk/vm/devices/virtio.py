"""What every virtio device is, whatever bus it is on (VIRTIO 1.2, section 2).

A driver wakes a device in steps (3.1): it sets bits of the status, takes features, enables queues
and sets DRIVER_OK, from when on the device serves its queues until it is reset::

    status  1 ACKNOWLEDGE  2 DRIVER  4 DRIVER_OK  8 FEATURES_OK  64 DEVICE_NEEDS_RESET  128 FAILED

A :class:`VirtioDevice` knows its queues and configuration; a transport (virtio_pci) leads the
driver's accesses to it, and its interrupts to the driver.  A driver that breaks a rule of a ring
stops its device (DEVICE_NEEDS_RESET) and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from vdisk.vm.devices.base import Device, State
from vdisk.vm.devices.virtqueue import (
    LARGEST_QUEUE,
    BrokenQueueError,
    Chain,
    Layout,
    SplitQueue,
    Virtqueue,
)
from vdisk.vm.devices.virtqueue_packed import PackedQueue

if TYPE_CHECKING:
    from vdisk.vm.clock import Clock
    from vdisk.vm.memory import GuestMemory

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
DEVICE_NEEDS_RESET, FAILED = 64, 128

VIRTIO_F_ANY_LAYOUT: Final = 1 << 27
VIRTIO_F_INDIRECT_DESC: Final = 1 << 28
VIRTIO_F_EVENT_IDX: Final = 1 << 29
VIRTIO_F_VERSION_1: Final = 1 << 32
VIRTIO_F_RING_PACKED: Final = 1 << 34
LEGACY_FEATURES: Final = 0xFFFF_FFFF
"""The bits that a driver of before 1.0 can see."""

ROUNDS: Final = 4
"""Times the size of a queue that are served before others get the bus."""


class Transport(Protocol):
    """How a device reaches its driver."""

    def queue_interrupt(self, index: int) -> None:
        """A queue has used buffers."""

    def config_interrupt(self) -> None:
        """The device's configuration, or its status, has changed."""


class Slot:
    """One queue of a device: what the driver wrote about it, and the ring once it is enabled."""

    def __init__(self, index: int, largest: int) -> None:
        self.index = index
        self.largest = largest
        self.ring: Virtqueue | None = None
        self.held: dict[int, Chain] = {}
        """Buffers that were taken and are in work, by their keys."""
        self.stalled = False
        """The device had no room for more; it looks again when it has."""
        self.forget()

    def forget(self) -> None:
        """As after a reset."""
        self.size = self.largest
        self.descriptors = self.driver = self.device = 0
        self.features = 0
        """Those that the ring was enabled with."""
        self.ring = None
        self.held = {}
        self.stalled = False


class VirtioDevice(Device):
    """A device without its bus.

    ``device_type``: section 5's number.  ``offered``: feature bits.  ``transport``: set by it.
    Subclasses implement :meth:`serve`, and, where they need to, the other hooks at the end.
    """

    device_type: ClassVar[int]
    class_code: ClassVar[int]

    def __init__(
        self,
        name: str,
        memory: GuestMemory,
        clock: Clock,
        *,
        queues: int,
        queue_size: int,
        features: int,
        packed: bool = False,
    ) -> None:
        self.name = name
        self.memory = memory
        self.transport: Transport | None = None
        self.offered = features | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
        self.offered |= VIRTIO_F_ANY_LAYOUT | (VIRTIO_F_RING_PACKED if packed else 0)
        self.slots = [Slot(index, min(queue_size, LARGEST_QUEUE)) for index in range(queues)]
        self.status = 0
        self.features = 0
        """What the driver has taken."""
        self.broken = ""
        """Why the device serves its driver no more until it is reset."""
        self.generation = 0
        self._clock = clock
        self._later = clock.timer(self._serve_later)
        self._resumed: list[tuple[Slot, Chain]] = []

    # -- what the transport leads here -------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether queues are served."""
        return bool(self.status & DRIVER_OK) and not self.broken

    def set_features(self, features: int) -> None:
        """The driver takes features; too late once it has said that it is done."""
        if not self.status & (FEATURES_OK | DRIVER_OK):
            self.features = features

    def set_status(self, status: int, *, legacy: bool = False) -> None:
        """The driver goes a step further, or resets the device (0)."""
        if not status:
            self.reset()
            return
        before = self.status
        status |= before & (DEVICE_NEEDS_RESET | FEATURES_OK)
        if status & FEATURES_OK and not before & FEATURES_OK and not self._acceptable():
            status &= ~FEATURES_OK
        if not legacy and status & DRIVER_OK and not status & FEATURES_OK:
            status &= ~DRIVER_OK
        self.status = status
        if status & ~before & DRIVER_OK:
            if legacy:
                self.features &= self.offered & LEGACY_FEATURES
            self.started()
            for slot in self.slots:
                self.notify(slot.index)

    def _acceptable(self) -> bool:
        return not self.features & ~self.offered and bool(self.features & VIRTIO_F_VERSION_1)

    def enable_queue(self, slot: Slot) -> None:
        """Take the ring that the driver described into use."""
        if slot.ring is None and not self.broken:
            slot.features = self.features & self.offered
            self._make_ring(slot)

    def _make_ring(self, slot: Slot) -> None:
        features = slot.features
        layout = Layout(
            slot.size,
            slot.descriptors,
            slot.driver,
            slot.device,
            bool(features & VIRTIO_F_INDIRECT_DESC),
            bool(features & VIRTIO_F_EVENT_IDX),
        )
        packed = features & VIRTIO_F_RING_PACKED
        try:
            slot.ring = (PackedQueue if packed else SplitQueue)(self.memory, layout)
        except BrokenQueueError as error:
            self.fail(error)

    def notify(self, index: int) -> None:
        """The driver says that a queue has buffers."""
        if index >= len(self.slots) or not self.running:
            return
        slot = self.slots[index]
        if slot.ring is not None:
            try:
                self.serve(slot, slot.ring)
            except BrokenQueueError as error:
                self.fail(error)

    # -- for subclasses ----------------------------------------------------------------------

    def fail(self, error: BrokenQueueError) -> None:
        """The driver broke a rule: touch its rings no more (2.1.2)."""
        self.broken = str(error)
        if self.features & VIRTIO_F_VERSION_1:
            self.status |= DEVICE_NEEDS_RESET
            if self.status & DRIVER_OK and self.transport is not None:
                self.transport.config_interrupt()

    def config_changed(self) -> None:
        """The device's configuration is another now: tell the driver."""
        self.generation = (self.generation + 1) & 0xFF
        if self.running and self.transport is not None:
            self.transport.config_interrupt()

    def publish(self, slot: Slot) -> None:
        """Show the driver what was pushed."""
        if slot.ring is not None and slot.ring.publish() and self.transport is not None:
            self.transport.queue_interrupt(slot.index)

    def serve_later(self) -> None:
        """Notify every stalled queue soon, when others have had the bus."""
        self._later.arm(self._clock.now())

    def _serve_later(self) -> None:
        resumed, self._resumed = self._resumed, []
        for slot, chain in resumed:
            self._use_again(slot, chain)
        for slot in self.slots:
            if slot.stalled:
                slot.stalled = False
                self.notify(slot.index)

    def serve(self, slot: Slot, ring: Virtqueue) -> None:
        """Take buffers until there are none, and use them; may raise BrokenQueueError.

        This is the usual way; a device that keeps buffers for later has its own.
        """
        budget = ROUNDS * ring.size
        ring.pause_notifications()
        while True:
            while (room := budget and self.ready(slot)) and (chain := ring.pop()) is not None:
                budget -= 1
                written = self.use(slot, chain)
                if written is None:
                    slot.held[chain.key] = chain
                else:
                    ring.push(chain, written)
            if not room:
                slot.stalled = True
                break
            if not ring.await_notification():
                break
        self.publish(slot)
        if slot.stalled and not budget:
            self.serve_later()

    def give_back(self, slot: Slot, chain: Chain, written: int) -> bool:
        """A buffer that was held is used; False if the driver has reset the queue since."""
        if slot.held.get(chain.key) is not chain or slot.ring is None or self.broken:
            return False
        del slot.held[chain.key]
        slot.ring.push(chain, written)
        return True

    def _use_again(self, slot: Slot, chain: Chain) -> None:
        """Begin anew with a buffer that was in work when the machine was saved."""
        try:
            written = self.use(slot, chain)
            if written is not None and self.give_back(slot, chain, written):
                self.publish(slot)
        except BrokenQueueError as error:
            self.fail(error)

    # -- hooks -------------------------------------------------------------------------------

    def ready(self, _slot: Slot) -> bool:
        """Whether the device can use another buffer of a queue now."""
        return True

    def use(self, slot: Slot, chain: Chain) -> int | None:
        """Use a buffer: the bytes written to it, or None: it is given back later."""
        raise NotImplementedError

    def started(self) -> None:
        """The driver is ready: DRIVER_OK was set."""

    def stop(self) -> None:
        """Before a reset: let nothing be in work any more."""

    def config(self) -> bytes:
        """The device-specific configuration as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes configuration; most of it is read-only."""

    # -- life --------------------------------------------------------------------------------

    def reset(self) -> None:
        self.status = self.features = 0
        for slot in self.slots:
            slot.forget()
        self.broken = ""
        self._resumed.clear()
        self._later.cancel()
        self.stop()

    def save_state(self) -> State:
        slots = [
            {
                "size": slot.size,
                "descriptors": slot.descriptors,
                "driver": slot.driver,
                "device": slot.device,
                "features": slot.features,
                "indices": [] if slot.ring is None else slot.ring.save(),
                "held": list(slot.held),
                "stalled": slot.stalled,
            }
            for slot in self.slots
        ]
        return {
            "status": self.status,
            "features": self.features,
            "broken": self.broken,
            "generation": self.generation,
            "slots": slots,
        }

    def load_state(self, state: State) -> None:
        try:
            self._load(state)
        except (KeyError, TypeError, BrokenQueueError) as error:
            self.require(False, f"{type(error).__name__}: {error}")

    def _load(self, state: State) -> None:
        self.reset()
        status, features = state["status"], state["features"]
        self.require(isinstance(status, int) and 0 <= status < 256, "status")
        self.require(isinstance(features, int) and 0 <= features < 1 << 64, "features")
        agreed = status & (FEATURES_OK | DRIVER_OK)
        self.require(not agreed or not features & ~self.offered, "features")
        self.require(len(state["slots"]) == len(self.slots), "number of queues")
        self.status, self.features = status, features
        self.broken, self.generation = str(state["broken"]), int(state["generation"]) & 0xFF
        for slot, saved in zip(self.slots, state["slots"], strict=True):
            self._load_slot(slot, saved)
        if self.running:
            self.started()
        self.serve_later()

    def _load_slot(self, slot: Slot, saved: Any) -> None:
        for field in ("size", "descriptors", "driver", "device", "features"):
            value = saved[field]
            self.require(isinstance(value, int) and 0 <= value < 1 << 64, field)
            setattr(slot, field, value)
        if not saved["indices"] or self.broken:
            return
        self.require(not slot.features & ~self.offered, "features of a queue")
        self._make_ring(slot)
        self.require(slot.ring is not None, self.broken)
        assert slot.ring is not None
        slot.ring.load(list(saved["indices"]))
        slot.stalled = True  # looked at again when time goes on, and so are the held buffers
        for key in saved["held"]:
            self.require(isinstance(key, int), "held buffers")
            chain = slot.held[key] = slot.ring.take(key)
            self._resumed.append((slot, chain))
