"""`client.py models`: what is served, and what audio it takes."""

from __future__ import annotations

import argparse
import json

from cli.server import Json, connect


def models(options: argparse.Namespace) -> int:
    cards = [model.to_dict() for model in connect(options).models.list().data]
    if options.json:
        print(json.dumps(cards, indent=2, ensure_ascii=False))
    else:
        for card in cards:
            print(line(card))
    return 0


def line(card: Json) -> str:
    """Name, what it hears at once, and formats, between tabs; the name alone, where the server tells no more."""
    audio = card.get("audio")
    if not isinstance(audio, dict):
        return str(card["id"])
    window = audio.get("max_seconds_per_window")
    heard = f"{window:g} s at once" if window else "any length at once"
    return "\t".join((str(card["id"]), heard, " ".join(audio.get("formats") or ())))
