"""`/v1/completions`, OpenAI's older API: a text is continued. All but its words is as in `chat_completions.py`."""

from __future__ import annotations

from functools import partial

from api import text_completions
from api.answers import Reply
from api.chat import tells_usage, with_usage
from api.chat_completions import collected, streamed
from api.endpoint import Answer, Endpoint
from api.text_completions import CompletionRequest, TextChunks, TextCompletion


class Completions(Endpoint[CompletionRequest]):
    form = CompletionRequest
    id_prefix = "cmpl-"
    check = staticmethod(text_completions.check_limits)
    build = staticmethod(text_completions.build_job)

    def answer(self, asked: CompletionRequest, reply: Reply) -> Answer:
        logprobs = asked.logprobs is not None
        if asked.stream:
            options = asked.stream_options
            chunks = TextChunks(reply, with_usage(options), logprobs, tells_usage(options))
            return partial(streamed, chunks=chunks)
        return partial(collected, completion=TextCompletion(reply, asked.n or 1, logprobs))
