"""Prompts that tell what comes later, told to a stream when the time comes.

A stream has no end that "later" could be measured from. So a prompt that tells of several things one after the other is
taken apart (`Understood.story`, by the text encoder that knows its language), and every part is asked for once the one
before has had its time. What was told is an event like any other: it is saved, shown and taken back with the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from causvid.text import MAX_PARTS, clean_prompt

if TYPE_CHECKING:
    from causvid.history import History
    from causvid.take import Event

PART = 7  # latent frames that a part lasts (ours): a training clip of 21 holds three
BLEND = 6  # latent frames in which a part takes over (ours): the world takes a second or more for a change


def is_story(parts: Any) -> bool:
    """Whether what a file says are the parts of a story can be; none at all where stories are not told in parts."""
    return isinstance(parts, list) and len(parts) <= MAX_PARTS and all(isinstance(part, str) for part in parts)


def first_words(value: dict[str, Any]) -> str:
    """What the prompt of an event begins with: all of it, or the first part of the story that it tells."""
    parts = value.get("story")
    if not parts:
        return value["text"]
    clean_prompt(value["text"])  # it is shown, even if no network reads it
    return parts[0]


def last_asked(events: Sequence[Event]) -> tuple[Event, int]:
    """The last prompt that somebody asked for, and how many parts of its story have been told since."""
    told = 0
    for event in reversed(events):
        if event.value.get("told"):
            told += 1
        elif event.kind in ("start", "prompt"):
            return event, told
    raise ValueError("a stream begins with a start")


def next_part(history: History, words_left: int, size: int) -> dict[str, Any] | None:
    """What to ask for with the next chunk, of `size` latent frames, if a story has come to its next part.

    `words_left`: chunks until the prompt before has taken over."""
    event, told = last_asked(history.events)
    parts, arrived = event.value.get("story", ()), event.chunk + max(0, event.value.get("blend", 0) - 1)
    if told + 1 >= len(parts) or words_left:
        return None
    notes = (record.note for record in history.records[arrived:])
    made = sum(note.num_latents for note in notes if note.kind != "given")
    if not made or made + size / 2 < PART * (told + 1):
        return None
    return {"text": parts[told + 1], "mode": "keep", "blend": max(1, BLEND // size), "told": True}
