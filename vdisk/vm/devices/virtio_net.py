"""A network card (VIRTIO 1.2, section 5.1): queue 0 receives, queue 1 transmits.

Before each frame stands a header of 12 bytes (10 for a legacy driver without merged buffers)::

    0 flags: 1 checksum is to be completed, 2 checksum is right     6 checksum start (16)
    1 kind of segmentation: 1 TCP over IPv4, 4 over IPv6            8 checksum offset (16)
    2 header length (16)   4 segment size (16)                      10 buffers used (16)

Frames larger than the medium carries pass both ways, and checksums need not be computed, where the
network behind the card takes that (``offloads``): nothing between could damage them.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

from vdisk.vm.devices.virtio import VIRTIO_F_VERSION_1, VirtioDevice
from vdisk.vm.devices.virtqueue import BrokenQueueError, Chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vdisk.vm.clock import Clock
    from vdisk.vm.devices.virtio import Slot
    from vdisk.vm.devices.virtqueue import Virtqueue
    from vdisk.vm.memory import GuestMemory

VIRTIO_NET_F_CSUM: Final = 1 << 0
VIRTIO_NET_F_GUEST_CSUM: Final = 1 << 1
VIRTIO_NET_F_MAC: Final = 1 << 5
VIRTIO_NET_F_GUEST_TSO4: Final = 1 << 7
VIRTIO_NET_F_GUEST_TSO6: Final = 1 << 8
VIRTIO_NET_F_HOST_TSO4: Final = 1 << 11
VIRTIO_NET_F_HOST_TSO6: Final = 1 << 12
VIRTIO_NET_F_MRG_RXBUF: Final = 1 << 15
VIRTIO_NET_F_STATUS: Final = 1 << 16
OFFLOADS: Final = (
    VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_HOST_TSO4
    | VIRTIO_NET_F_HOST_TSO6
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_GUEST_TSO4
    | VIRTIO_NET_F_GUEST_TSO6
)

HDR_F_NEEDS_CSUM: Final = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6 = 0, 1, 4
STATUS_LINK_UP: Final = 1
RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE: Final = 256

TCP_CHECKSUM, TCP_HEADER = 16, 20
TCP_START, TCP_START6 = 14 + 20, 14 + 40
ETHERTYPE_IPV6: Final = b"\x86\xdd"
LARGEST_FRAME: Final = 65589
"""Bytes: an Ethernet header and the largest IPv6 packet."""
LARGEST_SEGMENT: Final = 60 << 10
USUAL_SEGMENT: Final = 1460
MAX_PENDING: Final = 1 << 20
"""Bytes of frames that wait for the guest to give room; more are lost, as on any network."""

DEFAULT_MAC: Final = b"\x52\x54\x00\x12\x34\x56"
NO_OFFLOAD: Final = bytes(10)
"""A header that says: the frame is whole and its checksum is complete."""

_HEADER: Final = struct.Struct("<BBHHHH")
_CONFIG: Final = struct.Struct("<6sHHH")


class Network(Protocol):
    """What the card is plugged into.

    ``offloads``: it takes frames whose checksums and segmentation are still to be done.
    """

    offloads: bool

    def attach(self, adapter: VirtioNet) -> None:
        """A card is plugged in."""

    def start(self) -> None:
        """The card's driver is ready, its features are known."""

    def transmit(self, header: bytes | memoryview, parts: Sequence[memoryview]) -> bool:
        """A frame of the guest, in parts; False: not now, :meth:`VirtioNet.send_again` comes."""

    def room_again(self) -> None:
        """The card takes frames again."""

    def reset(self) -> None:
        """The card was reset."""


class Pending(NamedTuple):
    """A frame that waits for room in the guest's memory, and the header's first ten bytes."""

    header: bytes
    frame: bytes


def offload_header(frame: bytes, *, partial: bool, segment: int) -> bytes:
    """The header of a TCP segment whose checksum is incomplete, to be cut every ``segment``."""
    if not partial:
        return NO_OFFLOAD
    ipv6 = frame[12:14] == ETHERTYPE_IPV6
    kind = (GSO_TCPV6 if ipv6 else GSO_TCPV4) if segment else GSO_NONE
    start = TCP_START6 if ipv6 else TCP_START
    return _HEADER.pack(HDR_F_NEEDS_CSUM, kind, start + TCP_HEADER, segment, start, TCP_CHECKSUM)


class VirtioNet(VirtioDevice):
    """The card; ``network`` hears the guest's frames and calls :meth:`deliver` or :meth:`pass_on`.

    ``mac``: its address, six bytes.
    """

    device_type: ClassVar[int] = 1
    class_code: ClassVar[int] = 0x020000

    def __init__(
        self,
        network: Network,
        memory: GuestMemory,
        clock: Clock,
        *,
        mac: bytes = DEFAULT_MAC,
        name: str = "virtio-net",
    ) -> None:
        features = VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF
        features |= OFFLOADS if network.offloads else 0
        super().__init__(name, memory, clock, queues=2, queue_size=QUEUE_SIZE, features=features)
        self.mac = mac
        self._network = network
        self._link = True
        self._pending: deque[Pending] = deque()
        self._pending_bytes = 0
        self._crowded = False
        """Somebody was told that there is no room, and hears when there is."""
        self._collected: list[Chain] = []
        """Buffers taken for a frame that needs more of them."""
        self._unsent: list[Chain] = []
        """The frame that the network had no room for."""
        network.attach(self)

    # -- what the network sees ---------------------------------------------------------------

    @property
    def completes_checksums(self) -> bool:
        """The guest takes frames whose TCP checksum is not complete."""
        return bool(self.features & VIRTIO_NET_F_GUEST_CSUM)

    def largest_segment(self, *, ipv6: bool) -> int:
        """Bytes of payload of one TCP segment to the guest."""
        wanted = VIRTIO_NET_F_GUEST_TSO6 if ipv6 else VIRTIO_NET_F_GUEST_TSO4
        large = self.features & wanted and self.completes_checksums
        return LARGEST_SEGMENT if large else USUAL_SEGMENT

    @property
    def room(self) -> bool:
        """Whether another frame would not be lost."""
        if self._pending_bytes < MAX_PENDING // 2:
            return True
        self._crowded = True
        return False

    def deliver(self, frame: bytes, *, partial: bool = False, segment: int = 0) -> None:
        """A frame for the guest; see :class:`vdisk.vm.net.user.Adapter`."""
        self.pass_on(offload_header(frame, partial=partial, segment=segment), frame)

    def pass_on(self, header: bytes, frame: bytes) -> None:
        """A frame for the guest with the ten bytes that stand before it."""
        full = self._pending_bytes + len(frame) > MAX_PENDING
        if not self.running or not self._link or full:
            return
        if not self.completes_checksums:  # then nothing may be said about them (5.1.6.4.1)
            header = NO_OFFLOAD
        self._pending.append(Pending(header, frame))
        self._pending_bytes += len(frame)
        self.notify(RECEIVE)

    def send_again(self) -> None:
        """The network has room: send what it had none for, and what came meanwhile."""
        slot, unsent = self.slots[TRANSMIT], self._unsent
        self._unsent = []
        for chain in unsent:
            self._use_again(slot, chain)
        if slot.stalled and not self._unsent:
            slot.stalled = False
            self.notify(TRANSMIT)

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it."""
        if up != self._link:
            self._link = up
            self.config_changed()

    # -- queues ------------------------------------------------------------------------------

    @property
    def header_length(self) -> int:
        """Bytes of the header, as the driver has it."""
        merged = self.features & (VIRTIO_NET_F_MRG_RXBUF | VIRTIO_F_VERSION_1)
        return 12 if merged else 10

    def serve(self, slot: Slot, ring: Virtqueue) -> None:
        if slot.index == RECEIVE:
            self._fill(slot, ring)
        else:
            super().serve(slot, ring)

    def use(self, slot: Slot, chain: Chain) -> int | None:
        if slot.index == RECEIVE:  # of a loaded machine: held for the next frame
            self._collected.append(chain)
            return None
        if sum(map(len, chain.readable)) > LARGEST_FRAME + self.header_length:
            raise BrokenQueueError(f"a frame of more than {LARGEST_FRAME} bytes")
        header, frame = chain.head(self.header_length)
        if self._link and not self._network.transmit(header, frame):
            self._unsent.append(chain)
            return None
        return 0

    def ready(self, slot: Slot) -> bool:
        return slot.index == RECEIVE or not self._unsent

    def _fill(self, slot: Slot, ring: Virtqueue) -> None:
        """Put frames into the buffers that the driver gave; it notifies when we wait for more."""
        while self._pending and self._collect(slot, ring, len(self._pending[0].frame)):
            pending = self._pending.popleft()
            self._pending_bytes -= len(pending.frame)
            self._put(slot, ring, pending)
        if not self._pending:
            ring.pause_notifications()
        self.publish(slot)
        if self._crowded and self._pending_bytes < MAX_PENDING // 4:
            self._crowded = False
            self._network.room_again()

    def _collect(self, slot: Slot, ring: Virtqueue, length: int) -> bool:
        """Take buffers until there is room for a frame; False while there is not."""
        wanted = length + self.header_length
        merged = self.features & VIRTIO_NET_F_MRG_RXBUF
        have = sum(chain.room for chain in self._collected)
        while have < wanted and (merged or not self._collected):
            chain = ring.pop()
            if chain is None:
                if ring.await_notification():
                    continue
                return False
            if chain.room < self.header_length:
                raise BrokenQueueError("a buffer without room for a frame's header")
            self._collected.append(chain)
            slot.held[chain.key] = chain
            have += chain.room
        return True

    def _put(self, slot: Slot, ring: Virtqueue, pending: Pending) -> None:
        """Write a frame; one that does not fit where buffers are not merged is lost."""
        buffers = len(self._collected).to_bytes(2, "little")[: self.header_length - len(NO_OFFLOAD)]
        data = memoryview(pending.header + buffers + pending.frame)
        if len(data) > sum(chain.room for chain in self._collected):
            return
        for chain in self._collected:
            written = 0
            for view in chain.writable:
                part = data[: len(view)]
                view[: len(part)] = part
                data = data[len(part) :]
                written += len(part)
            chain.dirtied(self.memory)
            slot.held.pop(chain.key, None)
            ring.push(chain, written)
        self._collected.clear()

    # -- configuration -----------------------------------------------------------------------

    def config(self) -> bytes:
        return _CONFIG.pack(self.mac, STATUS_LINK_UP if self._link else 0, 1, 0)

    def started(self) -> None:
        self._network.start()

    def stop(self) -> None:
        self._unsent.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self._crowded = False
        self._collected.clear()
        self._network.reset()
