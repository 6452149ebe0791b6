"""Whether requests of every form are answered, and as they ask to be: streamed, stopped, seeded, cancelled, counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from check.asking import Probe, Reply, Run
from check.outcome import Outcome, failed, noted, passed, quoted, skipped, warned
from check.subject import TEXTS, Subject
from engine.text import BROKEN
from errors import BadRequest
from models.base import TextModel, Turn

SEVERAL = 3
SEEDS = (1, 2, 3)
SHORTEST = range(1, 7)  # tokens
STANDSTILL = 3  # limits in a row


def renders(subject: Subject) -> Outcome:
    """Conversations of all forms are answered, or refused with a 400 that says why."""
    seen, advice = [], ""
    for form, probe in _forms(subject):
        try:
            with noted(form):
                subject.ask(probe)
            seen.append(f"{form}: answered")
        except BadRequest as error:
            seen.append(f"{form}: refused ({error})")
            if form == "one audio":
                return failed(seen[-1], "A model that hears takes one audio and a text.")
            if form.endswith("audios") and subject.hears_several:
                advice = "Say `max_clips`, so that clients are told before they ask."
    return warned("\n".join(seen), advice) if advice else passed("\n".join(seen))


def _forms(subject: Subject) -> Iterator[tuple[str, Probe]]:
    ears = [subject.clip(1.5)] if subject.hears else []
    if subject.hears:
        yield "one audio", subject.probe(*ears, TEXTS[0])
        several = min(SEVERAL, max(2, subject.capabilities.max_clips or SEVERAL))
        yield f"{several} audios", subject.probe(*(subject.clip(1.5, i) for i in range(several)), TEXTS[0])
    yield "text only", subject.probe(TEXTS[0])
    user = Turn("user", (*ears, TEXTS[0]))
    yield "system role", subject.talk(Turn("system", ("Answer shortly.",)), user)
    yield "several turns", subject.talk(user, Turn("assistant", ("Hello.",)), Turn("user", (TEXTS[3],)))


# -------------------------------------------------------------------------------------------------------------- streams


def streamed_equals_unstreamed(subject: Subject) -> Outcome:
    """A stream's pieces are the whole answer, up to its end."""
    whole, again = subject.ask(subject.usual()), subject.ask(subject.usual())
    if whole.text != again.text:
        return failed(f"two streams of one request: {quoted(whole.text)} and {quoted(again.text)}")
    if isinstance(subject.model, TextModel):
        if lost := _lost_end(subject, whole):
            return failed(lost, "Yield what is left before the `None` or the end that completes an answer.")
        if len(whole.pieces) == 1 and " " in whole.text.strip():
            return warned("the answer comes in one piece", "Yield it as it is written, where the model can.")
    return passed(f"{len(whole.pieces)} pieces, {len(whole.text)} characters")


def _lost_end(subject: Subject, whole: Reply) -> str:
    """How an answer loses its end; empty where it does not. One that may have more tokens says more, unless it has said
    all; so one that ends by itself, several limits long, with no more than before has lost something. Tokens without
    text are why it takes several."""
    replies = [subject.ask(subject.usual(max_tokens=limit)) for limit in SHORTEST]
    for first in range(len(replies) - STANDSTILL + 1):
        text = replies[first].text
        stands = all(reply.text == text and reply.reason == "stop" for reply in replies[first : first + STANDSTILL])
        if stands and whole.text.startswith(text) and whole.text != text:
            return (
                f"asked for {SHORTEST[first]} to {SHORTEST[first] + STANDSTILL - 1} tokens at most, it ends by itself "
                f"after {quoted(text)}; the whole answer is {quoted(whole.text)}"
            )
    return ""


def stops_at_stop_strings(subject: Subject) -> Outcome:
    """A stop string that lies across two pieces ends the answer right before it."""
    whole = subject.ask(subject.usual())
    stop = _across_pieces(whole.pieces)
    if stop is None:
        return skipped(f"no stop string would lie across two pieces of {quoted(whole.text)}")
    reply = subject.ask(subject.usual(stop=(stop,)))
    expected = whole.text[: whole.text.find(stop)]
    seen = f"stop {quoted(stop)} in {quoted(whole.text)}: {quoted(reply.text)}, {reply.reason}"
    if (reply.text, reply.reason) != (expected, "stop"):
        return failed(
            seen, f"Expected {quoted(expected)}, stop. What is given before a stop string cannot depend on it."
        )
    return passed(seen)


def _across_pieces(pieces: Sequence[str]) -> str | None:
    """The last characters of one piece and the first of the next, where that text has not come before."""
    text, position = "".join(pieces), 0
    for left, right in pairwise(pieces):
        position += len(left)
        stop = left[-2:] + right[:2]
        if text.find(stop) == position - len(left[-2:]) > 0 and stop.strip() and BROKEN not in stop:
            return stop
    return None


# ----------------------------------------------------------------------------------------------- seeds, choices, limits


def honours_seeds(subject: Subject) -> Outcome:
    """A seed draws the same answer each time, whoever is answered beside it."""
    probes = [subject.usual(temperature=1.0, seed=seed) for seed in SEEDS]
    drawn = [subject.ask(probe).text for probe in probes]
    again = [subject.ask(probe).text for probe in probes]
    advice = "Draw each answer from a generator of its own, made from its request's `seed`."
    if drawn != again:
        return failed(f"asked twice with the same seeds: {_listed(drawn)}, then {_listed(again)}", advice)
    greedy = subject.ask(subject.usual()).text
    *beside, greedy_beside = _texts_in_company(subject, [*probes, subject.usual()])
    if greedy_beside == greedy and beside != drawn:
        return failed(f"alone {_listed(drawn)}, in company {_listed(beside)}", advice)
    note = "" if greedy_beside == greedy else "; in company not even greedy answers are the same, see above"
    if len(set(drawn)) > 1:
        return passed(f"{len(set(drawn))} answers for {len(SEEDS)} seeds, the same again{note}")
    if drawn[0] == greedy:
        return passed(f"a temperature of 1 changes nothing: always {quoted(greedy)}{note}")
    return warned(f"all seeds draw {quoted(drawn[0])}{note}", "Is the seed a constant?")


def _texts_in_company(subject: Subject, probes: Sequence[Probe]) -> list[str]:
    replies = subject.ask_together([*probes, *subject.varied()])
    return [reply.text for reply in replies[: len(probes)]]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(map(quoted, texts))


def counts_choices_and_tokens(subject: Subject) -> Outcome:
    """`n` choices are n answers, and an answer that reaches `max_tokens` ends with "length"."""
    choices = subject.ask(subject.usual(n=2, temperature=1.0, seed=1)).choices
    if len(choices) != 2:
        return failed(f"2 choices were asked for, {len(choices)} came")
    whole = subject.ask(subject.usual())
    if whole.usage.completion_tokens < 2:
        seen = f"2 choices; an answer of {whole.usage.completion_tokens} tokens is too short to be cut"
        pieces = isinstance(subject.model, TextModel) and whole.usage.completion_tokens == 1
        return (
            warned(seen, "Without a `count_tokens` each piece of text counts as one token.") if pieces else passed(seen)
        )
    limit = whole.usage.completion_tokens // 2
    cut = subject.ask(subject.usual(max_tokens=limit))
    seen = f"2 choices; of {whole.usage.completion_tokens} tokens at most {limit}: {quoted(cut.text)}, {cut.reason}"
    if cut.reason != "length":
        return failed(
            seen, 'An answer that was cut has to end with "length": `count_tokens` and `max_tokens` disagree.'
        )
    if cut.text == whole.text:
        return warned(
            f"{seen}: nothing was cut, as it comes in one piece", "Heed `max_tokens`, or yield shorter pieces."
        )
    return passed(seen)


# --------------------------------------------------------------------------------------------------------------- cancel


def cancels(subject: Subject) -> Outcome:
    """A request that is cancelled in the middle frees its slot, and leaves nothing behind."""
    before = subject.ask(subject.usual()).text
    run = Run(subject.served)
    job_id = run.submit(subject.usual(max_tokens=10 * subject.max_tokens))
    while not run.pieces(job_id) and not run.has_ended(job_id):
        run.step()
    if run.has_ended(job_id):
        return skipped("the answer is complete with its first piece, so there is no middle")
    run.cancel(job_id)
    if not subject.engine.idle:
        subject.engine.reset()
        return failed("the engine still works on a request that was cancelled")
    after = subject.ask(subject.usual()).text
    if after != before:
        return failed(f"before {quoted(before)}, after {quoted(after)}", "Something of the cancelled request is left.")
    return passed(f"cancelled at piece {len(run.pieces(job_id))}; then free, and answers as before")
