"""The queue in the manager process."""

from __future__ import annotations

import os
import time
from multiprocessing.managers import SyncManager

from jobqueue import JobQueue
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
