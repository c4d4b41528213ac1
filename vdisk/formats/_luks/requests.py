"""Carrying out the options of ``create`` and ``amend``: secrets looked up, volumes made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.errors import AuthenticationError, InvalidRequestError, NotFoundError
from vdisk.formats._luks import keyslots
from vdisk.formats._luks.options import CREATE_OPTIONS, DEFAULT_ITER_TIME
from vdisk.formats._luks.specification import CipherSpec, Hash
from vdisk.options import OptionBag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vdisk.formats._luks.keyslots import KeySlots


def find_secret(secrets: Mapping[str, bytes], identity: str) -> bytes:
    """The secret called ``identity``; raises :class:`NotFoundError`."""
    try:
        return secrets[identity]
    except KeyError:
        raise NotFoundError(
            f"No secret with id {identity!r}: define it (--object secret,id={identity},file=…, or "
            "secrets= in Python)"
        ) from None


def passphrase_of(
    options: Mapping[str, Any], secrets: Mapping[str, bytes], *, prefix: str = ""
) -> bytes:
    """The passphrase that ``create`` options name; ``prefix``: see :func:`make_volume`."""
    identity = options.get("key-secret")
    if identity is None:
        raise AuthenticationError(
            f"encryption needs a passphrase: name its secret with the option {prefix}key-secret"
        )
    return find_secret(secrets, identity)


def spec_of(options: Mapping[str, Any]) -> CipherSpec:
    """The cipher that ``create`` options choose; what they leave open is the default."""
    chosen = {option.name: option.default or "" for option in CREATE_OPTIONS}
    chosen |= {name: value for name, value in options.items() if value is not None}
    return CipherSpec.from_options(
        chosen["cipher-alg"],
        chosen["cipher-mode"],
        chosen["ivgen-alg"],
        chosen["ivgen-hash-alg"],
    )


def make_volume(
    options: Mapping[str, Any], secrets: Mapping[str, bytes], *, prefix: str = ""
) -> bytes:
    """A new volume as ``create`` options say: all bytes up to the first encrypted sector.

    ``prefix``: what errors put before the names of options.
    """
    return keyslots.make_volume(
        spec_of(options),
        Hash(options.get("hash-alg") or "sha256"),
        passphrase_of(options, secrets, prefix=prefix),
        iter_time=_milliseconds(options.get("iter-time")),
    )


def _milliseconds(value: int | None) -> int:
    return DEFAULT_ITER_TIME if value is None else value


def amend_slots(
    slots: KeySlots,
    master_key: bytes | None,
    options: Mapping[str, Any],
    secrets: Mapping[str, bytes],
    *,
    force: bool = False,
) -> None:
    """Add or erase passphrases as ``amend`` options say.

    ``state=active`` needs new-secret, and may name a free keyslot; ``state=inactive`` needs
    keyslot, old-secret (every slot it opens) or both.  ``force``: even what loses all data.
    ``master_key``: None where the volume is locked, which is enough to erase.
    """
    bag = OptionBag(options, "amend")
    if "state" not in bag:
        raise InvalidRequestError("amend needs the option state=active or state=inactive")
    state = bag.choice("state", ("active", "inactive"), "active")
    keyslot = bag.size("keyslot")
    if state == "active":
        new = bag.required("new-secret")
        iter_time = _milliseconds(bag.size("iter-time"))
        bag.finish()
        if master_key is None:
            raise AuthenticationError(
                "the volume is locked: adding a passphrase needs one that opens it (key-secret)"
            )
        passphrase = find_secret(secrets, new)
        slots.add(master_key, passphrase, slot=keyslot, iter_time=iter_time, force=force)
    else:
        old = bag.string("old-secret")
        bag.finish()
        _erase(slots, keyslot, None if old is None else find_secret(secrets, old), force)


def _erase(slots: KeySlots, keyslot: int | None, old: bytes | None, force: bool) -> None:
    if keyslot is None:
        if old is None:
            raise InvalidRequestError("erasing needs keyslot (a number), old-secret, or both")
        slots.erase_matching(old, force=force)
        return
    if old is not None and not slots.opens(keyslot, old):
        raise AuthenticationError(f"the old passphrase does not open key slot {keyslot}")
    slots.erase(keyslot, force=force)
