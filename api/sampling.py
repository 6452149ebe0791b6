"""How tokens are to be chosen: the sampling fields of a `ChatRequest` to a `Sampling`, and their limits. Pure.

What each field does is the engine's; this file knows only what the client may ask.
"""

from __future__ import annotations

from api.schema import ChatRequest
from config import Settings
from errors import BadRequest
from wire import Sampling


def check_sampling(chat: ChatRequest, settings: Settings) -> None:
    """Refuse what is over a limit or contradicts itself. Raises `BadRequest`."""
    if (chat.n or 1) > settings.max_n:
        raise BadRequest(f"`n` is over the limit of {settings.max_n}.", "n")
    if len(_stops(chat)) > settings.max_stop:
        raise BadRequest(f"`stop` has {len(_stops(chat))} strings; the limit is {settings.max_stop}.", "stop")
    if any(len(stop) > settings.max_stop_chars for stop in _stops(chat)):
        raise BadRequest(f"`stop`: a string is longer than the limit of {settings.max_stop_chars} characters.", "stop")
    if len(chat.logit_bias or ()) > settings.max_logit_bias:
        raise BadRequest(f"`logit_bias` has more than the limit of {settings.max_logit_bias} tokens.", "logit_bias")
    if (chat.min_tokens or 0) > (_max_tokens(chat) or float("inf")):
        raise BadRequest("`min_tokens` is more than the request's own limit of tokens.", "min_tokens")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise BadRequest("`top_logprobs` goes with `logprobs`: true only.", "top_logprobs")
    if (chat.top_logprobs or 0) > settings.max_top_logprobs:
        raise BadRequest(f"`top_logprobs` is over the limit of {settings.max_top_logprobs}.", "top_logprobs")


def build_sampling(chat: ChatRequest) -> Sampling:
    return Sampling(
        max_tokens=_max_tokens(chat),
        min_tokens=chat.min_tokens or 0,
        ignore_eos=bool(chat.ignore_eos),
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=None if chat.top_k is None else max(0, chat.top_k),  # vLLM writes "all" as -1, too
        min_p=chat.min_p or 0.0,
        presence_penalty=chat.presence_penalty or 0.0,
        frequency_penalty=chat.frequency_penalty or 0.0,
        repetition_penalty=chat.repetition_penalty,
        logit_bias=tuple({int(token): bias for token, bias in (chat.logit_bias or {}).items()}.items()),
        stop=tuple(_stops(chat)),
        seed=chat.seed,
        n=chat.n or 1,
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )


def _stops(chat: ChatRequest) -> list[str]:
    return [chat.stop] if isinstance(chat.stop, str) else chat.stop or []


def _max_tokens(chat: ChatRequest) -> int | None:
    return chat.max_completion_tokens or chat.max_tokens
