"""Key slots: unlocking, adding and erasing passphrases, and what a crash leaves of them."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import pytest

from vdisk.errors import (
    AuthenticationError,
    CorruptImageError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedFeatureError,
)
from vdisk.formats._luks import header as phdr
from vdisk.formats._luks import keyslots
from vdisk.formats._luks.header import parse
from vdisk.formats._luks.keyslots import KeySlots
from vdisk.formats._luks.requests import amend_slots
from vdisk.formats._luks.specification import HASHES, CipherSpec, Hash
from vdisk.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = CipherSpec("aes", 32, "xts", "plain64")


def make_volume(passphrase: bytes = b"first", hash: str = "sha256", spec: CipherSpec = SPEC):
    return keyslots.make_volume(spec, Hash(hash), passphrase, iter_time=0)


@pytest.fixture(scope="module")
def volume() -> bytes:
    return make_volume()


@pytest.fixture
def slots(volume: bytes) -> KeySlots:
    return KeySlots(MemoryStore(volume))


def opens(content: bytes, passphrase: bytes) -> bool:
    try:
        KeySlots(MemoryStore(content)).unlock(passphrase)
    except AuthenticationError:
        return False
    return True


# -- unlocking -------------------------------------------------------------------------------------


def test_a_new_volume_opens_with_its_passphrase_only(slots: KeySlots):
    key = slots.unlock(b"first")
    assert len(key) == 32
    with pytest.raises(AuthenticationError, match="Invalid password"):
        slots.unlock(b"First")
    with pytest.raises(AuthenticationError):
        slots.unlock(b"")


@pytest.mark.parametrize("name", HASHES)
def test_every_hash(name: str):
    assert opens(make_volume(hash=name), b"first")


@pytest.mark.parametrize(
    "spec",
    [
        CipherSpec("aes", 24, "cbc", "essiv", "sha256"),  # key material of 187.5 sectors
        CipherSpec("aes", 16, "ecb", ""),
        CipherSpec("aes", 32, "ctr", "plain"),
        CipherSpec("cast5", 16, "cbc", "plain64"),
    ],
)
def test_other_ciphers(spec: CipherSpec):
    content = make_volume(spec=spec)
    header = parse(content)
    assert len(content) == header.payload_offset
    assert opens(content, b"first")


def test_the_same_random_bytes_make_the_same_volume():
    def random_bytes() -> object:
        counter = itertools.count()
        return lambda size: hashlib.shake_128(b"%d" % next(counter)).digest(size)

    first, second = (
        keyslots.make_volume(SPEC, Hash("sha1"), b"x", iter_time=0, random_bytes=random_bytes())
        for _ in range(2)
    )
    assert first == second


def test_a_slower_derivation_has_more_iterations():
    content = keyslots.make_volume(SPEC, Hash("sha256"), b"x", iter_time=100)
    header = parse(content)
    assert header.slots[0].iterations > 4 * header.mk_digest_iterations > 4000
    with pytest.raises(InvalidRequestError, match="too many to unlock"):
        keyslots.make_volume(SPEC, Hash("sha256"), b"x", iter_time=3_600_000)


def test_a_hostile_iteration_count_is_refused_at_once(volume: bytes):
    header = parse(volume)
    for hostile in (
        header._replace(mk_digest_iterations=0xFFFF_FFFF),
        header.with_slot(0, header.slots[0]._replace(iterations=0xFFFF_FFFF)),
    ):
        slots = KeySlots(MemoryStore(hostile.to_bytes() + volume[phdr.HEADER_SIZE :]))
        with pytest.raises(UnsupportedFeatureError, match=f"more than {2**28}"):
            slots.unlock(b"first")


def test_slots_before_an_expensive_one_are_tried(slots: KeySlots):
    expensive = slots.header.slots[1]._replace(active=True, iterations=0xFFFF_FFFF)
    slots.header = slots.header.with_slot(1, expensive)
    slots.unlock(b"first")
    with pytest.raises(UnsupportedFeatureError, match="up to 1"):
        slots.unlock(b"other")


def test_a_file_that_ends_inside_the_key_material(volume: bytes):
    with pytest.raises(CorruptImageError, match="past the end") as caught:
        KeySlots(MemoryStore(volume[:-5000], name="cut.luks"))
    assert caught.value.path == "cut.luks"
    with pytest.raises(CorruptImageError, match="cut short"):
        KeySlots(MemoryStore(volume[:100], growable=False))


def test_a_volume_inside_a_file(volume: bytes):
    file = MemoryStore(b"\xaa" * 1000 + volume + b"\xbb" * 1000)
    slots = KeySlots(file, base=1000, length=len(volume))
    slots.add(slots.unlock(b"first"), b"second", iter_time=0)
    slots.erase(0)
    assert file.content()[:1000] == b"\xaa" * 1000
    assert file.content()[-1000:] == b"\xbb" * 1000
    assert opens(file.content()[1000:-1000], b"second")
    with pytest.raises(CorruptImageError, match="past the end"):
        KeySlots(file, base=1000, length=100_000)


# -- changing --------------------------------------------------------------------------------------


def test_passphrases_come_and_go(slots: KeySlots):
    key = slots.unlock(b"first")
    assert slots.add(key, b"second", iter_time=0) == 1
    assert slots.add(key, b"third", slot=7, iter_time=0) == 7
    assert slots.header.active_slots == [0, 1, 7]
    assert [slots.unlock(word) for word in (b"first", b"second", b"third")] == [key] * 3
    slots.erase(0)
    with pytest.raises(AuthenticationError):
        slots.unlock(b"first")
    assert slots.erase_matching(b"third") == [7]
    assert slots.header.active_slots == [1]
    assert KeySlots(slots._area).header == slots.header


def test_all_slots_are_used_then_none_is_left(slots: KeySlots):
    key = slots.unlock(b"first")
    for number in range(1, 8):
        assert slots.add(key, b"%d" % number, iter_time=0) == number
    with pytest.raises(InvalidRequestError, match="all keyslots are in use"):
        slots.add(key, b"ninth")
    assert slots.unlock(b"7") == key


def test_erased_key_material_is_overwritten(slots: KeySlots):
    slots.add(slots.unlock(b"first"), b"second", iter_time=0)
    slot, size = slots.header.slots[0], slots.header.material_size
    before = slots._area.read(slot.offset, size)
    slots.erase(0)
    after = slots._area.read(slot.offset, size)
    same = sum(a == b for a, b in zip(before, after, strict=True))
    assert same < size // 100
    entry = slots.header.slots[0]
    assert (entry.active, entry.iterations, entry.salt) == (False, 0, bytes(32))


def test_the_last_slot_is_kept(slots: KeySlots):
    for erase in (lambda: slots.erase(0), lambda: slots.erase_matching(b"first")):
        with pytest.raises(InvalidRequestError, match="erase all the data"):
            erase()
    slots.erase(0, force=True)
    assert slots.header.active_slots == []
    with pytest.raises(AuthenticationError):
        slots.unlock(b"first")


def test_requests_that_cannot_work(slots: KeySlots):
    key = slots.unlock(b"first")
    with pytest.raises(InvalidRequestError, match="not between 0 and 7"):
        slots.add(key, b"x", slot=8)
    with pytest.raises(InvalidRequestError, match="overwrite active keyslot 0"):
        slots.add(key, b"x", slot=0)
    with pytest.raises(InvalidRequestError, match="slot 3 is not active"):
        slots.erase(3)
    with pytest.raises(InvalidRequestError, match="not between"):
        slots.erase(-1)
    with pytest.raises(AuthenticationError, match="No keyslots match"):
        slots.erase_matching(b"other")


def test_amend_options(slots: KeySlots):
    key = slots.unlock(b"first")
    secrets = {"old": b"first", "new": b"second", "other": b"third"}

    def amend(**options: object) -> None:
        dashed = {name.replace("_", "-"): value for name, value in options.items()}
        amend_slots(slots, key, dashed, secrets)

    amend(state="active", new_secret="new", iter_time=0)
    amend(state="active", new_secret="new", keyslot=5, iter_time=0)
    assert slots.header.active_slots == [0, 1, 5]
    amend(state="inactive", keyslot=5, old_secret="new")
    with pytest.raises(AuthenticationError, match="does not open key slot 0"):
        amend(state="inactive", keyslot=0, old_secret="new")
    amend(state="inactive", old_secret="old")
    assert slots.header.active_slots == [1]
    for wrong, message in (
        ({}, "state=active or state=inactive"),
        ({"state": "off"}, "'active'|active, inactive"),
        ({"state": "active"}, "needs the option 'new-secret'"),
        ({"state": "active", "new_secret": "new", "old_secret": "old"}, "'old-secret'"),
        ({"state": "inactive"}, "erasing needs keyslot"),
        ({"state": "inactive", "old_secret": "new", "iter_time": 1}, "'iter-time'"),
        ({"state": "inactive", "old_secret": "new", "new_secret": "new"}, "'new-secret'"),
        ({"state": "inactive", "keyslot": 1}, "only active keyslot 1"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            amend(**wrong)
    with pytest.raises(NotFoundError, match="No secret with id 'absent'"):
        amend(state="active", new_secret="absent")
    with pytest.raises(AuthenticationError, match="locked"):
        amend_slots(slots, None, {"state": "active", "new-secret": "new"}, secrets)


# -- crashes ---------------------------------------------------------------------------------------


class LoggedStore(MemoryStore):
    """Remembers its writes in order, cut to pieces that reach a disk as a whole."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.before = content
        self.writes: list[tuple[int, bytes]] = []

    def _write(self, offset: int, view: memoryview) -> None:
        super()._write(offset, view)
        middle = len(view) // 2
        self.writes += [(offset, bytes(view[:middle])), (offset + middle, bytes(view[middle:]))]
        if len(view) <= phdr.SLOT_SIZE:  # inside one sector
            self.writes[-2:] = [(offset, bytes(view))]

    def cuts(self) -> Iterator[bytes]:
        content = bytearray(self.before)
        yield bytes(content)
        for offset, data in self.writes:
            content[offset : offset + len(data)] = data
            yield bytes(content)


def test_a_crash_while_adding_leaves_the_old_passphrase(volume: bytes):
    store = LoggedStore(volume)
    slots = KeySlots(store)
    slots.add(slots.unlock(b"first"), b"second", iter_time=0)
    cuts = list(store.cuts())
    assert len(cuts) == 4
    assert all(opens(cut, b"first") for cut in cuts)
    assert [opens(cut, b"second") for cut in cuts] == [False, False, False, True]


def test_a_crash_while_erasing_never_leaves_the_erased_passphrase_at_large(volume: bytes):
    slots = KeySlots(MemoryStore(volume))
    slots.add(slots.unlock(b"first"), b"second", iter_time=0)
    store = LoggedStore(slots._area.content())
    KeySlots(store).erase_matching(b"first")
    cuts = list(store.cuts())
    assert all(opens(cut, b"second") for cut in cuts)
    assert [opens(cut, b"first") for cut in cuts] == [True, False, False, False]


def test_a_crash_while_overwriting_the_only_slot_leaves_a_passphrase(volume: bytes):
    store = LoggedStore(volume)
    slots = KeySlots(store)
    slots.add(slots.unlock(b"first"), b"second", slot=0, iter_time=0, force=True)
    assert slots.header.active_slots == [0]
    cuts = list(store.cuts())
    assert all(opens(cut, b"first") or opens(cut, b"second") for cut in cuts)
    assert opens(cuts[-1], b"second")
    assert not opens(cuts[-1], b"first")
