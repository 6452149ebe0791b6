"""A conversation to a decoder's inputs, by the checkpoint's own processor and chat template.

Templates differ in what they take; what this one takes is probed once, when it is loaded, instead of known by name.
Nothing a client writes becomes a control token or a placeholder.
"""

from __future__ import annotations

import base64
import copy
import inspect
import io
import json
import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import _get_template_variables

from errors import BadRequest
from models.base import Clip, Conversation, Turn, no_plain_text, refuse_templating
from models.tool_messages import history_fields, plain_json, texts_beside, tools_for_template
from wire import AS_USUAL, Templating, Tools

MARK = "5f1c"  # a text that no template writes by itself
MAX_ERROR_CHARS = 200
ANY_NAME = "model"  # Mistral's request wants one, and makes nothing of it

# What templates and processors raise for roles, numbers and orders that they are not made for.
REFUSALS: tuple[type[Exception], ...] = (jinja2.TemplateError, ValueError, TypeError, KeyError, IndexError)

log = logging.getLogger("eardrum.models")

Block = dict[str, Any]
Message = dict[str, Any]


class ChatTemplate:
    """One checkpoint's processor. `sampling_rate` is that of the clips, in hertz; `None` where it reads text only.
    `audio_token` is the placeholder's name, where there is one."""

    def __init__(self, processor: Any, placeholder_id: int | None) -> None:
        self._processor = processor
        self._local = threading.local()
        self._is_tokenizer = not isinstance(processor, ProcessorMixin)
        self.tokenizer = processor if self._is_tokenizer else processor.tokenizer
        self._is_mistral = type(self.tokenizer).__name__.startswith("MistralCommon")
        self._refusals = (*REFUSALS, *(_mistrals_refusals() if self._is_mistral else ()))
        self._find_template()
        self.sampling_rate = _sampling_rate(processor)
        self.audio_token = self._name_of(placeholder_id)
        self._audio_in_text = self._text_in_blocks = self._sanitizes = False
        self._variables: frozenset[str] = frozenset()
        if not self._is_mistral:
            self._variables = _variables_of(self._processor.chat_template)
            self._probe()

    # --------------------------------------------------------------------------------------------- probing, at the load

    def _find_template(self) -> None:
        """Some processors lose the template that their tokenizer has. Raises `ValueError` where neither has one."""
        if self._is_mistral or getattr(self._processor, "chat_template", None):
            return
        template = getattr(self.tokenizer, "chat_template", None)
        if template is None:
            raise ValueError(
                "The checkpoint has no chat template, so there is no telling how it wants to be asked. Put a "
                "chat_template.jinja beside its config.json, or serve it by a class of your own with `prepare`."
            )
        self._processor.chat_template = template

    def _name_of(self, placeholder_id: int | None) -> str | None:
        name = getattr(self._processor, "audio_token", None)
        if isinstance(name, str) or placeholder_id is None:
            return name if isinstance(name, str) else None
        return str(self.tokenizer.convert_ids_to_tokens(placeholder_id))

    def _probe(self) -> None:
        text = [{"role": "user", "content": [{"type": "text", "text": MARK}]}]
        plain = [{"role": "user", "content": MARK}]
        if not self._renders(plain, MARK):
            self._text_in_blocks = True
            if not self._renders(text, MARK):
                raise ValueError("The checkpoint's chat template fails on the simplest message.")
        audio = [{"role": "user", "content": [{"type": "audio", "audio": ""}, {"type": "text", "text": MARK}]}]
        if self.sampling_rate is not None and self.audio_token is not None:
            self._audio_in_text = not self._renders(audio, self.audio_token)
        self._sanitizes = not self._audio_in_text and self._can_sanitize()
        self._inputs((Turn("user", (MARK,)),), _template_options(AS_USUAL))  # what fails here would fail for everybody

    def _renders(self, messages: list[Message], expected: str) -> bool:
        """Whether the template writes `expected` just once."""
        try:
            rendered = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # whatever a template may raise
            return False
        return str(rendered).count(expected) == 1 and "'type'" not in rendered

    def _can_sanitize(self) -> bool:
        turn = Turn("user", (MARK,))
        try:
            self._inputs((turn,), {**_template_options(AS_USUAL), "sanitize_control_tokens": True})
        except Exception:  # whatever a tokenizer may raise that it is not for
            return False
        return True

    # -------------------------------------------------------------------------------------------------- conversations

    @property
    def text(self) -> str:
        """The template itself; of a checkpoint that has several, all of them. Mistral's is code, and its tools are
        known."""
        if self._is_mistral:
            return "tools [TOOL_CALLS]"
        template = self._processor.chat_template
        return template if isinstance(template, str) else "\n".join(template.values())

    def inputs(
        self, conversation: Conversation, templating: Templating = AS_USUAL, tools: Tools | None = None
    ) -> Mapping[str, Any]:
        """The processor's output for one conversation, each clip in one window. Several threads may call it. Raises
        `BadRequest` for a conversation that the template or the processor refuses."""
        conversation = tuple(replace(turn, parts=_merged(turn.parts)) for turn in conversation)
        if not self._sanitizes and not self._is_mistral:
            self._refuse_control_tokens(conversation)
        self._refuse_control_tokens_in_calls(conversation, tools)
        options = self._options(templating)
        if tools is not None:
            options["tools"] = tools_for_template(tools)
        try:
            return self._inputs(conversation, options)
        except self._refusals as error:
            log.info("a conversation was refused", exc_info=True)
            reason = f"The model's chat template or processor refuses this: {_shortly(error)}"
            raise BadRequest(reason, "messages") from error

    def _options(self, templating: Templating) -> dict[str, Any]:
        """Of the template, in transformers' words. Mistral's takes none of them."""
        if self._is_mistral:
            refuse_templating(templating)
            return {}
        options = {**self._known(templating), **_template_options(templating)}
        return {**options, "sanitize_control_tokens": True} if self._sanitizes else options

    def _known(self, templating: Templating) -> dict[str, Any]:
        """The variables that the template reads. Others, a processor would take for options of its own."""
        variables: dict[str, Any] = json.loads(templating.variables or "{}")
        return {name: value for name, value in variables.items() if name in self._variables}

    def plain_inputs(self, text: str) -> Mapping[str, Any]:
        """The tokenizer's output for a text with no template around it. Several threads may call it. Raises
        `BadRequest` for a text that holds a control token, or no token at all."""
        if self._is_mistral:
            raise no_plain_text()
        self._refuse_control_tokens((Turn("user", (text,)),), "prompt")
        processor = self._own_processor()
        tokenizer = processor if self._is_tokenizer else processor.tokenizer
        inputs = dict(tokenizer(text, return_tensors="pt"))
        if not inputs["input_ids"].shape[1]:
            raise BadRequest("`prompt` has no text that the model's tokenizer knows.", "prompt")
        return inputs

    def _inputs(self, conversation: Conversation, options: Mapping[str, Any]) -> Mapping[str, Any]:
        processor = self._own_processor()
        messages = [self._message(turn) for turn in conversation]
        if self._is_mistral:
            wanted = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return dict(processor.apply_chat_template([messages], **wanted, **options))
        if self._is_tokenizer:
            return dict(processor.apply_chat_template(messages, return_dict=True, return_tensors="pt", **options))
        if self._audio_in_text:
            return self._inputs_of_text(processor, messages, conversation, options)
        # Padding would be the text's only; said flatly it reaches feature extractors and breaks some.
        wanted = {"return_tensors": "pt"}
        return dict(
            processor.apply_chat_template(
                [messages],
                tokenize=True,
                return_dict=True,
                processor_kwargs=wanted,
                **options,
            )
        )

    def _inputs_of_text(
        self, processor: Any, messages: list[Message], conversation: Conversation, options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        prompt = processor.apply_chat_template(messages, tokenize=False, **options)
        audio = [part.windows[0] for turn in conversation for part in turn.parts if isinstance(part, Clip)]
        wanted = {"audio_kwargs": {"sampling_rate": self.sampling_rate}} if audio else {}
        return dict(processor(text=[prompt], audio=audio or None, return_tensors="pt", **wanted))

    # ------------------------------------------------------------------------------------------------- transcriptions

    def takes_transcriptions(self, language: str | None) -> bool:
        """Whether the processor has a way to be asked for a transcription, and to be told the language, if any."""
        takes = self._transcription_options()
        return bool(takes) and (language is None or "language" in takes)

    def _transcription_options(self) -> Collection[str]:
        """The parameters of the processor's own request; none where it has none."""
        request = getattr(self._processor, "apply_transcription_request", None)
        return [] if request is None else inspect.signature(request).parameters

    def transcription_inputs(self, window: npt.NDArray[np.float32], language: str | None) -> Mapping[str, Any]:
        """As `inputs`, for one clip that is to be transcribed. Raises `BadRequest` for a language that the processor
        does not know."""
        takes = self._transcription_options()
        given = {"language": language, "sampling_rate": self.sampling_rate, "format": ["wav"], "model_id": ANY_NAME}
        options = {name: value for name, value in given.items() if name in takes and value is not None}
        try:
            return dict(self._own_processor().apply_transcription_request(window, **options))
        except self._refusals as error:
            log.info("a transcription was refused", exc_info=True)
            reason = f"The model's processor refuses this: {_shortly(error)}"
            raise BadRequest(reason, "file" if language is None else "language") from error

    def _own_processor(self) -> Any:
        """A processor for each thread: encoding text without control tokens switches a setting of the tokenizer."""
        if not hasattr(self._local, "processor"):
            self._local.processor = copy.deepcopy(self._processor)
        return self._local.processor

    def _message(self, turn: Turn) -> Message:
        has_audio = any(isinstance(part, Clip) for part in turn.parts)
        if self._audio_in_text:
            content: Any = "".join(part if isinstance(part, str) else str(self.audio_token) for part in turn.parts)
        elif has_audio or self._text_in_blocks:
            content = [self._block(part) for part in turn.parts]
        else:
            content = "".join(part for part in turn.parts if isinstance(part, str))
        return {"role": turn.role, "content": content, **history_fields(turn, short_ids=self._wants_short_ids)}

    @property
    def _wants_short_ids(self) -> bool:
        return "[TOOL_CALLS]" in self.text

    def _block(self, part: str | Clip) -> Block:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        (window,) = part.windows
        if self._is_mistral:
            return {"type": "audio", "base64": _wav_base64(window, self.sampling_rate or 0)}
        return {"type": "audio", "audio": window}

    def _refuse_control_tokens(self, conversation: Conversation, place: str = "messages") -> None:
        self._refuse_names_in((part for turn in conversation for part in turn.parts if isinstance(part, str)), place)

    def _refuse_control_tokens_in_calls(self, conversation: Conversation, tools: Tools | None) -> None:
        """What is sanitised are texts, and not the keys of objects."""
        if self._is_mistral:
            return
        self._refuse_names_in((text for turn in conversation for text in texts_beside(turn)), "messages")
        self._refuse_names_in((plain_json(tool.text) for tool in (tools.functions if tools else ())), "tools")

    def _refuse_names_in(self, texts: Iterable[str], place: str) -> None:
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        names += [self.audio_token] if self.audio_token else []
        if any(name in text for text in texts for name in names):
            raise BadRequest(
                f"`{place}` holds the text of one of the model's control tokens, which is not taken as text here. "
                "Leave it out.",
                place,
            )

    def backend(self) -> Tokenizer:
        """A tokenizer of the same vocabulary, for reading answers; nobody else changes its settings."""
        if self._is_mistral:
            from transformers.integrations.mistral import convert_tekken_tokenizer  # noqa: PLC0415 -- Voxtral's only

            tekken: Tokenizer = convert_tekken_tokenizer(str(self.tokenizer._tokenizer_path)).backend_tokenizer
            return tekken
        backend: Tokenizer | None = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"The checkpoint's tokenizer, {type(self.tokenizer).__name__}, is no fast one (tokenizer.json), which "
                "streaming needs. Convert it, or bring the model as a class of your own."
            )
        return copy.deepcopy(backend)


def _merged(parts: Iterable[str | Clip]) -> tuple[str | Clip, ...]:
    """Neighbouring texts as one, as templates write them: control tokens are looked for in each text alone, none may
    hide in the seam of two."""
    merged: list[str | Clip] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)


def _variables_of(template: str | Mapping[str, str]) -> frozenset[str]:
    """What a template reads, as transformers finds it; of all, where there are several."""
    templates = [template] if isinstance(template, str) else template.values()
    return frozenset(name for each in templates for name in _get_template_variables(each))


def _template_options(templating: Templating) -> dict[str, Any]:
    """In transformers' words."""
    return {
        "add_generation_prompt": templating.opens and not templating.continues,
        "continue_final_message": templating.continues,
    }


def _mistrals_refusals() -> tuple[type[Exception], ...]:
    from mistral_common.exceptions import MistralCommonException  # noqa: PLC0415 -- Voxtral's only

    return (MistralCommonException,)


def _sampling_rate(processor: Any) -> int | None:
    for name in ("_audio_processor", "feature_extractor", "audio_processor"):
        rate = getattr(getattr(processor, name, None), "sampling_rate", None)
        if rate:
            return int(rate)
    return None


def _wav_base64(window: npt.NDArray[np.float32], sampling_rate: int) -> str:
    """Mistral's tokenizer takes audio as a file. Floats lose nothing."""
    import soundfile  # noqa: PLC0415 -- Voxtral's only

    file = io.BytesIO()
    soundfile.write(file, window, sampling_rate, format="WAV", subtype="FLOAT")
    return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


def _shortly(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_ERROR_CHARS]
