"""Clocks: timers fire at their time, in order, once; arming again costs no memory."""

from __future__ import annotations

import threading
import time

from tests.tools.patience import PATIENCE
from vdisk.vm.clock import SECOND, RealClock, VirtualClock


def test_timers_fire_in_order_at_their_own_time() -> None:
    clock = VirtualClock()
    fired: list[tuple[str, int]] = []
    for name, deadline in (("late", 300), ("early", 100), ("middle", 200)):
        clock.timer(lambda name=name: fired.append((name, clock.now()))).arm(deadline)
    clock.advance(250)
    assert fired == [("early", 100), ("middle", 200)]
    assert clock.now() == 250
    clock.advance(1000)
    assert fired[-1] == ("late", 300)


def test_arming_again_replaces_and_cancelling_removes() -> None:
    clock = VirtualClock()
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()))
    timer.arm(100)
    timer.arm(200)
    timer.arm(50)
    clock.advance(150)
    assert fired == [50]
    timer.arm(200)
    timer.cancel()
    clock.advance(500)
    assert fired == [50]


def test_a_timer_may_arm_itself() -> None:
    clock = VirtualClock()
    fired: list[int] = []

    def fire() -> None:
        fired.append(clock.now())
        timer.arm(clock.now() + 10)

    timer = clock.timer(fire)
    timer.arm(10)
    clock.advance(45)
    assert fired == [10, 20, 30, 40]


def test_arming_often_holds_no_more_than_the_timers() -> None:
    clock = VirtualClock()
    fired: list[int] = []
    timers = [clock.timer(lambda n=n: fired.append(n)) for n in range(5)]
    for step in range(10_000):
        timers[step % 5].arm(1_000_000 + step)
        if step % 7 == 0:
            timers[step % 5].cancel()
        timers[0].arm(5_000_000)
    assert len(clock._queue) < 200
    live = sorted(n for n, timer in enumerate(timers) if timer.deadline is not None)
    clock.advance(10_000_000)
    assert sorted(fired) == live


def test_a_deadline_at_the_end_of_time_stops_no_other_timer() -> None:
    lock = threading.RLock()
    clock = RealClock(lock)
    fired = threading.Event()
    with lock:
        clock.timer(lambda: None).arm(1 << 70)
    clock.start()
    time.sleep(0.05)
    with lock:
        clock.timer(fired.set).arm(clock.now() + SECOND // 100)
    assert fired.wait(PATIENCE)
    clock.stop()


def test_a_timer_that_is_moved_to_and_fro_fires_once_and_in_time() -> None:
    lock = threading.RLock()
    clock = RealClock(lock)
    fired: list[int] = []
    change = threading.Condition(lock)

    def fire() -> None:
        fired.append(clock.now())
        change.notify()

    with lock:
        tick = clock.timer(fire)
        tick.arm(SECOND // 20)
    clock.start()
    with lock:
        tick.arm(100 * SECOND)  # the thread still wakes when it was going to
        tick.arm(first := SECOND // 10)
        assert change.wait_for(lambda: fired, PATIENCE)
        tick.arm(clock.now() + 100 * SECOND)
        change.wait(0.01)  # it sleeps for so long now …
        tick.arm(second := clock.now() + SECOND // 100)  # … and is told of what is earlier
        assert change.wait_for(lambda: len(fired) == 2, PATIENCE)
        change.wait(0.01)
    clock.stop()
    assert len(fired) == 2
    assert fired[0] >= first
    assert fired[1] >= second
