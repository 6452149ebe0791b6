"""When a worker is started anew."""

from __future__ import annotations

from restarts import LONGEST_DELAY_S, Lives


def live(lives: Lives, loads_s: float, lasts_s: float, now: float = 0.0) -> float | None:
    lives.start(now)
    lives.ready(now + loads_s)
    return lives.die(now + loads_s + lasts_s)


def test_delays_grow_until_it_is_not_worth_it() -> None:
    """At once, then half a second, and twice as much each time, within a limit."""
    lives = Lives(max_restarts=9)
    delays = [live(lives, loads_s=1, lasts_s=1) for _ in range(10)]
    assert delays == [0, 0.5, 1, 2, 4, *[LONGEST_DELAY_S] * 4, None]


def test_a_life_that_lasted_makes_up_for_those_before() -> None:
    """Ten seconds, or as long as it took to load."""
    lives = Lives(max_restarts=2)
    assert [live(lives, 1, 9), live(lives, 1, 9)] == [0, 0.5]
    assert live(lives, 1, 11) == 0
    assert [live(lives, 60, 59), live(lives, 60, 59), live(lives, 60, 59)] == [0, 0.5, None]


def test_one_that_never_got_ready_did_not_last() -> None:
    """However long it tried."""
    lives = Lives(max_restarts=0)
    lives.start(0.0)
    assert lives.die(10_000.0) is None
