"""The values that cross the border between the HTTP process and the worker process.

Frozen dataclasses of plain fields, nothing else: no tensors, no audio bytes (those wait in spool files), no
exceptions. This file knows no library, and of our other rooms only the names in `dialects.py`.

    api ── Job, Wake, Cancel ──▶ worker
    api ◀── Ready, Heartbeat, Started, Delta, Finished, Failed ── worker
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dialects import ReasoningStyle, ToolStyle

BUS = "eardrum"  # the one key of LitServe's response buffer under which all events of an API process travel

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]
LongAudio = Literal["error", "truncate", "chunk"]  # what becomes of a clip that the model cannot take whole
Batching = Literal["continuous", "dynamic", "serial"]


@dataclass(frozen=True, slots=True)
class JobId:
    """Names one job in the whole server: the API process that waits for it, and a key unique in that process."""

    api_server: int
    key: str

    def __str__(self) -> str:
        return f"{self.api_server}/{self.key}"

    @classmethod
    def parse(cls, text: str) -> JobId:
        """The inverse of `str`."""
        api_server, key = text.split("/", 1)
        return cls(int(api_server), key)


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class AudioPart:
    """One audio of a message: a spool file or an address, never both. `place` says where the client wrote it."""

    place: str
    path: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.url is None), "an audio part has a path or a url"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the assistant called in the history. `arguments`: the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """`calls` and `reasoning` are an assistant's; `call_id` and `name` say which call of which tool has the message as
    its result."""

    role: Role
    parts: tuple[TextPart | AudioPart, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None

    @property
    def texts(self) -> list[str]:
        """All text that travels in it."""
        told = [self.call_id, self.name, self.reasoning]
        told += [text for call in self.calls for text in (call.id, call.name, call.arguments)]
        return [part.text for part in self.parts if isinstance(part, TextPart)] + [text for text in told if text]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `text`: the JSON text of its name, description and parameters; `parameters`:
    of the JSON schema of these. `place` says where the client wrote that."""

    name: str
    text: str
    parameters: str
    place: str


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of which the answer calls one, or may call some (auto). `forced`: the one that it calls, where the
    client names it. `parallel`: it may call several."""

    functions: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    forced: str | None = None
    parallel: bool = True

    @property
    def callable(self) -> tuple[Tool, ...]:
        return tuple(tool for tool in self.functions if self.forced in (None, tool.name))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens, in the words of OpenAI and vLLM. `None` leaves the choice to the model's own default."""

    max_tokens: int | None = None
    min_tokens: int = 0  # no end of the answer before
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # 0: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    top_logprobs: int | None = None  # how many alternatives beside each token's log-probability; `None`: not even that


@dataclass(frozen=True, slots=True)
class Structure:
    """What the answer must look like. `place` says where the client wrote it.

    `text` is a JSON schema (json), a regular expression (regex) or a grammar in Lark or GBNF (grammar); `choices` are
    the answers that a choice allows.
    """

    kind: Literal["json_object", "json", "regex", "choice", "grammar"]
    place: str
    text: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Templating:
    """How the model's chat template is to be applied. `variables`: a JSON object of what else it may read; `continues`:
    the answer goes on the last message, which is the assistant's; `opens`: the template opens the assistant's turn."""

    variables: str = ""
    continues: bool = False
    opens: bool = True


AS_USUAL = Templating()


@dataclass(frozen=True, slots=True)
class Transcribe:
    """What is wanted of a job that is one audio and, behind it, an instruction that says the same in words: what is
    said, or with `translate` what it means in English. `language`: the speech's ISO 639 code, where the client told it;
    `prompt`: the text that may have come before; `timestamps`: the times of segments, where the model can tell them."""

    language: str | None = None
    prompt: str | None = None
    translate: bool = False
    timestamps: bool = False


@dataclass(frozen=True, slots=True)
class Tokenize:
    """The tokens of the prompt are wanted, and no answer to it. `special`: with those that the tokenizer puts around a
    plain text."""

    special: bool = True


@dataclass(frozen=True, slots=True)
class Detokenize:
    """The text of these tokens is wanted."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request. `priority`: lower goes first, those of one priority in the order in which they came.
    `deadline`: when nobody waits for the answer any more, in seconds of the machine's monotonic clock. `long_audio`:
    the client's own choice. `alone`: in a worker that has no other job meanwhile, as this one may kill it. `plain`: the
    text of its only message goes to the model as it is, and no chat template stands around it. `templating`: else, how
    it stands there. `tools`: the answer may be calls of these, and keeps the markers of calls. `task`: for models that
    have their own way to do it; to all others, the messages say it. `tells_usage`: with each piece of the answer.
    `tokens`: the model is not asked at all, only its tokenizer."""

    id: JobId
    messages: tuple[Message, ...]
    sampling: Sampling
    spool_bytes: int = 0
    structure: Structure | None = None
    priority: int = 0
    deadline: float | None = None
    long_audio: LongAudio | None = None
    alone: bool = False
    plain: bool = False
    templating: Templating = AS_USUAL
    task: Transcribe | None = None
    tells_usage: bool = False
    tokens: Tokenize | Detokenize | None = None
    tools: Tools | None = None

    @property
    def text_bytes(self) -> int:
        """Of all text that the model is asked with."""
        texts = [text for message in self.messages for text in message.texts]
        texts += [tool.text for tool in self.tools.functions] if self.tools else []
        return sum(len(text.encode()) for text in texts)

    @property
    def audio_parts(self) -> list[AudioPart]:
        return [part for message in self.messages for part in message.parts if isinstance(part, AudioPart)]


@dataclass(frozen=True, slots=True)
class Wake:
    """There is a job in the queue."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this job any more."""

    job_id: JobId


def to_line(message: Wake | Cancel) -> str:
    """A control message as it travels on a worker's control socket."""
    return f"cancel {message.job_id}" if isinstance(message, Cancel) else "wake"


def from_line(line: str) -> Wake | Cancel:
    """The inverse of `to_line`."""
    verb, _, argument = line.partition(" ")
    assert verb in ("wake", "cancel"), "only `to_line` writes control messages"
    return Cancel(JobId.parse(argument)) if verb == "cancel" else Wake()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the served model takes, as `GET /v1/models` tells it.

    Of audio at `sampling_rate` hertz the model hears `max_seconds_per_window` at once; of a clip that is longer,
    `long_audio` says what becomes. `max_clips`: in one conversation; `None`: as many as the server allows. `why`: the
    reason for `batching`, in a sentence. `tools`: how it writes calls of tools; `None`: it does not. `reasoning`: how
    its thoughts are marked, where they are told apart from the answer.
    """

    sampling_rate: int
    max_seconds_per_window: float | None
    long_audio: LongAudio
    batching: Batching
    max_clips: int | None = None
    formats: tuple[str, ...] = ()
    why: str = ""
    tools: ToolStyle | None = None
    reasoning: ReasoningStyle | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has loaded its model. `control` is the address of its control socket."""

    pid: int
    control: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker lives. `step_s`: the seconds that it has been in its present step, 0 for one that has nothing to do."""

    pid: int
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has taken the job from the queue. It ends it, or dies with it."""

    job_id: JobId
    pid: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer, as bytes (it may be a part of a character), with its natural log-probability, and the
    likeliest tokens of its place, likeliest first."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """More of one choice's text. `logprobs`, where asked for: the tokens whose text is complete with it. `segment`:
    which of its `Finished`'s the text belongs to. `usage`, where asked for: of the choice so far."""

    job_id: JobId
    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    segment: int = 0
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """When something is said, in seconds from the beginning of the audio."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """The audio of a job: how much came, and how much of it the model was given. `windows`: where each window ends that
    the model hears at once, in seconds from the beginning of all that it was given."""

    parts: int = 0
    seconds_received: float = 0.0
    seconds_used: float = 0.0
    windows: tuple[float, ...] = ()


NOTHING_HEARD = Heard()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one choice cost, in the model's own tokens; prompt and audio are the same for each choice of a job.
    `cached_tokens` of the prompt were not computed for this job, as an earlier one had the same beginning."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    audio_tokens: int = 0
    heard: Heard = NOTHING_HEARD


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens by their ids, and by their names. `max_model_len`: what the model takes, with its answer."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """One choice is complete. `labels`, for a `choice` with logprobs: each label and its probability. For a
    `Transcribe`: `segments`, of which some may have no text, and the `language` of the speech as an ISO 639 code, where
    it is known. `tokens`: for a `Tokenize`."""

    job_id: JobId
    choice: int
    reason: FinishReason
    usage: Usage
    labels: tuple[tuple[str, float], ...] = ()
    segments: tuple[Segment, ...] = ()
    language: str | None = None
    tokens: TokenCount | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole job failed. `kind` is a class name of errors.py."""

    job_id: JobId
    kind: str
    message: str
    param: str | None = None


JobEvent = Started | Delta | Finished | Failed
Event = Ready | Heartbeat | JobEvent
