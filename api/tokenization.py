"""`/tokenize` and `/detokenize`, as vLLM has them: the tokens of a text or of messages, and the text of tokens."""

from __future__ import annotations

from functools import partial
from typing import Annotated, TypeVar

from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from api.answers import Reply
from api.chat import build_messages, check_messages, ends_in_answer, placed
from api.endpoint import Answer, Endpoint
from api.form import Question, Unsupported
from api.intake import Intake
from api.reception import Events
from api.schema import ChatMessage
from api.templating import TemplateFields, build_templating, check_templating
from config import Settings
from errors import BadRequest
from wire import Delta, Detokenize, Finished, Job, JobId, Message, Sampling, TextPart, Tokenize

ASKED_FOR_TOKENS = Sampling()  # nothing is sampled


class TokenizerQuestion(Question):
    """There is one model, so it need not be named."""

    model: Annotated[str, BeforeValidator(lambda name: "" if name is None else name)] = ""
    stream: Unsupported = None


Q = TypeVar("Q", bound=TokenizerQuestion)


class TokenizeRequest(TokenizerQuestion, TemplateFields):
    """A `prompt` as it stands, or `messages` by the chat template."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # of a prompt; they are added where nothing is said
    return_token_strs: bool | None = None
    tools: Unsupported = None
    chat_template: Unsupported = None


class DetokenizeRequest(TokenizerQuestion):
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]]


class TokenizerEndpoint(Endpoint[Q]):
    id_prefix = "tok-"

    def check_named(self, asked: Q) -> None:
        if asked.model:
            super().check_named(asked)


class TokenizeEndpoint(TokenizerEndpoint[TokenizeRequest]):
    form = TokenizeRequest

    @staticmethod
    def check(asked: TokenizeRequest, settings: Settings, /) -> None:
        if (asked.prompt is None) == (asked.messages is None):
            raise BadRequest("Send either `prompt` or `messages`.", "prompt")
        if asked.messages is not None:
            check_messages(asked.messages, settings, "messages")
            check_templating(asked, ends_in_answer(asked.messages[-1]), settings)
        elif len(asked.prompt or "") > settings.max_text_chars:
            raise BadRequest(f"`prompt` is longer than the limit of {settings.max_text_chars} characters.", "prompt")

    @staticmethod
    def build(asked: TokenizeRequest, job_id: JobId, intake: Intake, max_audio_bytes: int, /) -> Job:
        if asked.messages is None:
            text = Message("user", (TextPart(asked.prompt or ""),))
            return Job(
                job_id, (text,), ASKED_FOR_TOKENS, plain=True, tokens=Tokenize(asked.add_special_tokens is not False)
            )
        messages = build_messages(placed(asked.messages), intake, max_audio_bytes)
        templating = build_templating(asked)
        return Job(job_id, messages, ASKED_FOR_TOKENS, intake.num_bytes, templating=templating, tokens=Tokenize())

    def answer(self, asked: TokenizeRequest, reply: Reply) -> Answer:
        return partial(_tokens, with_names=bool(asked.return_token_strs))


class DetokenizeEndpoint(TokenizerEndpoint[DetokenizeRequest]):
    form = DetokenizeRequest

    @staticmethod
    def check(asked: DetokenizeRequest, settings: Settings, /) -> None:
        if len(asked.tokens) > settings.max_text_chars:
            raise BadRequest(f"`tokens` are more than the limit of {settings.max_text_chars}.", "tokens")

    @staticmethod
    def build(asked: DetokenizeRequest, job_id: JobId, _: Intake, __: int, /) -> Job:
        return Job(job_id, (), ASKED_FOR_TOKENS, tokens=Detokenize(tuple(asked.tokens)))

    def answer(self, asked: DetokenizeRequest, reply: Reply) -> Answer:
        return _text


async def _tokens(first: Delta | Finished, events: Events, with_names: bool) -> Response:
    assert isinstance(first, Finished) and first.tokens is not None, "it is all that there is to tell"
    told, names = first.tokens, list(first.tokens.names) if with_names else None
    return JSONResponse(
        {"count": len(told.ids), "max_model_len": told.max_model_len, "tokens": list(told.ids), "token_strs": names}
    )


async def _text(first: Delta | Finished, events: Events) -> Response:
    assert isinstance(first, Delta), "the text comes in one piece"
    return JSONResponse({"prompt": first.text})
