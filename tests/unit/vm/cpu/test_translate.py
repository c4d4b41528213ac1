"""Blocks: where they end, which flags they leave, how they are linked and dropped."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdisk.vm.accel.interp import InterpAccelerator
from vdisk.vm.accel.llvm import LlvmAccelerator
from vdisk.vm.bus import Bus
from vdisk.vm.cpu import known
from vdisk.vm.cpu.decode import FLAT_MODE, Mode
from vdisk.vm.cpu.faults import GuestFault
from vdisk.vm.cpu.flags import Family, cc_op
from vdisk.vm.cpu.records import PARAMS, RECORD, RECORD_SIZE, WIDE_RECORD
from vdisk.vm.cpu.semantics.sse import IMMEDIATE_SHIFT
from vdisk.vm.cpu.translation import BLOCK_LIMIT
from vdisk.vm.memory import PAGE_SIZE, GuestMemory

LONG = Mode(64, 64, checked=False)
PAGE = 5
START = PAGE * PAGE_SIZE


class Bench:
    """An engine with one processor, whose translations are looked at."""

    def __init__(self, make):
        self.memory = GuestMemory(1 << 20)
        self.engine = make(self.memory, Bus())
        self.vcpu = self.engine.vcpu(0)
        self.arena = self.engine.arena

    def close(self):
        self.engine.close()

    def translate(self, code, offset=0, mode=LONG):
        """Translate a block of the page that begins with ``code``; its first record, or 0."""
        code = bytes.fromhex(code) if isinstance(code, str) else code
        if self.memory.read(START, len(code)) != code:
            self.memory.write(START, code)
        self.engine.translate(self.vcpu, START + offset, mode)
        return self.entry(offset, mode)

    def entry(self, offset=0, mode=LONG):
        codes = self.arena.codes(PAGE, mode)
        return self.arena.entry(codes, offset) if codes else 0

    def shapes(self, first, count):
        """The shapes of a block's first records."""
        return [self.engine.shapes[self.arena.handler(first + place)] for place in range(count)]

    def drop(self, start=0, end=PAGE_SIZE):
        self.arena.give_back(PAGE, start, end)
        return bool(self.vcpu.routine("drop_code", PAGE, start, end))

    def is_stale(self, record):
        return self.engine.shapes[self.arena.handler(record)].operation == "stale"

    def fields(self, record):
        """(offset in the page, length, count) of a record."""
        at = record * RECORD_SIZE
        data = self.arena.bytes[at : at + RECORD_SIZE].tobytes()
        offset = int.from_bytes(data[PARAMS["off"].offset :][:2], "little")
        return offset, data[PARAMS["len"].offset], data[PARAMS["count"].offset]

    def parameters(self, first, count):
        """What records hold, but for their handlers."""
        places = range(first * RECORD_SIZE, (first + count) * RECORD_SIZE, RECORD_SIZE)
        return [self.arena.bytes[place + 8 : place + RECORD_SIZE].tobytes() for place in places]


@contextmanager
def bench(make):
    made = Bench(make)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def it():
    with bench(InterpAccelerator) as made:
        yield made


def test_flags_that_the_next_instruction_overwrites_are_not_left(it):
    first = it.translate("01c8 29d8 c3")  # add; sub; ret
    add, sub, ret = it.shapes(first, 3)
    assert (add.operation, add.flags) == ("add", False)
    assert (sub.operation, sub.flags) == ("sub", True)
    assert ret.operation == "ret"


def test_a_fault_shows_flags_so_they_are_left_before_it(it):
    first = it.translate("01c8 8903 29d8 c3")  # add; mov [rbx], eax; sub; ret
    assert it.shapes(first, 1)[0].flags


def test_a_reader_is_told_where_its_flags_come_from(it):
    first = it.translate("39d8 7402 c3 90 90 c3")  # cmp; je; ret
    _, jump = it.shapes(first, 2)
    assert jump.operation == "jcc"
    assert jump.known == cc_op(Family.SUB, 32)


def test_a_carry_that_inc_keeps_is_known_to_nobody(it):
    first = it.translate("0fa3c8 7201 c3")  # bt; jc
    assert it.shapes(first, 2)[1].known == -1


def test_encodings_that_only_zeroes_tell_apart(it):
    """mov rax, [rbp]; mov rax, [rbp+8]: the bytes of the first are those of neither's prefix."""
    code = "488b4500 488b4508 488b4500 c3"
    first = it.translate(code)
    places = [first * RECORD_SIZE + number * RECORD_SIZE for number in range(3)]
    displacements = [it.arena.bytes[place + PARAMS["disp"].offset] for place in places]
    assert displacements == [0, 8, 0]


def test_a_block_ends_at_its_limit(it):
    first = it.translate("90" * (BLOCK_LIMIT + 10))
    assert it.fields(first + BLOCK_LIMIT - 1) == (BLOCK_LIMIT - 1, 1, BLOCK_LIMIT)
    assert it.shapes(first + BLOCK_LIMIT, 1)[0].operation == "block_end"
    assert it.fields(first + BLOCK_LIMIT)[0] == BLOCK_LIMIT


def test_half_an_instruction_is_no_block(it):
    it.memory.write(START + PAGE_SIZE - 2, b"\xe8\x00")
    assert not it.engine.translate(it.vcpu, START + PAGE_SIZE - 2, LONG)


def test_half_an_instruction_from_its_bytes_is_none(it):
    assert not it.engine.translate_once(it.vcpu, b"\xe8\x00", PAGE_SIZE - 2, LONG)
    assert it.engine.translate_once(it.vcpu, b"\x90\xe8", PAGE_SIZE - 2, LONG)


def test_code_outside_memory_that_goes_on_in_a_page_that_is_not_there_is_a_page_fault(it):
    """The last byte of a page of nothing, in real memory's place, with the next page absent."""
    state, tables = it.vcpu.state, 0x8000
    rows = {0: (tables + 0x1000) | 3, 0x1000: (tables + 0x2000) | 3, 0x2000: (tables + 0x3000) | 3}
    for place, entry in rows.items():
        it.memory.write(tables + place, entry.to_bytes(8, "little"))
    it.memory.write(tables + 0x3000, ((8 << 20) | 3).to_bytes(8, "little"))  # page 0: no memory
    system = it.vcpu.get_system_registers()
    system.cr0, system.cr3, system.cr4, system.efer = 0x8000_0011, tables, 0x20, 0x500
    system.cs.selector, system.cs.base, system.cs.limit, system.cs.attributes = 8, 0, 0, 0xA09B
    it.vcpu.set_system_registers(system)
    state.rip = PAGE_SIZE - 1
    with pytest.raises(GuestFault) as caught:
        it.vcpu._translate()
    assert (caught.value.vector, caught.value.address) == (14, PAGE_SIZE)


def test_a_block_stops_before_half_an_instruction(it):
    it.memory.write(START + PAGE_SIZE - 3, b"\x90\xe8\x00")
    first = it.translate(b"", offset=PAGE_SIZE - 3)
    assert it.shapes(first, 2)[1].operation == "block_end"
    assert it.fields(first + 1)[0] == PAGE_SIZE - 2


def test_a_jump_waits_for_its_target_and_then_follows_it(it):
    code = "eb04" + "90" * 4 + "c3"  # jmp +4
    jump = it.translate(code)
    stub = it.arena.wide(jump)
    assert it.entry(6) == 0
    target = it.translate(code, offset=6)
    assert it.arena.wide(jump) == it.arena.record_address(target) != stub


def test_several_jumps_wait_for_one_target(it):
    code = "eb04 eb02 eb00 c3"
    jumps = [it.translate(code, offset=offset) for offset in (0, 2, 4)]
    target = it.translate(code, offset=6)
    assert {it.arena.wide(jump) for jump in jumps} == {it.arena.record_address(target)}


def test_a_jump_to_its_own_block_is_linked_at_once(it):
    jump = it.translate("ebfe")
    assert it.arena.wide(jump) == it.arena.record_address(jump)


def test_a_narrow_jump_is_not_linked(it):
    first = it.translate("66eb02909090c3", mode=FLAT_MODE)
    assert not it.shapes(first, 1)[0].variant >> 8


def test_the_instruction_after_sti_ends_the_block(it):
    first = it.translate("fb 90 90 90")
    assert it.shapes(first, 3)[2].operation == "block_end"
    assert it.fields(first + 2)[0] == 2


def test_dropping_a_page_makes_all_its_records_stale(it):
    first = it.translate("01c8 29d8 c3")
    assert it.drop()
    assert it.entry() == 0
    assert all(it.is_stale(first + place) for place in range(3))
    assert it.arena.dropped(PAGE) == 1


def test_a_write_drops_the_blocks_that_it_touches_and_no_others(it):
    code = "01c8 c3 29d8 c3"
    it.translate(code)
    second = it.translate(code, offset=3)
    assert not it.drop(6, 7)
    assert it.drop(2, 3)
    assert (it.entry(0), it.entry(3)) == (0, second)
    assert not it.is_stale(second)
    assert it.arena.mask(PAGE) == 1


def test_a_target_that_was_dropped_is_looked_up_by_who_waits_for_it(it):
    code = "eb04" + "90" * 4 + "c3"
    jump = it.translate(code)
    it.drop(0, 1)
    again = it.translate(code)
    target = it.translate(code, offset=6)
    assert it.is_stale(jump)
    assert it.arena.wide(again) == it.arena.record_address(target)


def test_a_region_gives_way_when_any_of_its_blocks_is_written_to(it):
    head = it.translate("01c8 c3 29d8 c3")
    it.translate("01c8 c3 29d8 c3", offset=3)
    before = it.arena.handler(head)
    it.arena.use_region(PAGE, [head], ((0, 3), (3, 6)), 0x4077)
    assert it.arena.handler(head) == 0x4077
    it.drop(4, 5)
    assert it.arena.handler(head) == before
    assert not it.arena.regions


def test_of_two_regions_with_an_entry_in_common_the_second_is_used(it):
    head, other = it.translate("01c8 c3 29d8 c3"), it.translate("01c8 c3 29d8 c3", offset=3)
    before = it.arena.handler(head), it.arena.handler(other)
    it.arena.use_region(PAGE, [head, other], ((0, 3), (3, 6)), 0x4077)
    it.arena.use_region(PAGE, [head], ((0, 3),), 0x5077)
    assert (it.arena.handler(head), it.arena.handler(other)) == (0x5077, 0x4077)
    it.arena.give_back(PAGE, 4, 5)
    assert (it.arena.handler(head), it.arena.handler(other)) == (0x5077, before[1])
    it.arena.give_back(PAGE, 0, 1)
    assert it.arena.handler(head) == before[0]
    assert not it.arena.regions


def test_only_pages_with_code_are_told_of_writes(it):
    it.translate("c3")
    assert it.arena.touches_code([(START, 1)]) == [(PAGE, 0, 1)]
    assert it.arena.touches_code([(START + PAGE_SIZE, 1), (START - 1, 1)]) == []
    assert it.arena.touches_code([(START + PAGE_SIZE, 1), (START - 1, 3)]) == [(PAGE, 0, 2)]
    assert it.arena.touches_code([(0, 1 << 20)]) == [(PAGE, 0, PAGE_SIZE)]
    assert it.arena.touches_code([(1 << 30, 1)]) == []


def test_writes_of_any_length_are_told(it):
    assert it.arena.touches_code([(0, 1 << 30)]) == []
    it.translate("c3")
    assert it.arena.touches_code([(0, 1 << 30)]) == [(PAGE, 0, PAGE_SIZE)]


def test_instructions_are_forgotten_when_there_are_too_many(it, monkeypatch):
    monkeypatch.setattr(known, "MOST_ENTRIES", 50)
    code = b"".join(b"\xb8" + number.to_bytes(4, "little") + b"\xc3" for number in range(100))
    firsts = {it.translate(code, offset=offset) for offset in range(0, len(code), 6)}
    assert len(firsts - {0}) == 100
    it.drop()
    assert it.translate(code) not in firsts | {0}


def test_handlers_are_numbered_anew_when_there_are_too_many(it, monkeypatch):
    """A guest can have as many as it likes: each immediate byte of PSHUFD makes one."""
    monkeypatch.setattr(known, "MOST_HANDLERS", 8 * known.AT_ONCE + 20)
    code = b"".join(b"\x66\x0f\x70\xc1" + bytes([number]) + b"\xeb\x00" for number in range(100))
    for offset in range(0, len(code), 7):
        pshufd, jump = it.shapes(it.translate(code, offset=offset), 2)
        assert (pshufd.variant >> IMMEDIATE_SHIFT & 0xFF, jump.operation) == (offset // 7, "jmp")
    last = it.translate("90" * 70)
    assert it.shapes(last + BLOCK_LIMIT, 1)[0].operation == "block_end"


def test_everything_goes_when_the_arena_is_cleared(it):
    it.translate("c3")
    it.arena.clear()
    assert (it.entry(), it.arena.generation) == (0, 1)
    assert it.translate("c3") == 1


def test_instructions_that_differ_in_a_number_are_learned_once(it):
    code = b"".join(b"\x48\x8b\x05" + number.to_bytes(4, "little") for number in range(9))
    before = it.arena.known.count
    it.translate(code + b"\xe8\0\0\0\0")
    it.translate(code + b"\xe8\x44\x33\x22\x11", offset=7)
    assert it.arena.known.count - before == 2


@pytest.mark.parametrize(
    ("code", "questions"),
    [
        ("01c8 29d8 c3", 1),  # the first one's flags are not wanted
        ("39c8 90 0f94c1 7405", 1),  # flags are known to come from CMP
        ("01c8 8b03 c3", 1),  # a fault would show them
        ("0f94c1 c3", 2),  # what came before is for the native translator to know
    ],
)
def test_a_new_block_is_learned_in_one_answer(it, monkeypatch, code, questions):
    answers = []
    answer = it.engine.translator._answer
    monkeypatch.setattr(
        it.engine.translator, "_answer", lambda *all_: (answers.append(all_), answer(*all_))
    )
    it.translate(code)
    assert len(answers) == questions


MODES = st.sampled_from([LONG, FLAT_MODE, Mode(16, 16, checked=True)])
NUMBERS = st.one_of(
    st.binary(min_size=4, max_size=4),
    st.sampled_from(
        [-(1 << 31), -(1 << 31) + 0xFFFF, -1, 0, (1 << 31) - 0x10000, (1 << 31) - 1]
    ).map(lambda number: number.to_bytes(4, "little", signed=True)),
)
OPCODES = st.sampled_from(
    [
        *("e8", "e9", "b8", "68", "0f84", "a1", "a9", "81c3", "c705", "8b05", "8d84b3", "6b"),
        *("488b05", "488d05", "4881c4", "48c7c0", "48a1", "0fae05", "ff15", "8b0425", "648b0425"),
        *("69c0", "f20f1005", "660f6f05", "48c78424", "c6840a", "6781c0", "66e8", "f7843e"),
    ]
).map(bytes.fromhex)
CODE = st.one_of(
    st.binary(min_size=16, max_size=200),
    st.lists(st.tuples(OPCODES, NUMBERS).map(b"".join), min_size=4, max_size=20).map(b"".join),
)


def expected(op, is_wide, decoded, offset, number):
    """What a record holds for a micro-op, but for its handler."""
    tail = (offset, decoded.length, op.scale, op.segment, number, op.r2)
    if is_wide:
        return WIDE_RECORD.pack(0, op.r0, op.r1, op.base, op.index, op.wide, *tail)[8:]
    disp = (op.disp + offset + (1 << 31)) % (1 << 32) - (1 << 31) if op.rip_relative else op.disp
    return RECORD.pack(0, op.r0, op.r1, op.base, op.index, disp, op.imm, *tail)[8:]


@settings(max_examples=150, deadline=None)
@given(code=CODE, mode=MODES, start=st.integers(0, 15))
def test_blocks_are_what_the_decoder_finds_on_either_engine(code, mode, start):
    """The same bytes through Python and native code; instructions are those of iced-x86."""
    for make in (InterpAccelerator, LlvmAccelerator):
        with bench(make) as one:
            one.memory.write(START, code)
            for offset in (start, 0, start // 2):  # what has been learned before serves as well
                block = one.engine.translator.decoder(mode).decode_block(
                    one.memory.read(START, PAGE_SIZE), offset, BLOCK_LIMIT
                )
                place, at = one.translate(code, offset=offset, mode=mode), offset
                for number, decoded in enumerate(block, 1):
                    for op, pattern in zip(decoded.ops, decoded.form.patterns, strict=True):
                        (found,) = one.parameters(place, 1)
                        is_wide = pattern.wide is not None
                        wanted = expected(op, is_wide, decoded, at, number)
                        if op.jump is not None and decoded.form.links:
                            target = at + decoded.length + op.jump
                            if 0 <= target < PAGE_SIZE:  # a link, which differs
                                found, wanted = found[16:], wanted[16:]
                        assert found == wanted, (
                            decoded.form.name,
                            code[at : at + decoded.length].hex(),
                        )
                        place += 1
                    at += decoded.length
