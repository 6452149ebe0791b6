"""Whether requests that share the model get the answers that they get alone; and the card that keeps what is found.

answers alone ── compared with ──▶ those that came one a step, those that came at once, those of clips of one length
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from check.asking import Probe
from check.outcome import Outcome, failed, passed, quoted, warned
from check.subject import TEXTS, USUAL_S, Subject
from models.base import TextModel
from models.cards import Card, CardBatching, fingerprint, write_card

BATCHED = "batched equals alone"

HALF_PRECISION = "In half precision answers also differ by rounding: try --dtype float32 to see if it is that."
REASONS: dict[CardBatching, tuple[str, str]] = {
    "serial": ("answers in a batch are not those alone", "it answers one request at a time"),
    "one length": (
        "answers in a batch of clips of different lengths are not those alone",
        "clips of one length share a batch",
    ),
}
ADVICE: dict[CardBatching, str] = {
    "serial": "serve it one by one",
    "one length": "let only clips of one length share a batch",
}


def batched_equals_alone(subject: Subject) -> Outcome:
    """Greedy answers do not depend on who is answered at the same time."""
    probes = subject.varied()
    alone = _texts(subject, probes)
    if again := _difference(alone, _texts(subject, probes)):
        return failed(
            f"the same request, alone, has different answers: {again}",
            "At temperature 0 the likeliest token is to be taken, and nothing kept from one request to the next. "
            f"{HALF_PRECISION}",
        )
    different = _in_company(subject, probes, alone)
    if isinstance(subject.model, TextModel) and subject.model.max_batch_size > 1:
        return _judge_batches(subject, alone, different)
    if different:
        return failed(different, f"Serve it one by one: --max-rows 1. {HALF_PRECISION}")
    return _all_equal(subject, alone)


def _texts(subject: Subject, probes: Sequence[Probe]) -> list[str]:
    return [subject.ask(probe).text for probe in probes]


def _in_company(subject: Subject, probes: Sequence[Probe], alone: Sequence[str]) -> str:
    """How answers differ where requests come one a step or at once; empty where they do not."""
    for staggered in (True, False):
        together = [reply.text for reply in subject.ask_together(probes, staggered=staggered)]
        if different := _difference(alone, together):
            return different
    return ""


def _difference(alone: Sequence[str], together: Sequence[str]) -> str:
    pairs = [pair for pair in zip(alone, together, strict=True) if pair[0] != pair[1]]
    if not pairs:
        return ""
    return f"{len(pairs)} of {len(alone)} answers, as {quoted(pairs[0][0])} and {quoted(pairs[0][1])}"


def _all_equal(subject: Subject, alone: Sequence[str]) -> Outcome:
    batching, _ = subject.engine.batching
    if not any(alone):
        return warned("every answer is empty, so that all are equal", "Give it speech to hear: --audio FILE.")
    return passed(f"{len(alone)} requests, {len(set(alone))} answers, {batching} batching: none differs")


# ---------------------------------------------------------------------------------------------- a `TextModel`'s batches


def _judge_batches(subject: Subject, alone: Sequence[str], different: str) -> Outcome:
    """What batches the model bears, which is kept for the server."""
    if among_equals := _with_equal_clips(subject):
        return _found(subject, "serial", different or among_equals)
    if different:
        return _found(subject, "one length", f"{different}; with clips of one length none differs")
    _keep(subject, "dynamic", "answers in a batch are those alone")
    return _all_equal(subject, alone)


def _with_equal_clips(subject: Subject) -> str:
    """How answers differ where the clips of a batch are of one length, and the texts are not; empty where they do
    not."""
    groups = [[subject.usual(number, USUAL_S) for number in range(len(TEXTS))]]
    if subject.hears and subject.reads_text_alone:
        groups.append([subject.probe(text) for text in TEXTS])
    found = (_in_company(subject, probes, _texts(subject, probes)) for probes in groups)
    return next(filter(None, found), "")


def _found(subject: Subject, batching: CardBatching, seen: str) -> Outcome:
    why, how = REASONS[batching]
    then = _keep(subject, batching, f"models.check failed `{BATCHED}`: {why}, so {how}")
    mend = "To batch it again, mask what is padded and check anew."
    return failed(seen, f"{ADVICE[batching]}: {why}; {then}. {mend}")


def _keep(subject: Subject, batching: CardBatching, why: str) -> str:
    """Store the card, if the model is one that a card can be found for; what the server will do then."""
    key = fingerprint(subject.name)
    if key is None:
        return "the server keeps that for files and directories only"
    try:
        write_card(Card(batching, why, datetime.now(UTC).isoformat(timespec="seconds"), key), subject.cards_dir)
    except OSError as error:
        return f"the server is not told, as {subject.cards_dir} cannot be written ({error.strerror}): see --cards-dir"
    return "the server will do so from now on"
