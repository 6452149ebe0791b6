"""What a tokenizer alone can tell: the tokens of a text or of a conversation, and the text of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from errors import BadRequest
from models.base import CausalModel, Conversation
from wire import Delta, Detokenize, Finished, Heard, Job, TokenCount, Tokenize, Usage

Told = Sequence[Delta | Finished]


def tokens_told(model: CausalModel, job: Job, conversation: Conversation, heard: Heard) -> Told:
    """The whole answer to a job that asks for tokens or for their text. Raises `BadRequest`."""
    match job.tokens:
        case Detokenize(ids):
            return _text_of(model, job, ids)
        case Tokenize(special):
            ids = _plain_ids(model, conversation, special) if job.plain else _prompt_ids(model, job, conversation)
            names = tuple(model.tokenizer.id_to_token(id_) or "" for id_ in ids)
            count = TokenCount(ids, names, model.max_model_len)
            return [Finished(job.id, 0, "stop", Usage(len(ids), 0, heard=heard), tokens=count)]
    raise AssertionError("it is asked for tokens")


def no_tokens() -> BadRequest:
    """Of a model whose tokenizer, if it has one, is its own affair."""
    return BadRequest("This model has no tokenizer that the server could ask.", "model")


def _text_of(model: CausalModel, job: Job, ids: Sequence[int]) -> Told:
    unknown = next((i for i, id_ in enumerate(ids) if model.tokenizer.id_to_token(id_) is None), None)
    if unknown is not None:
        place = f"tokens[{unknown}]"
        raise BadRequest(f"`{place}`: the model's tokenizer has no such token.", place)
    text = model.tokenizer.decode(list(ids), skip_special_tokens=False)
    return [Delta(job.id, 0, text), Finished(job.id, 0, "stop", Usage(len(ids), 0))]


def _plain_ids(model: CausalModel, conversation: Conversation, special: bool) -> tuple[int, ...]:
    ((text,),) = (turn.parts for turn in conversation)
    assert isinstance(text, str), "a plain job has one message of one text"
    return tuple(model.tokenizer.encode(text, add_special_tokens=special).ids)


def _prompt_ids(model: CausalModel, job: Job, conversation: Conversation) -> tuple[int, ...]:
    """Of all its prompts, where it takes several. Audio stands in them as placeholders, where the decoder reads it."""
    prompts = model.prepare_by(conversation, job.templating)
    if not all(prompt.token_ids for prompt in prompts):
        raise BadRequest("This model makes no tokens of a conversation. Send a `prompt`.", "messages")
    return tuple(id_ for prompt in prompts for id_ in prompt.token_ids)
