"""Text encoders: prompts in, rows of a fixed width out; and the check that every prompt from outside passes first."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from causvid.errors import UserError
from causvid.shapes import Text
from causvid.view_noise import Course

MAX_PARTS = 24  # of a story (ours): a minute at Vista's pace
MAX_PROMPT_CHARACTERS = 8_000  # ours: far above the 512 tokens that umT5 reads, far below what stalls a server


@dataclass(frozen=True)
class Understood:
    """How a prompt is read: in which words, and what of it is lost."""

    text: str  # what the encoder is given
    read_as: dict[str, str] = field(
        default_factory=dict
    )  # words of the prompt -> words that were taught; '' is left out
    unknown: dict[str, tuple[str, ...]] = field(default_factory=dict)  # words that say nothing -> words spelt like them
    num_lost: int = 0  # words at the end that do not fit
    instead: tuple[str, ...] = ()  # what can be shown, where words are unknown and nothing that can be is named
    story: tuple[str, ...] = ()  # what to tell a stream one after the other, where a prompt says what comes later

    @property
    def notes(self) -> list[str]:
        """What a user should know about it, in sentences."""
        lost = [f"the last {self.num_lost} words do not fit; shorten the prompt"] if self.num_lost else []
        return self._about_words() + lost

    @property
    def streamed_notes(self) -> list[str]:
        """The same where it is told to a stream, part by part if it has parts."""
        parts = ", then ".join(f"'{part}'" for part in self.story)
        return [*self._about_words(), f"told one after the other: {parts}"] if parts else self.notes

    def _about_words(self) -> list[str]:
        out = [f"'{word}' is read as '{known}'" if known else f"'{word}' is left out" for word, known in
               self.read_as.items()]  # fmt: skip
        for word, near in self.unknown.items():
            hint = f"; near it: {', '.join(near)}" if near else ""
            out.append(f"the word '{word[:40]}' is not known{hint}")
        if self.instead:
            out.append(f"nothing is named that this model can show: {', '.join(self.instead)}")
        return out


@runtime_checkable
class TextEncoder(Protocol):
    """What the rest of the package asks of a text encoder."""

    width: int  # size of one row, D_text
    length: int  # rows per prompt, Y

    def __call__(self, prompts: list[str]) -> Text:
        """One [Y, D_text] block per prompt; what the rows past a prompt's end hold is the encoder's own convention."""
        ...

    def understand(self, prompt: str) -> Understood:
        """A prompt of a person, checked already, in words that the encoder knows. Whoever encodes prompts from outside
        asks this first (`Model.embed` does); training encodes captions as they are."""
        ...


@runtime_checkable
class Settler(Protocol):
    """An encoder that can name what prompts leave open."""

    def settle(self, parts: Sequence[str], seed: int, before: str) -> tuple[str, ...]:
        """Of prompts that are told one after the other, in words it knows, after one that was told `before`."""
        ...


@runtime_checkable
class Navigator(Protocol):
    """An encoder that can tell from prompts how the view moves."""

    def course(self, seed: int, height: int) -> Course:
        """In pictures of this many rows of latents, before anything is said."""
        ...


def clean_prompt(text: str | bytes, *, allow_empty: bool = False, max_characters: int = MAX_PROMPT_CHARACTERS) -> str:
    """A prompt from outside as proper text without surrounding space; a UserError says what is wrong with it."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"the prompt is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    text = text.strip()
    if not text and not allow_empty:
        raise UserError("the prompt is empty; describe the video in a sentence.")
    if len(text) > max_characters:
        raise UserError(f"the prompt has {len(text):,} characters; shorten it to at most {max_characters:,}.")
    for position, character in enumerate(text):
        kind = unicodedata.category(character)
        if kind == "Cs":  # how Python hands over command-line bytes that were not UTF-8
            raise UserError(f"the prompt is not UTF-8 text (character {position}); type or save it as UTF-8.")
        if kind == "Cc" and character not in "\t\n\r":
            raise UserError(f"the prompt has a control character (U+{ord(character):04X}, at {position}); remove it.")
    return text
