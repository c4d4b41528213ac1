"""Pieces of a range."""

from vdisk.nbd.coverage import Coverage


def test_pieces_that_touch_become_one() -> None:
    coverage = Coverage(100, 50)
    assert coverage.add(100, 10)
    assert coverage.add(130, 20)
    assert coverage.fragments == 2
    assert coverage.add(110, 20)
    assert coverage.fragments == 1
    assert coverage.complete


def test_a_piece_that_overlaps_is_refused_and_changes_nothing() -> None:
    coverage = Coverage(0, 100)
    assert coverage.add(20, 20)
    for offset, length in [(20, 20), (0, 21), (39, 1), (30, 50), (0, 100), (25, 5)]:
        assert not coverage.add(offset, length)
    assert coverage.filled == 20
    assert coverage.add(0, 20)
    assert coverage.add(40, 60)
    assert coverage.complete


def test_what_lies_in_the_range() -> None:
    coverage = Coverage(100, 50)
    assert coverage.contains(100, 50)
    assert coverage.contains(149, 1)
    assert not coverage.contains(99, 2)
    assert not coverage.contains(149, 2)
    assert not coverage.contains(150, 1)
