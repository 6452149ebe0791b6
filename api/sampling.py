"""How tokens are to be chosen: the fields for it, the same at every endpoint, to a `Sampling`, and their limits. Pure.

What each field does is the engine's; this file knows only what the client may ask.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from api.form import Form
from config import Settings
from errors import BadRequest
from wire import LongAudio, Sampling

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


def _token_biases(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error for all that can be wrong: pydantic's own would repeat the client's key."""
    try:
        return validate(value)
    except ValidationError:
        message = "Expected an object from token ids (integers from 0 on) to numbers from -100 to 100"
        raise PydanticCustomError("token_biases", message) from None


TokenBiases = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    WrapValidator(_token_biases),
]


class SamplingFields(Form):
    """In the words of OpenAI and vLLM. Each endpoint adds its own limit of tokens."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    logit_bias: TokenBiases | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), le=2**31)
    long_audio: LongAudio | None = None  # ours
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    stop: (
        Annotated[
            Annotated[str, Tag("<string>")] | Annotated[list[str], Tag("<list>")],
            Discriminator(lambda value: "<string>" if isinstance(value, str) else "<list>"),
        ]
        | None
    ) = None

    @property
    def token_limit(self) -> int | None:
        """Of the answer, if the request sets one."""
        raise NotImplementedError

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def check_sampling(asked: SamplingFields, settings: Settings) -> None:
    """Refuse what is over a limit or contradicts itself. Raises `BadRequest`."""
    if len(asked.stops) > settings.max_stop:
        raise BadRequest(f"`stop` has {len(asked.stops)} strings; the limit is {settings.max_stop}.", "stop")
    if any(len(stop) > settings.max_stop_chars for stop in asked.stops):
        raise BadRequest(f"`stop`: a string is longer than the limit of {settings.max_stop_chars} characters.", "stop")
    if len(asked.logit_bias or ()) > settings.max_logit_bias:
        raise BadRequest(f"`logit_bias` has more than the limit of {settings.max_logit_bias} tokens.", "logit_bias")
    if (asked.min_tokens or 0) > (asked.token_limit or float("inf")):
        raise BadRequest("`min_tokens` is more than the request's own limit of tokens.", "min_tokens")


def check_n(n: int | None, settings: Settings) -> None:
    """Refuse more choices than the limit. Raises `BadRequest`."""
    if (n or 1) > settings.max_n:
        raise BadRequest(f"`n` is over the limit of {settings.max_n}.", "n")


def check_top_logprobs(top: int | None, settings: Settings) -> None:
    """Refuse more alternatives than the limit. Raises `BadRequest`."""
    if (top or 0) > settings.max_top_logprobs:
        raise BadRequest(f"`top_logprobs` is over the limit of {settings.max_top_logprobs}.", "top_logprobs")


def build_sampling(asked: SamplingFields, n: int = 1, top_logprobs: int | None = None) -> Sampling:
    """`top_logprobs` as `Sampling` has it: `None` where no log-probabilities are asked for."""
    return Sampling(
        max_tokens=asked.token_limit,
        min_tokens=asked.min_tokens or 0,
        ignore_eos=bool(asked.ignore_eos),
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=None if asked.top_k is None else max(0, asked.top_k),  # vLLM writes "all" as -1, too
        min_p=asked.min_p or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=tuple({int(token): bias for token, bias in (asked.logit_bias or {}).items()}.items()),
        stop=tuple(asked.stops),
        seed=asked.seed,
        n=n,
        top_logprobs=top_logprobs,
    )
