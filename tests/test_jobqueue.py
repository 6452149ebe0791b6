"""The queue in the manager process."""

from __future__ import annotations

import os
import time
from multiprocessing.managers import SyncManager

import pytest

from jobqueue import EMPTYING_S, RECESS_S, JobQueue
from wire import Job, JobId, Sampling, Started


class Outbox(list):
    """One API process's."""

    def put(self, message: object) -> None:
        self.append(message)


def job(key: str, api_server: int = 0, **fields: object) -> Job:
    return Job(JobId(api_server, key), (), Sampling(), **fields)


def drained(queue: JobQueue) -> list[str]:
    """The keys of its jobs, as a worker gets them."""
    keys = []
    while taken := queue.take(1, True):
        keys.append(taken.id.key)
    return keys


def test_first_come_first_served_within_a_priority() -> None:
    """One that is sent again goes before those of its priority."""
    queue = JobQueue([Outbox()], lambda events: events)
    for key, priority in (("b1", 1), ("a1", 0), ("b2", 1), ("a2", 0)):
        queue.put(job(key, priority=priority))
    queue.put(job("b0", priority=1), first=True)
    assert drained(queue) == ["a1", "a2", "b0", "b1", "b2"]


def test_its_api_process_is_told_who_has_taken_a_job() -> None:
    """And no other is."""
    outboxes = [Outbox(), Outbox()]
    queue = JobQueue(outboxes, tuple)
    queue.put(job("x", api_server=1))
    assert queue.take(77, True) == job("x", api_server=1)
    assert outboxes == [[], [(Started(JobId(1, "x"), 77),)]]
    assert queue.take(77, True) is None


def test_what_nobody_waits_for_is_not_handed_out() -> None:
    """Withdrawn, or past its time; an unknown one is no error."""
    outbox = Outbox()
    queue = JobQueue([outbox], lambda events: events)
    for each in (job("left"), job("late", deadline=time.monotonic() - 1), job("here")):
        queue.put(each)
    queue.discard(JobId(0, "left"))
    queue.discard(JobId(0, "nobody"))
    assert drained(queue) == ["here"]
    assert len(outbox) == 1


def test_one_that_is_to_be_alone_waits_for_an_empty_worker() -> None:
    """Any that is empty. Where none is, one of them gets nothing until it is, and the others go on."""
    queue = JobQueue([Outbox()], lambda events: events)
    one, two, dead = os.getpid(), os.getppid(), 2**22 + 1  # the last is no process's: pids end before
    for each in (job("a", alone=True), job("b"), job("c"), job("d", alone=True), job("e")):
        queue.put(each)

    def taken(pid: int, empty: bool) -> str | None:
        job = queue.take(pid, empty)
        return job and job.id.key

    assert taken(dead, False) is None, "it is to become empty, but dies"
    assert [taken(one, False), taken(two, False), taken(one, False)] == [None, "b", None]
    assert taken(two, True) == "a", "it is empty first"
    assert [taken(one, False), taken(one, False), taken(two, False)] == ["c", None, "e"], "and now d is the first"
    assert taken(one, True) == "d"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(job: Job | None) -> str | None:
    return job and job.id.key


def test_after_one_alone_the_others_have_a_turn_as_long() -> None:
    """However many are to be alone. Where nobody else is there, they need not wait."""
    clock = Clock()
    queue = JobQueue([Outbox()], tuple, clock)
    me = os.getpid()
    for i in range(3):
        queue.put(job(f"alone {i}", alone=True), first=True)
    for i in range(3):
        queue.put(job(f"{i}"))
    assert key(queue.take(me, True)) == "alone 2"
    clock.now += 5
    assert key(queue.take(me, True)) == "0"
    clock.now += 4.9
    assert [key(queue.take(me, False)), key(queue.take(me, True))] == ["1", "2"]
    assert key(queue.take(me, True)) == "alone 1"
    clock.now += 5
    queue.put(job("3"))
    assert key(queue.take(me, True)) == "3"
    clock.now += 10
    assert key(queue.take(me, True)) == "alone 0"


def test_a_worker_that_does_not_get_empty_goes_on() -> None:
    """One long answer in it must not keep all others out. Later it is tried again."""
    clock = Clock()
    queue = JobQueue([Outbox()], tuple, clock)
    me = os.getpid()
    queue.put(job("alone", alone=True))
    for i in range(3):
        queue.put(job(f"{i}"))
    assert queue.take(me, False) is None
    clock.now += EMPTYING_S - 0.1
    assert queue.take(me, False) is None
    clock.now += 0.2
    assert key(queue.take(me, False)) == "0"
    clock.now += RECESS_S - 0.1
    assert key(queue.take(me, False)) == "1"
    clock.now += 0.2
    assert queue.take(me, False) is None
    assert key(queue.take(me, True)) == "alone"


def test_a_job_that_cannot_be_told_of_stays() -> None:
    """In its place."""
    outbox = Outbox()
    queue = JobQueue([outbox], tuple)
    for name in "ab":
        queue.put(job(name))
    outbox.put = None
    with pytest.raises(TypeError):
        queue.take(1, True)
    del outbox.put
    assert drained(queue) == ["a", "b"]


class _Manager(SyncManager):
    pass


_Manager.register("JobQueue", JobQueue, exposed=("put", "take", "discard"))


def test_in_a_manager_it_writes_to_the_managers_queues() -> None:
    """As the server runs it: the outboxes are proxies of the same process."""
    with _Manager() as manager:
        outbox = manager.Queue()
        queue = manager.JobQueue([outbox], list)
        queue.put(job("x"))
        assert queue.take(5, True) == job("x")
        assert outbox.get(timeout=5) == [Started(JobId(0, "x"), 5)]
