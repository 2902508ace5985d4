"""Threads wait shortly while other programs are busy, unless the user has chosen; slow steps are noticed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from lora_detr.processes import threads
from lora_detr.processes.threads import BUSY, QUIET_LOOKS, ContentionWatch, Parked
from lora_detr.training.pace import STEPS, Pace


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in threads.VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what a test sets is taken back
        monkeypatch.delenv(variable)


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], bool]:
    """Let a second pass in which the main thread was kept waiting for a share; return whether threads are parked."""
    file, clock = tmp_path / "schedstat", [100.0]
    waited = 5e9
    file.write_text(f"7 {waited:.0f} 9")
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(Parked, "park", lambda parked, count, team: None)
    watch = ContentionWatch(file)

    def look(share: float) -> bool:
        nonlocal waited
        waited += share * 1e9
        clock[0] += 1.0
        file.write_text(f"7 {waited:.0f} 9")
        watch.look()
        return watch.parked is not None

    return look


def test_threads_are_parked_while_the_main_thread_is_kept_waiting(looks: Callable[[float], bool]) -> None:
    assert not looks(0.0)
    assert not looks(BUSY - 0.02)
    assert looks(BUSY + 0.02)
    assert all(looks(0.0) for _ in range(QUIET_LOOKS - 1))
    assert not looks(0.0)
    assert looks(0.5)


def test_they_stay_while_it_waits_now_and_then(looks: Callable[[float], bool]) -> None:
    assert looks(0.5)
    assert all(looks(0.05 if i % 5 == 0 else 0.0) for i in range(4 * QUIET_LOOKS))


@pytest.mark.parametrize(("team", "processors"), [(1, 2), (4, 2)])
def test_one_thread_and_more_threads_than_processors_need_none(
    team: int, processors: int, looks: Callable[[float], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: team)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    assert not looks(0.9)


@pytest.mark.parametrize(("team", "processors", "count"), [(2, 2, 1), (4, 4, 1), (2, 4, 3), (3, 8, 3), (8, 16, 2)])
def test_as_many_are_parked_as_make_more_threads_than_processors(
    team: int, processors: int, count: int, looks: Callable[[float], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP counts the main thread and, of every team, all threads but the one that opened it."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(Parked, "park", lambda parked, *given: asked.append(given))
    monkeypatch.setattr(torch, "get_num_threads", lambda: team)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    assert looks(0.9)
    assert asked == [(count, team)]
    assert team + (count - 1) * (team - 1) <= processors < team + count * (team - 1)


@pytest.mark.parametrize("variable", threads.VARIABLES)
def test_who_has_chosen_keeps_it(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert not threads.is_watchable()
    assert threads.describe_threads(2) == f"2 threads ({variable}=1)"
    assert threads.describe_threads(1) == "1 thread"


# Two threads beside two busy programs; what is printed is the number of threads of OpenMP, before and while parked.
COUNTING = """
import os, sys, threading, time
import torch
from lora_detr.processes.threads import Parked, watch_contention
def count():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
torch.zeros(1 << 20).add_(1)
before = count()
parked = Parked()
parked.park(2, 2)
during = count()
parked.release()
deadline = time.monotonic() + 10
while count() > before and time.monotonic() < deadline:
    time.sleep(0.05)
print(before, during, count())
"""


def test_parked_threads_own_a_team_and_leave_with_it() -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list threads")
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", COUNTING], env=environment, capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during == before + 4  # two threads, with a team of two each
    assert after == before


def test_a_process_is_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if not threads.is_watchable():
        pytest.skip("this system does not tell how long a thread waits")
    watching: SimpleQueue[ContentionWatch] = SimpleQueue()
    monkeypatch.setattr(ContentionWatch, "run", lambda watch: watching.put(watch))  # ends at once
    threads.watch_contention.cache_clear()
    threads.watch_contention()
    threads.watch_contention()
    threads.watch_contention.cache_clear()
    watching.get(timeout=10)
    time.sleep(0.1)
    assert watching.empty()


def _spin() -> None:
    while True:
        pass


def test_a_main_thread_that_is_kept_waiting_is_seen() -> None:
    if not threads.is_watchable():
        pytest.skip("this system does not tell how long a thread waits")
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for program in programs:
        program.start()
    try:
        watch = ContentionWatch(threads._statistics())
        before = watch._waited()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            pass
        assert watch._waited() - before > BUSY
    finally:
        for program in programs:
            program.kill()
            program.join()


def test_slow_steps_are_reported_once() -> None:
    pace = Pace(0.1)
    lines = [pace.add(0.5) for _ in range(3 * STEPS)]
    assert [i for i, line in enumerate(lines) if line] == [STEPS - 1]
    assert "a step takes 0.50 s, 5 times what one took before the start (0.10 s)" in lines[STEPS - 1]


@pytest.mark.parametrize(("expected", "seconds"), [(0.1, 0.25), (None, 9.0)])
def test_other_steps_are_not(expected: float | None, seconds: float) -> None:
    pace = Pace(expected)
    assert not any(pace.add(seconds) for _ in range(3 * STEPS))
