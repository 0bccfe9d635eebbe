"""Prompts that tell what comes later, told to a stream when the time comes.

A stream has no end that "later" could be measured from. So a prompt that tells of several things one after the other is
taken apart (`Understood.story`, by the text encoder that knows its language), and every part is asked for once the one
before has had its time. What was told is an event like any other: it is saved, shown and taken back with the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from causvid.text import clean_prompt

if TYPE_CHECKING:
    from causvid.history import History

PART = 7  # latent frames that a part lasts (ours): a training clip of 21 holds three
BLEND = 6  # latent frames in which a part takes over (ours): the world takes a second or more for a change


def read_story(value: dict[str, Any]) -> tuple[str, ...]:
    """The parts that the prompt of an event has; none where it is told as it is."""
    return tuple(clean_prompt(part) for part in value.get("story", ()))


def with_story(value: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    return value | {"story": [*parts]} if parts else value


def next_part(history: History, size: int) -> dict[str, Any] | None:
    """What to ask for with the next chunk, of `size` latent frames, if a story has come to its next part."""
    told = 0
    for event in reversed(history.events):
        if event.kind == "prompt" and event.value.get("told"):
            told += 1
        elif event.kind in ("start", "prompt"):
            break
    else:
        return None
    parts = event.value.get("story", ())
    if told + 1 >= len(parts):
        return None
    notes = (record.note for record in history.records[event.chunk :])
    made = sum(note.num_latents for note in notes if note.kind != "given")
    if made + size / 2 < PART * (told + 1):
        return None
    return {"text": parts[told + 1], "mode": "keep", "blend": max(1, BLEND // size), "told": True}
