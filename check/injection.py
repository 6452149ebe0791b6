"""Whether what a user writes stays text: nobody adds a placeholder of audio, or another control token, by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from check.outcome import Outcome, failed, noted, passed, quoted, warned
from check.subject import Subject
from errors import BadRequest
from models.base import CausalModel

# What placeholders are called where a model does not show its own.
USUAL_NAMES = ("<|AUDIO|>", "<|audio|>", "<audio>", "[AUDIO]", "<sound>", "<|audio_1|>", "<|im_end|>", "</s>")
MAX_ASKED = 8
NAMES_AT_ONCE = 32
ADVICE = (
    "Encode what users write so that special tokens stay text (`encode_special_tokens` of tokenizers, "
    "`split_special_tokens` of transformers), or refuse it with a `BadRequest`."
)


def keeps_placeholders(subject: Subject) -> Outcome:
    """The names of control tokens in a user's text make no control tokens, and no failure."""
    names: list[str] = []
    if isinstance(subject.model, CausalModel):
        controls = _Controls(subject.model)
        names = controls.names
        for text in controls.texts():
            if added := _added(subject, controls, text):
                return failed(f"{quoted(text)} in a user's text: {added:+d} control tokens", ADVICE)
    asked = (names or USUAL_NAMES)[:MAX_ASKED]
    refused = sum(_is_refused(subject, name) for name in asked)
    tried = f"{len(names)} control tokens" if names else f"{len(asked)} usual names"
    if not isinstance(subject.model, CausalModel):
        seen = f"{tried} in a user's text, {refused} refused; what they become cannot be seen, as there is no prompt"
        return warned(seen, "See that your class takes the users' text for text.")
    return passed(f"{tried} in a user's text; of {len(asked)} asked, {refused} refused")


class _Controls:
    """A model's control tokens: placeholders first, then those that its tokenizer calls special."""

    def __init__(self, model: CausalModel) -> None:
        special = (id_ for id_, token in model.tokenizer.get_added_tokens_decoder().items() if token.special)
        self._ids = tuple(dict.fromkeys((*model.placeholder_ids, *special)))
        self.names = [name for id_ in self._ids if (name := model.tokenizer.id_to_token(id_))]
        self._num_placeholders = len(model.placeholder_ids)

    def texts(self) -> Iterator[str]:
        """Placeholders one by one, as they matter most; the others, which may be hundreds, many at once."""
        yield from self.names[: self._num_placeholders]
        others = self.names[self._num_placeholders :]
        for start in range(0, len(others), NAMES_AT_ONCE):
            yield " ".join(others[start : start + NAMES_AT_ONCE])

    def count(self, ids: Sequence[int]) -> int:
        controls = frozenset(self._ids)
        return sum(id_ in controls for id_ in ids)


def _added(subject: Subject, controls: _Controls, text: str) -> int:
    """How many control tokens more a prompt has with this text than with a plain one."""
    try:
        return _count(subject, controls, f"What is {text} here?") - _count(subject, controls, "What is it here?")
    except BadRequest:
        return 0


def _count(subject: Subject, controls: _Controls, text: str) -> int:
    clips = [subject.clip(1.0)] if subject.hears else []
    return sum(controls.count(prompt.token_ids) for prompt in subject.prompts(subject.probe(*clips, text)))


def _is_refused(subject: Subject, name: str) -> bool:
    """Through the whole engine: anything but an answer or a refusal is raised."""
    clips = [subject.clip(1.0)] if subject.hears else []
    try:
        with noted(f"{quoted(name)} in a user's text"):
            subject.ask(subject.probe(*clips, f"What is {name} here?"))
    except BadRequest:
        return True
    return False
