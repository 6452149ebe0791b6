"""A prepared job, checked against the model: all that can be refused is refused here, and all that is slow is done here
(naming audio, compiling grammars), before the engine's thread sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dialects import THOUGHTS, TOOLS
from engine.grammar import Grammar, GrammarCompiler
from engine.prompts import audio_keys, features
from engine.tokens import Told, tokens_told
from engine.tool_grammar import compile_calls
from engine.vocabulary import Vocabulary
from errors import BadRequest
from models.base import CausalModel, Conversation, Prompt, refuse_overflow
from wire import NOTHING_HEARD, Heard, Job, JobId, Sampling

MAX_LABEL_TOKENS = 64


@dataclass(frozen=True)
class Label:
    """One answer of a choice, whose probability is asked for, and its tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Request:
    """What the engine answers. `heard` is the audio that it was made of; `audio_keys` name the audio of each
    prompt. `grammar_place`: where the client wrote what `grammar` comes from. `kept`: special tokens that are text in
    the answer."""

    id: JobId
    prompts: Sequence[Prompt]
    sampling: Sampling
    heard: Heard = NOTHING_HEARD
    grammar: Grammar | None = None
    grammar_place: str | None = None
    kept: Mapping[int, str] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
    priority: int = 0
    deadline: float | None = None
    tells_segments: bool = False
    tells_usage: bool = False
    audio_keys: tuple[tuple[bytes, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("a model's `prepare` gave no prompt")
        object.__setattr__(self, "audio_keys", tuple(map(audio_keys, self.prompts)))

    def opening(self, prompt: Prompt) -> str:
        """What of the answer's text a prompt has written. An answer that follows a grammar begins with it."""
        return prompt.opening if self.grammar is None else ""


class RequestBuilder:
    """Makes requests for one model; several threads may call it at once."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._size = model.vocabulary_size
        self.vocabulary = Vocabulary(model.tokenizer, self._size, model.end_ids)
        self._compiler = GrammarCompiler(self.vocabulary)

    def compile(self, job: Job) -> Grammar | None:
        """The grammar of the job's structure. Of a client's making, so it may take seconds. Raises `BadRequest`."""
        tools, dialect = job.tools, self._model.capabilities.tools
        if tools is None or dialect is None:
            return self._compiler.compile(job.structure) if job.structure else None
        return compile_calls(self._compiler, tools, TOOLS[dialect], job.structure)

    def prepare(self, job: Job, conversation: Conversation, heard: Heard, grammar: Grammar | None) -> Request:
        """The request of a job, whose messages and audio are `conversation`. Computes features, so not for the engine's
        thread. Raises `BadRequest`."""
        if job.plain:
            ((text,),) = (turn.parts for turn in conversation)
            assert isinstance(text, str), "a plain job has one message of one text"
            return self.build(job, [self._model.prepare_plain(text)], grammar, heard)
        task, model = job.task, self._model
        if task:
            return self.build(job, model.transcribe(conversation, task), grammar, heard)
        prompts = model.prepare_by(conversation, job.templating, job.tools)
        return self.build(job, prompts, grammar, heard)

    def tokens(self, job: Job, conversation: Conversation, heard: Heard) -> Told:
        """The answer to a job that asks for no more than tokens, as `prepare` gets it. Raises `BadRequest`."""
        return tokens_told(self._model, job, conversation, heard)

    def build(
        self,
        job: Job,
        prompts: Sequence[Prompt],
        grammar: Grammar | None = None,
        heard: Heard = NOTHING_HEARD,
    ) -> Request:
        """Raises `BadRequest` for what the model cannot do. `grammar` is what `compile` has made for the job."""
        self._check_bias(job.sampling)
        _check_prompts(prompts)
        place = _grammar_place(job)
        assert (place is None) == (grammar is None), "a structure is compiled"
        if (grammar is not None or job.tools is not None) and len(prompts) > 1:
            place = place or "tools"
            raise BadRequest(
                f"`{place}`: the audio is answered in {len(prompts)} pieces, and this needs an answer in one. "
                "Send a single clip that the model takes at once.",
                place,
            )
        return Request(
            id=job.id,
            prompts=prompts,
            sampling=_sampling(job),
            heard=heard,
            grammar=grammar,
            grammar_place=place,
            kept=self._kept(job),
            labels=self._labels(job, min(MAX_LABEL_TOKENS, prompts[0].max_new_tokens)),
            priority=job.priority,
            deadline=job.deadline,
            tells_segments=job.task is not None,
            tells_usage=job.tells_usage,
        )

    def _kept(self, job: Job) -> dict[int, str]:
        """The special tokens that are to be read in the answer: markers of calls, where there are tools, and of
        thoughts, where they are told apart."""
        model = self._model.capabilities
        names: list[str] = []
        if job.tools is not None and model.tools is not None:
            names += TOOLS[model.tools].markers
        if model.reasoning is not None and not job.plain and job.task is None:
            names += THOUGHTS[model.reasoning]
        return {id_: name for name, id_ in self.vocabulary.special_ids(names).items()}

    def _check_bias(self, sampling: Sampling) -> None:
        for token, _ in sampling.logit_bias:
            if token >= self._size:
                raise BadRequest(f"`logit_bias`: the model has token ids from 0 to {self._size - 1}.", "logit_bias")
            if token in self._model.placeholder_ids:
                raise BadRequest(f"`logit_bias`: token {token} stands for audio; it is never written.", "logit_bias")

    def _labels(self, job: Job, max_tokens: int) -> tuple[Label, ...]:
        if job.structure is None or job.structure.kind != "choice" or job.sampling.top_logprobs is None:
            return ()
        encode = self._model.tokenizer.encode
        labels = tuple(Label(text, tuple(encode(text, add_special_tokens=False).ids)) for text in job.structure.choices)
        if max(len(label.ids) for label in labels) > max_tokens:
            raise BadRequest(
                f"`{job.structure.place}`: a label has more than {max_tokens} tokens, too many to tell its "
                "probability. Send shorter labels, or leave out `logprobs`.",
                job.structure.place,
            )
        return labels


def _grammar_place(job: Job) -> str | None:
    """Where the client wrote what the answer must look like, if it must."""
    if job.tools is not None and job.tools.choice == "required":
        return "tool_choice"
    return job.structure.place if job.structure else None


def _sampling(job: Job) -> Sampling:
    """Whoever tells times also tells how sure the model was of each segment."""
    wanted = job.task is not None and job.task.timestamps
    return replace(job.sampling, top_logprobs=0) if wanted else job.sampling


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    """What would overflow the module's window or its arithmetic is refused here; in a step it would be too late."""
    for prompt in prompts:
        if prompt.max_new_tokens < 1:
            raise BadRequest(
                f"The prompt takes {prompt.num_tokens} tokens, which leaves no room in the model's window for an "
                "answer. Send less text or audio.",
                "messages",
            )
        refuse_overflow(features(prompt).values())
