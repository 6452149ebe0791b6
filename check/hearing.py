"""Whether all audio is heard: up to its end, and in its order.

Where a model's prompts can be seen, features are compared; where not, answers are. An answer that does not change
proves nothing by itself, so the same change is first tried where it must be heard: on a short clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from check.asking import Probe
from check.outcome import Outcome, failed, passed, quoted, skipped, warned
from check.subject import TEXTS, Subject
from engine.prompts import features
from errors import AudioTooLong, BadRequest
from models.base import Clip, Prompt, Turn
from wire import LongAudio

USUAL_WINDOW_S = 30  # Whisper's, and of many that have its front end
SHORTEST_S = 0.1
TAIL_S = 0.5
ENOUGH_TOKENS = 500  # for an answer that tells of its audio's end
CONTROL_S = 4.0
TAIL_SHARE = TAIL_S / CONTROL_S  # of a long clip as much is changed as of the short one
TOLERANCE = 1e-3  # what is changed is far larger, rounding far smaller

Rows = Mapping[str, Sequence[torch.Tensor]]  # by a feature's name: its row for each audio


def hears_long_audio(subject: Subject) -> Outcome:
    """Clips that are very short or too long are heard whole, or refused with the limit."""
    if not subject.hears:
        return skipped("it takes no audio")
    window = subject.capabilities.max_seconds_per_window
    seen = [_asked_with(subject, SHORTEST_S, None)]
    for seconds in ((window or USUAL_WINDOW_S) + 1, 2 * (window or USUAL_WINDOW_S) + 1):
        policies: tuple[LongAudio, ...] = ("error", "chunk") if window else ("error",)
        seen += [_asked_with(subject, seconds, policy) for policy in policies]
    wrong = [each for each in seen if each.status == "fail"]
    return wrong[0] if wrong else passed("\n".join(each.seen for each in seen))


def _asked_with(subject: Subject, seconds: float, policy: LongAudio | None) -> Outcome:
    window = subject.capabilities.max_seconds_per_window
    clip = Clip((subject.sounds.clip(seconds),))
    label = f"{seconds:g} s" + (f", {policy}" if policy and window else "")
    probe = subject.probe(clip, TEXTS[0])
    try:
        heard = subject.ask(Probe(probe.conversation, probe.sampling, policy)).usage.heard
    except AudioTooLong as error:
        is_named = window is None or f"{window:g}" in error.message
        return passed(f"{label}: refused with the limit") if is_named else failed(f"{label}: refused ({error})")
    except BadRequest as error:
        return passed(f"{label}: refused ({error})")
    if heard.seconds_used < heard.seconds_received:
        return failed(f"{label}: only {heard.seconds_used:.1f} s were used")
    return passed(f"{label}: all used")


# -------------------------------------------------------------------------------------------------------------- the end


def hears_the_end(subject: Subject) -> Outcome:
    """The last half second of the longest clip that the model claims to take makes a difference."""
    if not subject.hears:
        return skipped("it takes no audio")
    seconds = subject.capabilities.max_seconds_per_window or 2 * USUAL_WINDOW_S + 1
    if not _shows_features(subject):
        return _judged_by_answers(subject, seconds)
    if _features_change(subject, seconds):
        return passed(f"the end of {seconds:g} s changes the features")
    return failed(f"the end of {seconds:g} s is in no feature", _advice(seconds))


def _advice(seconds: float) -> str:
    return (
        f"Something cuts the audio before {seconds:g} s, such as a feature extractor's `truncation`. Hear all of it, "
        "or say the seconds that are heard (`max_seconds`, or `max_seconds_per_window`)."
    )


def _shows_features(subject: Subject) -> bool:
    return any(features(prompt) for prompt in subject.prompts(subject.usual()))


def _features_change(subject: Subject, seconds: float) -> bool:
    """With the tail; also between the two of the same loudness, which a normalisation over the whole clip keeps."""
    silent, loud, backwards, _ = (_rows(subject, clip) for clip in _with_tails(subject, seconds, TAIL_S))
    return not _equal(silent, loud) and not _equal(loud, backwards)


def _with_tails(subject: Subject, seconds: float, tail_s: float) -> list[Clip]:
    whole = subject.sounds.clip(seconds)
    return [Clip((waveform,)) for waveform in subject.sounds.with_other_tails(whole, tail_s)]


def _judged_by_answers(subject: Subject, seconds: float) -> Outcome:
    if _answers_change(subject, seconds, TAIL_S):
        return passed(f"the end of {seconds:g} s changes the answer")
    if not _answers_change(subject, min(seconds, CONTROL_S), TAIL_S):
        return warned("could not be seen: the end of a short clip does not change the answer, either")
    if _answers_change(subject, seconds, seconds * TAIL_SHARE):
        return warned(f"the last {seconds * TAIL_SHARE:.1f} of {seconds:g} s change the answer; less could not be seen")
    return failed(
        f"the end of {min(seconds, CONTROL_S):g} s changes the answer, and that of {seconds:g} s does not",
        _advice(seconds),
    )


def _answers_change(subject: Subject, seconds: float, tail_s: float) -> bool:
    """Whether any of several tails has another answer than the first."""
    clips = _with_tails(subject, seconds, tail_s)
    answers = (subject.ask(subject.probe(clip, TEXTS[0], max_tokens=ENOUGH_TOKENS)).text for clip in clips)
    first = next(answers)
    return any(answer != first for answer in answers)


# ------------------------------------------------------------------------------------------------------------ the order


def keeps_order(subject: Subject) -> Outcome:
    """Two audios, in one turn or in two, are heard in the order in which they come."""
    if not subject.hears_several:
        return skipped("it hears one audio at most")
    found = []
    for form, in_two_turns in (("in one turn", False), ("in two turns", True)):
        try:
            outcome = _ordered(subject, in_two_turns)
        except BadRequest as error:
            outcome = skipped(f"refused ({error})")
        found.append(Outcome(outcome.status, f"{form}: {outcome.seen}", outcome.advice))
    for status in ("fail", "warn"):
        if those := [each for each in found if each.status == status]:
            return those[0]
    seen = "\n".join(each.seen for each in found)
    return skipped(seen) if all(each.status == "skipped" for each in found) else passed(seen)


def _ordered(subject: Subject, in_two_turns: bool) -> Outcome:
    if _shows_features(subject):
        return _ordered_features(subject, in_two_turns)
    return _ordered_answers(subject, in_two_turns)


def _two(subject: Subject, clips: Sequence[Clip], in_two_turns: bool) -> Probe:
    first, second = clips
    if not in_two_turns:
        return subject.probe(first, second, TEXTS[0])
    turns = (Turn("user", (first, TEXTS[0])), Turn("assistant", ("Yes.",)), Turn("user", (second, TEXTS[3])))
    return subject.talk(*turns)


ADVICE = "Take the audios as they come: turn by turn, part by part."


def _ordered_features(subject: Subject, in_two_turns: bool) -> Outcome:
    """Of clips of one length, so that their rows can be compared with those of each alone."""
    clips = subject.clip(1.5, 0), subject.clip(1.5, 1)
    first, second = (_rows(subject, clip) for clip in clips)
    together = _rows_of(subject.prompts(_two(subject, clips, in_two_turns)))
    swapped = _rows_of(subject.prompts(_two(subject, clips[::-1], in_two_turns)))
    if _equal(together, swapped):
        return failed("swapping two audios changes no feature", ADVICE)
    expected, backwards = _joined(first, second), _joined(second, first)
    if not _equal(expected, backwards) and _equal(together, backwards):
        return failed("the features of two audios come in the order in which they did not", ADVICE)
    if _equal(together, expected):
        return passed("the features are those of the first and then of the second")
    return passed("swapping changes the features")


def _ordered_answers(subject: Subject, in_two_turns: bool) -> Outcome:
    clips = subject.clip(1.2, 0), subject.clip(2.1, 1)
    first, second = (subject.ask(subject.probe(clip, TEXTS[0])).text for clip in clips)
    if first == second:
        return warned(f"could not be seen: both audios have the answer {quoted(first)}")
    together = subject.ask(_two(subject, clips, in_two_turns)).text
    swapped = subject.ask(_two(subject, clips[::-1], in_two_turns)).text
    if together == swapped:
        return failed(f"swapping two audios does not change the answer, {quoted(together)}", ADVICE)
    if first.strip() and second.strip() and _is_backwards(together, first.strip(), second.strip()):
        return failed(f"{quoted(first)} and {quoted(second)} became {quoted(together)}", ADVICE)
    return passed("swapping changes the answer")


def _is_backwards(together: str, first: str, second: str) -> bool:
    """Of a transcriber, whose answers hold one another."""
    return first in together and second in together and together.find(second) < together.find(first)


# --------------------------------------------------------------------------------------------------------- feature rows


def _rows(subject: Subject, clip: Clip) -> Rows:
    return _rows_of(subject.prompts(subject.probe(clip, TEXTS[0])))


def _rows_of(prompts: Sequence[Prompt]) -> Rows:
    """Each feature's rows, over all prompts of a conversation."""
    rows: dict[str, list[torch.Tensor]] = {}
    for prompt in prompts:
        for name, tensor in features(prompt).items():
            rows.setdefault(name, []).extend(tensor if tensor.dim() else [tensor])
    return rows


def _joined(first: Rows, second: Rows) -> Rows:
    return {name: [*rows, *second.get(name, ())] for name, rows in first.items()}


def _equal(one: Rows, other: Rows) -> bool:
    """Whether all features are the same but for rounding."""
    return one.keys() == other.keys() and all(_equal_rows(one[name], other[name]) for name in one)


def _equal_rows(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=TOLERANCE, atol=TOLERANCE)
        for a, b in zip(one, other, strict=True)
    )
