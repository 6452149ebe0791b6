"""What becomes of requests whose worker dies, is silent, or was never there: the pending table, its workers played."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from api import pending
from api.blame import name_of
from api.link import Limits
from api.pending import PendingTable
from errors import (
    DeadlineExceeded,
    Draining,
    EardrumError,
    KillsWorkers,
    Overloaded,
    StreamNotRead,
    Unavailable,
    WorkerDied,
)
from tests.support.waiting import until
from wire import (
    AudioPart,
    Capabilities,
    Delta,
    Finished,
    Heartbeat,
    Job,
    JobId,
    Message,
    Ready,
    Sampling,
    Started,
    TextPart,
    Usage,
)

CAPABILITIES = Capabilities(16_000, None, "error", "continuous")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "LAST_WORDS_S", 0.0)


class Workers:
    """Plays every worker: jobs are taken, answered and died with as a test says."""

    api_server = 0

    def __init__(
        self, max_waiting: int = 100, step_timeout_s: float = 10.0, rows: int = 16, api_servers: int = 1
    ) -> None:
        self.queue: list[Job] = []
        self.cancelled: list[JobId] = []
        self.killed: list[int] = []
        self.table = PendingTable(self, Limits(max_waiting, 3600, step_timeout_s, rows, api_servers))

    async def send(self, job: Job, first: bool = False) -> None:
        self.queue.insert(0 if first else len(self.queue), job)

    def withdraw(self, job_id: JobId) -> None:
        self.queue = [job for job in self.queue if job.id != job_id]

    def cancel(self, job_id: JobId) -> None:
        self.cancelled.append(job_id)

    def watch(self, ready: Ready) -> None:
        pass

    def kill(self, pid: int) -> None:
        self.killed.append(pid)

    def start(self, *pids: int) -> None:
        for pid in pids:
            self.table.deliver(Ready(pid, "", CAPABILITIES))

    def take(self, pid: int) -> Job:
        job = self.queue.pop(0)
        self.table.deliver(Started(job.id, pid))
        return job

    def say(self, job: Job, text: str) -> None:
        self.table.deliver(Delta(job.id, 0, text))

    def finish(self, job: Job) -> None:
        for choice in range(job.sampling.n):
            self.table.deliver(Finished(job.id, choice, "stop", Usage(1, 1)))

    async def die(self, pid: int) -> None:
        self.table.worker_died(pid)
        await asyncio.sleep(0.01)


class Client:
    """One request's client, and what it got."""

    def __init__(self, workers: Workers, text: str, whole: bool = True, **job: object) -> None:
        messages = job.pop("messages", (Message("user", (TextPart(text),)),))
        self.job = Job(workers.table.new_job_id(), messages, **{"sampling": Sampling(), **job})
        self.text = ""
        self.error: EardrumError | None = None
        self.task = asyncio.ensure_future(self._run(workers.table, whole))

    async def _run(self, table: PendingTable, whole: bool) -> None:
        try:
            async for event in table.submit(self.job, whole):
                self.text += event.text if isinstance(event, Delta) else "."
        except EardrumError as error:
            self.error = error


async def clients(workers: Workers, *texts: str, **options: object) -> list[Client]:
    """So many clients, whose jobs are queued."""
    queued = len(workers.queue)
    new = [Client(workers, text, **options) for text in texts]
    await until(lambda: len(workers.queue) == queued + len(texts))
    return new


def texts_of(jobs: list[Job]) -> list[str]:
    return [part.text for job in jobs for message in job.messages for part in message.parts]


# ------------------------------------------------------------------------------------------------------------- deaths


async def test_what_was_not_begun_is_run_again_before_all_others_and_in_its_order() -> None:
    """Also where half of an answer is here that nobody has seen. What its dead worker says late is not heard."""
    workers = Workers()
    workers.start(1, 2)
    first, second, third = await clients(workers, "first", "second", "third")
    lost = [workers.take(1), workers.take(1)]
    workers.say(lost[0], "half of an ans")
    await workers.die(1)
    assert texts_of(workers.queue) == ["first", "second", "third"]
    workers.say(lost[0], "wer")
    for _ in range(3):
        job = workers.take(2)
        workers.say(job, f"to {texts_of([job])[0]}")
        workers.finish(job)
    await asyncio.gather(first.task, second.task, third.task)
    assert [client.text for client in (first, second, third)] == ["to first.", "to second.", "to third."]
    assert workers.cancelled == []
    assert not workers.table._entries


async def test_a_stream_that_was_begun_ends_with_an_error_and_one_that_was_not_is_run_again() -> None:
    """What its client has got cannot be taken back."""
    workers = Workers()
    workers.start(1, 2)
    begun, fresh = await clients(workers, "begun", "fresh", whole=False)
    job = workers.take(1)
    workers.take(1)
    workers.say(job, "once upon")
    await until(lambda: begun.text)
    await workers.die(1)
    await begun.task
    assert (begun.text, type(begun.error)) == ("once upon", WorkerDied)
    job = workers.take(2)
    workers.finish(job)
    await fresh.task
    assert (fresh.text, fresh.error) == (".", None)


async def test_an_answer_that_was_complete_before_the_death_is_delivered() -> None:
    """To a client that is slow to take it, and from a worker whose last words come after the news of its death."""
    workers = Workers()
    workers.start(1, 2)
    (client,) = await clients(workers, "hello")
    job = workers.take(1)
    workers.table.worker_died(1)
    workers.say(job, "last words")
    workers.finish(job)
    await client.task
    assert (client.text, client.error) == ("last words.", None)
    assert workers.queue == []


async def test_a_job_whose_worker_died_as_it_took_it_is_run_again() -> None:
    """The news that it was taken comes behind the news of the death."""
    workers = Workers()
    workers.start(1, 2)
    (client,) = await clients(workers, "hello")
    await workers.die(1)
    workers.take(1)
    await until(lambda: workers.queue)
    workers.finish(workers.take(2))
    await client.task
    assert client.text == "."


async def test_who_was_there_when_two_workers_died_is_refused_from_then_on() -> None:
    """Alone under suspicion, it is to blame, and known again. Others are not refused for it."""
    workers = Workers()
    workers.start(1, 2, 3)
    (killer,) = await clients(workers, "killer")
    for pid in (1, 2):
        workers.take(pid)
        await workers.die(pid)
    await killer.task
    assert type(killer.error) is KillsWorkers
    assert (killer.error.status, killer.error.headers["x-should-retry"]) == (500, "false")
    again = Client(workers, "killer")
    await again.task
    assert type(again.error) is KillsWorkers
    (other,) = await clients(workers, "other")
    workers.finish(workers.take(3))
    await other.task
    assert other.text == "."


async def test_of_several_suspects_each_is_tried_alone() -> None:
    """So that only the guilty one is refused, whoever else was there both times."""
    workers = Workers(api_servers=2)
    workers.start(1, 2, 3, 4)
    suspects = await clients(workers, "good", "killer", "fine")
    for pid in (1, 2):
        assert [job.alone for job in workers.queue] == [False] * 3
        for _ in suspects:
            workers.take(pid)
        await workers.die(pid)
    assert texts_of(workers.queue) == ["good", "killer", "fine"]
    assert [job.alone for job in workers.queue] == [True] * 3
    workers.finish(workers.take(3))
    workers.take(3)
    await workers.die(3)
    workers.finish(workers.take(4))
    await asyncio.gather(*(client.task for client in suspects))
    assert [type(client.error) for client in suspects] == [type(None), KillsWorkers, type(None)]


async def test_a_killer_is_known_again_though_its_stream_had_begun() -> None:
    """It comes again, each time beside somebody else. Those are answered, and it is refused in the end."""
    workers = Workers()
    workers.start(*range(9))
    for pid in range(2):
        killer, other = await clients(workers, "killer", f"other {pid}", whole=False)
        job = workers.take(pid)
        workers.take(pid)
        workers.say(job, "once upon")
        await until(lambda: killer.text)  # noqa: B023 -- called in this round
        await workers.die(pid)
        await killer.task
        assert type(killer.error) is WorkerDied
        workers.finish(workers.take(8))
        await other.task
        assert other.text == "."
    (killer,) = await clients(workers, "killer", whole=False)
    job = workers.take(5)
    assert job.alone
    workers.say(job, "once upon")
    await until(lambda: killer.text)
    await workers.die(5)
    again = Client(workers, "killer")
    await asyncio.gather(killer.task, again.task)
    assert [type(client.error) for client in (killer, again)] == [KillsWorkers] * 2


async def test_one_that_a_worker_survives_is_under_no_suspicion_any_more() -> None:
    """It was there when two died, and alone with a third that did not."""
    workers = Workers()
    workers.start(1, 2, 3)
    for pid in (1, 2):
        hello, beside = await clients(workers, "hello", f"beside {pid}", whole=False)
        for job in (workers.take(pid), workers.take(pid)):
            workers.say(job, "hi")
        await until(lambda: hello.text and beside.text)  # noqa: B023 -- called in this round
        await workers.die(pid)
        await asyncio.gather(hello.task, beside.task)
    for alone in (True, False):
        (hello,) = await clients(workers, "hello")
        job = workers.take(3)
        assert job.alone is alone
        workers.finish(job)
        await hello.task
        assert hello.error is None


async def test_one_that_came_under_suspicion_in_its_run_is_forgiven_by_it() -> None:
    """The next one like it is not alone."""
    workers = Workers(api_servers=2)
    workers.start(1, 2, 3)
    (hello,) = await clients(workers, "hello")
    for pid in (1, 2):
        workers.take(pid)
        await workers.die(pid)
        await until(lambda: workers.queue)
    workers.finish(workers.take(3))
    await hello.task
    (again,) = await clients(workers, "hello")
    job = workers.take(3)
    assert not job.alone
    workers.finish(job)
    await again.task


async def test_copies_of_a_killer_are_refused_with_it() -> None:
    """Wherever they are: one trial is enough for all."""
    workers = Workers()
    workers.start(*range(9))
    copies = await clients(workers, *["killer"] * 5)
    for pid in (1, 2):
        for _ in copies:
            workers.take(pid)
        await workers.die(pid)
        await until(lambda: len(workers.queue) == 5)
    workers.take(3)
    await workers.die(3)
    await asyncio.gather(*(client.task for client in copies))
    assert [type(client.error) for client in copies] == [KillsWorkers] * 5
    assert workers.queue == []


async def test_what_is_refused_stays_refused() -> None:
    """Also where a copy dies with another worker meanwhile."""
    workers = Workers()
    name = name_of(Client(workers, "killer").job)
    blame = workers.table._blame
    blame.note_death({name: 1.0}, alone=False, refuse={name})
    blame.note_death({name: 1.0}, alone=False, refuse=set())
    assert blame.case(name).is_refused


async def test_those_that_waited_for_a_row_are_hardly_suspected() -> None:
    """They are run again with all others."""
    workers = Workers(rows=2)
    workers.start(*range(9))
    many = await clients(workers, *"abcd")
    for pid in (1, 2):
        jobs = [workers.take(pid) for _ in many]
        workers.say(jobs[3], "d is in a row, though it came last")
        await workers.die(pid)
        await until(lambda: len(workers.queue) == 4)
    assert texts_of([job for job in workers.queue if job.alone]) == ["a", "d"]
    for client in many:
        client.task.cancel()
    await asyncio.gather(*(client.task for client in many), return_exceptions=True)


async def test_a_killer_whose_client_leaves_first_is_known() -> None:
    """It gave up waiting for a worker that hung, which is killed later. Tried alone in the end, and refused."""
    workers = Workers()
    workers.start(*range(9))
    for pid in (1, 2, 3):
        killer, other = await clients(workers, "killer", f"other {pid}")
        assert workers.take(pid).alone is (pid == 3)
        if pid < 3:
            workers.take(pid)
        workers.table.deliver(Heartbeat(pid, step_s=3.0))
        killer.task.cancel()
        await asyncio.gather(killer.task, return_exceptions=True)
        await workers.die(pid)
        await until(lambda: workers.queue)
        workers.finish(workers.take(8))
        await other.task
        assert other.text == "."
    again = Client(workers, "killer")
    await again.task
    assert type(again.error) is KillsWorkers


async def test_who_left_long_before_is_not_to_blame() -> None:
    """The worker has dropped that request since, and died of the one that was there."""
    workers = Workers()
    workers.start(1, 2, 3)
    (left,) = await clients(workers, "left")
    workers.take(1)
    left.task.cancel()
    await asyncio.gather(left.task, return_exceptions=True)
    workers.table._workers[1].heard_at += 60
    await workers.die(1)
    assert workers.table._blame._cases == {}


@pytest.mark.parametrize("hidden", ["of another API process", "left a moment ago"])
async def test_one_that_may_not_have_been_the_only_one_is_tried_first(hidden: str) -> None:
    """Who else was there when both workers died cannot be seen."""
    workers = Workers(api_servers=2 if hidden == "of another API process" else 1)
    workers.start(1, 2, 3)
    (innocent,) = await clients(workers, "innocent")
    for pid in (1, 2):
        workers.take(pid)
        if workers.table._limits.api_servers == 1:
            (killer,) = await clients(workers, f"killer {pid}")
            workers.take(pid)
            killer.task.cancel()
            await asyncio.gather(killer.task, return_exceptions=True)
        await workers.die(pid)
    job = workers.take(3)
    assert job.alone
    workers.finish(job)
    await innocent.task
    assert innocent.error is None


async def test_without_another_worker_in_time_a_lost_request_is_a_503() -> None:
    """And one that never had a worker a 504."""
    workers = Workers()
    workers.start(1)
    lost, queued = await clients(workers, "lost", "queued", deadline=time.monotonic() + 0.3)
    workers.take(1)
    await workers.die(1)
    await asyncio.gather(lost.task, queued.task)
    assert [type(lost.error), type(queued.error)] == [WorkerDied, DeadlineExceeded]
    assert workers.queue == [], "nobody runs them any more"
    with pytest.raises(Unavailable):
        workers.table.check_room()


async def test_a_queue_that_does_not_answer_takes_no_more_time_than_the_request() -> None:
    """Nor does one that is gone keep a request that was to be run again."""
    workers = Workers()
    workers.start(1, 2)
    (lost,) = await clients(workers, "lost")

    async def hang(job: Job, first: bool = False) -> None:
        await asyncio.Event().wait()

    async def fail(job: Job, first: bool = False) -> None:
        raise Unavailable("gone")

    workers.send = hang
    stuck = Client(workers, "stuck", deadline=time.monotonic() + 0.1)
    await stuck.task
    assert type(stuck.error) is DeadlineExceeded
    workers.send = fail
    workers.take(1)
    await workers.die(1)
    await lost.task
    assert type(lost.error) is Unavailable


async def test_a_closed_table_ends_all_and_takes_nothing() -> None:
    """Queued, taken, or new."""
    workers = Workers()
    workers.start(1)
    taken, queued = await clients(workers, "taken", "queued")
    job = workers.take(1)
    workers.table.close(Draining("The end."))
    new = Client(workers, "new")
    await asyncio.gather(*(client.task for client in (taken, queued, new)))
    assert [type(client.error) for client in (taken, queued, new)] == [Draining] * 3
    assert (workers.cancelled, workers.queue) == ([job.id], [])


def test_a_request_is_known_by_what_is_asked(tmp_path: Path) -> None:
    """By its audio, too; not by who asks, when, and what the file is called."""
    for name, data in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).write_bytes(data)

    def asked(name: str, **changes: object) -> Job:
        message = Message("user", (AudioPart("messages[0]", path=str(tmp_path / name)),))
        return replace(Job(JobId(0, name), (message,), Sampling(), deadline=time.monotonic()), **changes)

    assert name_of(asked("a")) == name_of(asked("b", alone=True))
    assert name_of(asked("a")) != name_of(asked("c"))
    assert name_of(asked("a")) != name_of(asked("a", sampling=Sampling(seed=1)))


# --------------------------------------------------------------------------------------------------- silence, overload


async def test_a_worker_that_is_stuck_or_silent_is_killed() -> None:
    """In one step for too long, or without a heartbeat; not one that works, nor after this process stood still."""
    workers = Workers(step_timeout_s=0.2)
    workers.start(1, 2, 3)
    workers.table.check_workers()
    await asyncio.sleep(0.3)
    workers.table.deliver(Heartbeat(1, step_s=0.0))
    workers.table.deliver(Heartbeat(2, step_s=0.5))
    workers.table.check_workers()
    assert workers.killed == [2, 3]
    workers.killed.clear()
    workers.table._checked_at -= 60
    workers.table.check_workers()
    assert workers.killed == []


async def test_retry_after_is_measured() -> None:
    """By how fast requests end while others wait."""
    workers = Workers(max_waiting=40)
    workers.start(1)
    many = await clients(workers, *(str(i) for i in range(40)))
    with pytest.raises(Overloaded) as unknown:
        workers.table.check_room()
    assert unknown.value.headers["retry-after"] == "1"
    for client in many[:5]:
        await asyncio.sleep(0.1)
        workers.finish(workers.take(1))
        await client.task
    many += await clients(workers, *"abcde")
    with pytest.raises(Overloaded) as measured:
        workers.table.check_room()
    assert 3 <= int(measured.value.headers["retry-after"]) <= 40  # forty requests, each of 0.1 s and more
    for client in many:
        client.task.cancel()
    await asyncio.gather(*(client.task for client in many), return_exceptions=True)
    assert workers.queue == []


async def test_a_stream_that_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up; an answer that is collected for its client is not."""
    monkeypatch.setattr(pending, "MAX_UNREAD", 10)
    workers = Workers()
    workers.start(1)
    (streamed,) = await clients(workers, "streamed", whole=False)
    (collected,) = await clients(workers, "collected")
    jobs = [workers.take(1), workers.take(1)]
    for job in jobs:
        for _ in range(11):
            workers.say(job, "x")
    assert workers.cancelled == [jobs[0].id]
    workers.finish(jobs[1])
    await asyncio.gather(streamed.task, collected.task)
    assert (streamed.text, type(streamed.error)) == ("", StreamNotRead)
    assert collected.text == "x" * 11 + "."


async def test_an_unread_stream_that_has_just_ended_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is what is one too many: the client is told so, instead of a stream that stops without a word."""
    monkeypatch.setattr(pending, "MAX_UNREAD", 10)
    workers = Workers()
    workers.start(1)
    (client,) = await clients(workers, "streamed", whole=False)
    job = workers.take(1)
    for _ in range(10):
        workers.say(job, "x")
    workers.finish(job)
    await client.task
    assert type(client.error) is StreamNotRead
