"""luks: an encrypted disk in a file or on a block device (LUKS1).

The volume says itself how it is encrypted; who has a passphrase of one of its eight key slots
can read it.  See :mod:`vdisk.formats._luks.header` for the layout and
:mod:`vdisk.formats._luks.keyslots` for the passphrases.  The volumes are those of cryptsetup
and QEMU::

    vdisk.open("disk.luks", options={"key-secret": "s"}, secrets={"s": b"passphrase"})

Without ``key-secret`` the volume is opened locked: its header can be looked at, and every read
or write of data is an :class:`~vdisk.errors.AuthenticationError`.  Sectors that were never
written read as noise, as on any encrypted disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import CorruptImageError, InvalidRequestError
from vdisk.formats import NO_SECRETS, CreateOption, OpenContext
from vdisk.formats._luks.header import SECTOR, default_payload_offset
from vdisk.formats._luks.keyslots import KeySlots
from vdisk.formats._luks.options import AMEND_OPTIONS, CREATE_OPTIONS
from vdisk.formats._luks.requests import amend_slots, find_secret, make_volume, spec_of
from vdisk.formats._luks.view import EncryptedView, LockedSectors
from vdisk.formats.raw import PREALLOCATION, preallocate
from vdisk.options import OptionBag
from vdisk.units import round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vdisk.block import BlockDevice


class LuksImage(EncryptedView):
    """The disk inside the LUKS volume in ``file``; its size is what the header leaves over.

    ``passphrase`` None: locked (see the module).  ``secrets``: passphrases for :meth:`amend`.
    Raises what :class:`~vdisk.formats._luks.keyslots.KeySlots` raises, and
    :class:`~vdisk.errors.AuthenticationError` for a wrong passphrase.
    """

    format_name = "luks"

    def __init__(
        self,
        file: BlockDevice,
        *,
        passphrase: bytes | None = None,
        readonly: bool = True,
        secrets: Mapping[str, bytes] = NO_SECRETS,
    ) -> None:
        self.slots = KeySlots(file)
        payload = self.slots.header.payload_offset
        if payload > file.size:
            raise CorruptImageError(
                f"LUKS header: the payload begins at {payload:#x}, past the end ({file.size:#x})",
                path=file.name,
            )
        self._master_key = None if passphrase is None else self.slots.unlock(passphrase)
        cipher = (
            LockedSectors(file.name, "key-secret")
            if self._master_key is None
            else self.slots.spec.cipher(self._master_key)
        )
        super().__init__(file, cipher, base=payload)
        self.readonly = readonly
        self.growable = False
        self._secrets = secrets
        self._size = round_up(file.size - payload, SECTOR)

    @property
    def size(self) -> int:
        return self._size

    @property
    def locked(self) -> bool:
        """No passphrase was given: only the header can be used."""
        return self._master_key is None

    def format_info(self) -> dict[str, Any]:
        """QAPI's ImageInfoSpecificLUKS "data"."""
        return self.slots.info()

    def amend(
        self,
        options: Mapping[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Add or erase passphrases, as ``qemu-img amend -o`` (see ``AMEND_OPTIONS``)."""
        self._check_write("amend", 0, 0)
        amend_slots(self.slots, self._master_key, options, self._secrets, force=force)
        if progress is not None:
            progress(1, 1)

    def _truncate(self, size: int) -> None:
        """Shrinking cuts; growing writes the new sectors, since a hole would read as noise."""
        if size % SECTOR:
            raise InvalidRequestError(f"size {size} is not a multiple of {SECTOR}", path=self.name)
        if size > self._size:
            self._write_zeroes(self._size, size - self._size, unmap=False)
        else:
            self.file.truncate(self._base + size)
        self._size = size


class LuksDriver:
    """Opens and creates LUKS volumes."""

    name = "luks"
    create_options = (
        CreateOption("size", "size", "virtual disk size"),
        *CREATE_OPTIONS,
        CreateOption(
            "preallocation",
            "enum",
            "what to allocate now",
            default="off",
            choices=(*PREALLOCATION, "metadata"),
        ),
    )
    amend_options = AMEND_OPTIONS

    def open(self, file: BlockDevice, context: OpenContext) -> LuksImage:
        try:
            bag = OptionBag(context.options, "driver 'luks'")
            identity = bag.string("key-secret")
            bag.finish()
            return LuksImage(
                file,
                passphrase=None if identity is None else find_secret(context.secrets, identity),
                readonly=context.readonly,
                secrets=context.secrets,
            )
        except BaseException:
            file.close()
            raise

    def create(
        self,
        file: BlockDevice,
        size: int,
        options: Mapping[str, Any],
        secrets: Mapping[str, bytes] = NO_SECRETS,
    ) -> None:
        """A volume as qemu-img makes it; ``size`` is rounded up to whole sectors."""
        beginning = make_volume(options, secrets)
        end = len(beginning) + round_up(size, SECTOR)
        file.truncate(0)
        file.truncate(end)
        mode = options.get("preallocation") or "off"
        if size and mode != "metadata":
            preallocate(file, len(beginning), end, mode)
        file.write(0, beginning.rstrip(b"\0"))  # unused key slots stay holes

    def measure(
        self, size: int, options: Mapping[str, Any], allocated: int | None = None
    ) -> tuple[int, int]:
        """Bytes of the file at first, and when all of the disk is written: the same."""
        end = default_payload_offset(spec_of(options).key_bytes) + round_up(size, SECTOR)
        return end, end


DRIVER = LuksDriver()
