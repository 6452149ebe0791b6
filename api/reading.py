"""How the answers to a request are to be read: decided when the model is known, which is with the first event. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from api.reader import Reader
from api.tool_schema import WithTools, callable_names
from wire import Capabilities, FinishReason


@dataclass(frozen=True)
class Reading:
    """`names`: the tools that may be called; none where there are none. `is_forced`: the client has named the one."""

    capabilities: Callable[[], Capabilities | None]
    names: frozenset[str] = frozenset()
    parallel: bool = True
    is_forced: bool = False

    @classmethod
    def of(cls, asked: WithTools, capabilities: Callable[[], Capabilities | None]) -> Reading:
        return cls(capabilities, *callable_names(asked))

    def start(self) -> Reader:
        """For one answer of the request."""
        model = self.capabilities()
        if model is None:
            return Reader()
        return Reader(model.reasoning, model.tools if self.names else None, self.names, self.parallel)

    def finish_reason(self, reason: FinishReason, has_called: bool) -> str:
        """OpenAI tells that tools were called where that was the model's own choice of an end."""
        return "tool_calls" if has_called and reason == "stop" and not self.is_forced else reason


PLAIN = Reading(lambda: None)
