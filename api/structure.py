"""What the answer must look like: OpenAI's `response_format`, and vLLM's ways to ask the same, to a `Structure`. Pure.

Whether a schema, an expression or a grammar can be followed is the engine's to say; it names the `place` given here.
"""

from __future__ import annotations

from collections.abc import Iterator

from api.schema import SchemaFormat, StructuredOutputs, StructureFields
from config import Settings
from errors import BadRequest
from wire import Structure


def check_structure(fields: StructureFields, settings: Settings) -> None:
    """Refuse more than one structure, and one that is over a limit. Raises `BadRequest`."""
    check_structures(asked_structures(fields), settings)


def check_structures(asked: list[Structure], settings: Settings) -> None:
    """The same, of structures that stand anywhere. Raises `BadRequest`."""
    if len(asked) > 1:
        first, place = asked[0].place, asked[1].place
        raise BadRequest(f"`{place}`: an answer follows one structure only, and `{first}` asks for one, too.", place)
    for structure in asked:
        _check_size(structure, settings)


def asked_structures(fields: StructureFields) -> list[Structure]:
    """Every structure that the request asks for."""
    return list(_asked(fields))


def build_structure(fields: StructureFields) -> Structure | None:
    """The structure of a checked request, if it asks for one."""
    return next(_asked(fields), None)


def _asked(fields: StructureFields) -> Iterator[Structure]:
    if isinstance(fields.response_format, SchemaFormat):
        yield Structure("json", "response_format.json_schema.schema", fields.response_format.json_schema.schema_)
    elif fields.response_format and fields.response_format.type == "json_object":
        yield Structure("json_object", "response_format")
    if fields.structured_outputs:
        yield from outputs_of(fields.structured_outputs)
    yield from _each("guided_", fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar)


def outputs_of(outputs: StructuredOutputs) -> Iterator[Structure]:
    """What vLLM's object asks for."""
    if outputs.json_object:
        yield Structure("json_object", "structured_outputs.json_object")
    yield from _each("structured_outputs.", outputs.json_, outputs.regex, outputs.choice, outputs.grammar)


def _each(
    prefix: str, json: str | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[Structure]:
    """Those of vLLM's four that are given, as the fields whose names begin with `prefix`."""
    if json is not None:
        yield Structure("json", f"{prefix}json", json)
    if regex is not None:
        yield Structure("regex", f"{prefix}regex", regex)
    if choice is not None:
        yield Structure("choice", f"{prefix}choice", choices=tuple(choice))
    if grammar is not None:
        yield Structure("grammar", f"{prefix}grammar", grammar)


def _check_size(structure: Structure, settings: Settings) -> None:
    place, limit = structure.place, settings.max_structure_chars
    if len(structure.choices) > settings.max_labels:
        raise BadRequest(f"`{place}` has more than the limit of {settings.max_labels} strings.", place)
    if len(structure.text) + sum(map(len, structure.choices)) > limit:
        raise BadRequest(f"`{place}` is longer than the limit of {limit} characters.", place)
