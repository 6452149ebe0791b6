"""Every knob of the server, once: command line flags, `EARDRUM_*` variables and `.env`, in this order of strength.

Read once in `main()` and passed down frozen; nothing else reads the environment.
"""

from __future__ import annotations

import logging
import os
import re
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

VERSION = "0.1.0.dev0"  # of the server, as `GET /version` tells it

MB = 1_000_000
MIB = 1 << 20

LongAudio = Literal["error", "truncate", "chunk"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Domain = Annotated[str, Field(pattern=r"^\.?[^\s/:*@.][^\s/:*@]*$")]  # neither a URL, nor a port, nor a wildcard
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^\s/]+)$")]  # as browsers write it: no path, no slash at its end
Ports = Annotated[str, Field(pattern=r"^\d{1,5}(-\d{1,5})?$")]


# Parameters of transformers' apply_chat_template, tokens that a variable would replace, and what messages are called.
_NO_VARIABLE = re.compile(
    r"conversation|messages|tools|documents|tokenize|padding|truncation|max_length|add_generation_prompt|"
    r"continue_final_message|sanitize_control_tokens|(chat_|return_|load_).*|.*_(token|kwargs)|(?![a-z_]\w*$).*"
)


def _checked_variable(name: str) -> str:
    if _NO_VARIABLE.fullmatch(name):
        raise ValueError("this is no variable that clients may set")
    return name


TemplateVariable = Annotated[str, AfterValidator(_checked_variable)]


class Settings(BaseSettings):
    """Serve an audio-language model behind the OpenAI API."""

    model_config = SettingsConfigDict(
        env_prefix="EARDRUM_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it holds the keys
        protected_namespaces=(),
        cli_prog_name="server.py",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    # What is served, and where.
    model: str = Field(
        "whisper-tiny.en",
        description="what to serve: a directory or hub id, path/to/file.py:Class, cascade:ASR,LLM, whisper-tiny.en, or "
        "fake (for trying clients)",
    )
    served_model_name: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="names clients use, separated by commas; the first is told; the model's own where not set"
    )
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field("127.0.0.1", description="address to listen on")  # noqa: S104 -- a choice, not the default
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights' type; auto: float32 on CPU, bfloat16 or float16 on an accelerator"
    )
    device_map: str | None = Field(None, description="transformers' device_map, such as auto; one device where not set")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(False, description="run the Python code that a checkpoint brings")
    attn_implementation: str | None = Field(None, description="transformers' attention: sdpa, eager, flash_attention_2")
    quantization: str | None = Field(
        None, description="int8: weights only, by torchao; or the JSON of a transformers quantization_config"
    )
    adapter: str | None = Field(None, description="a LoRA adapter in PEFT's format, merged into the weights")
    long_audio: LongAudio | None = Field(
        None,
        description="audio longer than the model hears at once: error, truncate or chunk; the model's way if unset",
    )
    cards_dir: Path | None = Field(
        None, description="where models.check keeps what it found; $XDG_CACHE_HOME/eardrum or ~/.cache/eardrum if unset"
    )
    workers_per_device: PositiveInt = Field(1, description="model copies on each device")
    api_servers: PositiveInt = Field(1, description="HTTP processes")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")

    # Who may ask.
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="bearer keys, separated by commas; none: everybody may ask"
    )
    api_key_file: Path | None = Field(None, description="a file with more bearer keys, one a line, read at the start")
    requests_per_minute: PositiveInt | None = Field(
        None, description="requests that one key may send in a minute, to each API process; any number if unset"
    )
    audio_seconds_per_minute: PositiveFloat | None = Field(
        None,
        description="seconds of audio that one key's answers may hear in a minute, of each API process; any if unset",
    )
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = Field(
        (), description="web pages that may ask from browsers, as https://example.org, separated by commas; *: all"
    )
    playground: bool = Field(True, description="the page at / for trying the model in a browser")

    # Chats.
    allow_template_kwargs: Annotated[tuple[TemplateVariable, ...], NoDecode] = Field(
        ("enable_thinking", "thinking", "reasoning_effort"),
        description="variables of the model's chat template that clients may set, separated by commas",
    )

    # The engine.
    max_rows: PositiveInt = Field(16, description="answers decoded side by side in one step")
    prefill_tokens: PositiveInt = Field(512, description="tokens of a text prompt computed between two decode steps")
    kv_tokens: PositiveInt | None = Field(
        None, description="tokens whose keys and values fit into memory, rows times the widest; measured where not set"
    )
    encoder_cache_mb: int = Field(256, ge=0, description="MB of encoded audio kept, for more about it; 0: none")
    prefix_cache_mb: int = Field(256, ge=0, description="MB of prompts kept, for prompts that begin alike; 0: none")
    compile: bool = Field(False, description="compile decode steps, with CUDA graphs where there is CUDA")
    prepare_ahead: PositiveInt = Field(64, description="jobs a worker fetches and decodes ahead of free rows")
    prepare_ahead_s: PositiveFloat = Field(7200.0, description="seconds of decoded audio that a worker's jobs may hold")

    # When something dies, hangs or has to wait.
    request_timeout: PositiveFloat = Field(600.0, description="seconds from a request's arrival to its last token")
    drain_timeout: PositiveFloat = Field(25.0, description="seconds that answers may still take when the server ends")
    start_timeout: PositiveFloat = Field(1800.0, description="seconds that a worker may take to load its model")
    step_timeout: PositiveFloat = Field(
        300.0,
        description="seconds that a worker may be in one step of the model, or silent; then it is killed",
    )
    receive_timeout: PositiveFloat = Field(15.0, description="seconds that a client may send nothing of its request")
    send_timeout: PositiveFloat = Field(60.0, description="seconds that a client may take nothing of its answer")
    heartbeat_max_age_s: PositiveFloat = Field(4.0, description="a worker silent for longer is not ready")
    max_restarts: int = Field(
        5, ge=0, description="times in a row that a worker is started anew without having lasted; then the server ends"
    )

    # Transcriptions.
    transcription_prompt: str = Field(
        "Transcribe the speech in this audio. Answer with the transcript only.",
        min_length=1,
        description="what a model that chats is told for a transcription, behind the audio",
    )

    # Tools and thoughts.
    tool_call_parser: Literal["auto", "none", "hermes", "mistral", "llama", "granite"] = Field(
        "auto",
        description="how the model writes calls of tools: auto (as its chat template shows), hermes, mistral, llama, "
        "granite; none: tools are refused",
    )
    reasoning_parser: Literal["none", "think", "mistral"] = Field(
        "none",
        description="tags around thoughts that go into `reasoning_content`: think (`<think>`), mistral (`[THINK]`)",
    )

    # The door.
    max_body_bytes: PositiveInt = Field(100 * MB, description="largest request body")
    queue_requests: PositiveInt = Field(256, description="requests that may wait for a worker")
    queue_bytes: PositiveInt = Field(256 * MB, description="bytes of bodies and audio that all requests may hold")
    max_text_chars: PositiveInt = Field(1_000_000, description="characters of text in one request")
    max_clips: PositiveInt = Field(16, description="audio parts in one request")
    max_n: PositiveInt = Field(8, description="choices of one request")
    max_stop: PositiveInt = Field(4, description="stop strings of one request")
    max_stop_chars: PositiveInt = Field(500, description="characters of one stop string")
    max_logit_bias: PositiveInt = Field(300, description="tokens that one request may bias")
    max_top_logprobs: PositiveInt = Field(20, description="alternatives told beside each token's log-probability")
    max_labels: PositiveInt = Field(64, description="answers that a choice may allow")
    max_structure_chars: PositiveInt = Field(100_000, description="a schema, regular expression, grammar or choice")

    # Audio in.
    max_audio_bytes: PositiveInt = Field(25 * MB, description="one audio, encoded")
    max_audio_seconds: PositiveFloat = Field(3600.0, description="one audio, decoded")
    max_decoded_bytes: PositiveInt = Field(256 * MIB, description="one audio, decoded to float32 at the model's rate")
    max_request_audio_seconds: PositiveFloat = Field(7200.0, description="all audio of one request")
    uuid_cache_mb: int = Field(64, ge=0, description="MB of encoded audio kept that clients gave a uuid; 0: none")
    decode_processes: PositiveInt = Field(2, description="processes that decode audio, for each worker")
    decode_base_s: PositiveFloat = Field(5.0, description="CPU seconds that decoding may take")
    decode_s_per_minute: PositiveFloat = Field(1.0, description="and for each minute of audio, so much more")
    allow_truncated_audio: bool = Field(False, description="hear audio that breaks off, as far as it goes")
    fetch_timeout: PositiveFloat = Field(10.0, description="all fetches of one request together")
    fetch_ahead_mb: PositiveInt = Field(512, description="MB of fetched audio that a worker's jobs may hold")
    fetch_redirects: int = Field(5, ge=0, description="redirects to follow")
    fetch_first_byte: PositiveFloat = Field(5.0, description="seconds until a host's answer must begin")
    fetch_min_bytes_per_s: float = Field(8000.0, ge=0, description="slower hosts are given up, after 3 seconds")
    fetch_cache_mb: int = Field(64, ge=0, description="MB of fetched audio kept as long as its host allows; 0: none")
    allow_http: bool = Field(True, description="fetch http addresses, and not https ones only")
    allow_domains: Annotated[tuple[Domain, ...], NoDecode] = Field(
        (),
        description="fetch from these hosts only, separated by commas; .example.org: all below it; none: from all",
    )
    allow_ports: Annotated[tuple[Ports, ...], NoDecode] = Field(
        ("80", "443", "1024-65535"), description="fetch from these ports only, separated by commas"
    )
    allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="private networks to fetch from beside the public ones, as 10.1.0.0/16, separated by commas"
    )
    allow_private_networks: bool = Field(False, description="fetch audio from private and loopback addresses too")
    spool_dir: Path | None = Field(None, description="where audio waits; /dev/shm where it has room, else temporary")

    @field_validator(
        *("served_model_name", "api_keys", "cors_origins", "allow_domains", "allow_ports", "allow_networks"),
        "allow_template_kwargs",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(entry.strip() for entry in value.split(",") if entry.strip())
        return value

    @model_validator(mode="after")
    def _check_room(self) -> Settings:
        needed = self.api_servers * self.max_body_bytes
        if self.queue_bytes < needed:
            raise ValueError(
                "The HTTP processes share --queue-bytes, and the share of each must hold a body of --max-body-bytes: "
                f"set it to {needed} or more, or that to less."
            )
        needed = -(-self.max_clips * self.max_audio_bytes // MB)
        if self.fetch_ahead_mb < needed:
            raise ValueError(
                "--fetch-ahead-mb must hold the audio of one request, --max-clips times --max-audio-bytes: "
                f"set it to {needed} or more, or those to less."
            )
        return self

    @property
    def cards_path(self) -> Path:
        """Where capability cards are."""
        if self.cards_dir is not None:
            return self.cards_dir
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 -- Path's fails
        return Path(caches) / "eardrum"  # where there is no home, and nothing is kept in a directory called ~

    @model_validator(mode="after")
    def _check_key_file(self) -> Settings:
        """Read it at once: a server that was to be closed and finds no keys must not start open."""
        if self.api_key_file is not None and self.keys == self.api_keys:
            raise ValueError("--api-key-file holds no key.")
        return self

    @cached_property
    def keys(self) -> tuple[SecretStr, ...]:
        """All bearer keys; without any, everybody may ask."""
        return self.api_keys + (_keys_in(self.api_key_file) if self.api_key_file else ())

    @property
    def public_names(self) -> tuple[str, ...]:
        """The model's names for clients."""
        return self.served_model_name or (self.model,)

    @property
    def public_name(self) -> str:
        """The name that answers tell: the first, whichever was asked for."""
        return self.public_names[0]


def _keys_in(path: Path) -> tuple[SecretStr, ...]:
    """Raises `ValueError` where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError("--api-key-file cannot be read as text.") from None
    return tuple(SecretStr(line.strip()) for line in lines if line.strip())


def configure_logging(level: str) -> None:
    """Readable lines on stderr, ours from `level` on and other libraries' from warnings on; for each process once."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("eardrum").setLevel(level.upper())
