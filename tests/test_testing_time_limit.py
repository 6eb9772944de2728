"""Calls that do not end are stopped, and what is checked after them is not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from torch import Tensor, nn

from biases.testing import Traits, check, check_attention
from biases.testing.time_limit import TimeUp, time_limit

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timer")


def spin() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(60)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def swallow_exceptions() -> None:
    while True:
        with suppress(Exception):
            time.sleep(60)


def swallow_everything_once() -> None:
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)


@pytest.mark.parametrize("hang", [spin, sleep, wait_for_a_lock, swallow_exceptions, swallow_everything_once])
def test_what_does_not_end_is_stopped(hang: Callable[[], None]) -> None:
    started = time.monotonic()
    with pytest.raises(TimeUp), time_limit(0.1):
        hang()
    assert 0.1 <= time.monotonic() - started < 5


def test_what_ends_is_not_stopped() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(0.2):
        done = True
    time.sleep(0.3)
    assert done
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_exception_passes_through_and_disarms() -> None:
    with pytest.raises(KeyError), time_limit(0.1):
        raise KeyError
    time.sleep(0.2)


def in_a_thread(work: Callable[[], None]) -> list[BaseException]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return raised


def test_python_code_in_another_thread_is_stopped() -> None:
    def work() -> None:
        with time_limit(0.1):
            spin()

    (error,) = in_a_thread(work)
    assert isinstance(error, TimeUp)


def test_what_ends_in_another_thread_is_not_stopped() -> None:
    def work() -> None:
        with time_limit(0.1):
            pass
        for _ in range(20):
            time.sleep(0.01)

    assert in_a_thread(work) == []


@pytest.mark.parametrize(("outer", "inner"), [(0.1, 30), (30, 0.1)])
def test_the_shorter_of_two_nested_limits_counts(outer: float, inner: float) -> None:
    started = time.monotonic()
    with pytest.raises(TimeUp), time_limit(outer), time_limit(inner):
        spin()
    assert time.monotonic() - started < 5
    time.sleep(0.15)


def test_the_outer_limit_still_counts_after_inner_ones() -> None:
    def work() -> None:
        with suppress(TimeUp), time_limit(0.1):
            spin()
        with time_limit(30):
            pass
        spin()

    with pytest.raises(TimeUp), time_limit(0.3):
        work()


@pytest.fixture
def alarm():
    """Sets an alarm as a test runner does; lists when it rang. The test runner's own is put back."""
    rang: list[float] = []
    previous, (left, interval) = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    started = time.monotonic()

    def ring(_number: int, _frame: object) -> None:
        rang.append(time.monotonic())

    def set_alarm(seconds: float, every: float = 0.0) -> list[float]:
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, every)
        return rang

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    if left:
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


def test_an_alarm_that_is_due_inside_rings_and_the_limit_still_counts(alarm) -> None:
    rang = alarm(0.05)
    with pytest.raises(TimeUp), time_limit(0.2):
        spin()
    assert len(rang) == 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_is_due_afterwards_is_kept(alarm) -> None:
    rang = alarm(0.3)
    with pytest.raises(TimeUp), time_limit(0.05):
        spin()
    assert not rang
    time.sleep(0.4)
    assert len(rang) == 1


def test_an_alarm_that_repeats_goes_on(alarm) -> None:
    rang = alarm(0.05, 0.05)
    with pytest.raises(TimeUp), time_limit(0.3):
        spin()
    inside = len(rang)
    assert inside >= 2
    time.sleep(0.2)
    assert len(rang) > inside


class Patient(nn.Module):
    """The identity, but for what ``hangs`` says."""

    hangs: Callable[[Tensor], bool] = staticmethod(lambda x: True)

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if self.hangs(x):
            time.sleep(60)
        return x


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_GRACE", 0.3)
    monkeypatch.setattr(check, "_SHORT", 0.2)
    monkeypatch.setattr(check, "_LEAST", 0.05)


NAMES = ["finite-output", "deterministic", "input-unchanged", "batch-independence", "future-independence"]


@pytest.mark.usefixtures("impatient")
def test_a_layer_that_always_hangs_gives_errors_soon() -> None:
    started = time.monotonic()
    results = check_attention(Patient, Traits(causal=True), properties=NAMES, deadline=0.2)
    assert time.monotonic() - started < 10
    assert {result.property for result in results} == set(NAMES)
    assert {result.status for result in results} == {"error"}
    for result in results:
        assert "expected an answer within the time limit, got none" in result.message
        assert result.counterexample is not None
        assert "time limit" in result.message


@pytest.mark.usefixtures("impatient")
def test_what_does_not_hang_is_checked_after_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "hangs", staticmethod(lambda x: x.shape[1] == 1))
    monkeypatch.setattr(check, "_SHORT", 20.0)
    results = check_attention(
        Patient, Traits(causal=True), properties=["single-token", "future-independence"], deadline=0.2
    )
    assert [(result.property, result.status) for result in results] == [
        ("single-token", "error"),
        ("future-independence", "passed"),
    ]
