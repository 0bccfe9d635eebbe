"""What one client may send, and how often."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from causvid.errors import UserError
from causvid.session import StreamOptions
from causvid.situation import read_of, read_options, read_strength
from causvid.take import Take


@dataclass(frozen=True)
class Limits:
    prompt_characters: int = 500
    steps: int = 64  # per chunk
    window: int = 256  # latent frames
    text_bytes: int = 16_384
    picture_bytes: int = 8 << 20
    video_bytes: int = 64 << 20
    video_seconds: float = 30.0
    take_bytes: int = 256 << 20
    messages_per_second: float = 60.0  # pictures of a camera included
    burst: int = 240
    mistakes: int = 50  # wrong messages after which a socket is closed
    news_characters: int = 2 << 20  # that wait for a reader
    jpeg_quality: int = 88
    source_chunks: int = 3  # of frames that may wait to be restyled

    def check_prompt(self, text: Any) -> str:
        if not isinstance(text, str):
            raise UserError("a prompt is text")
        if len(text) > self.prompt_characters:
            raise UserError(f"a prompt has at most {self.prompt_characters} characters here; shorten it")
        return text

    def check_source(self, strength: Any, of: Any) -> tuple[Any, str | None]:
        """How to restyle, and what the source is said to show."""
        read_strength(strength)
        shown = read_of(of)
        if shown is not None:
            self.check_prompt(of)
        return strength, shown

    def read_options(self, value: dict[str, Any]) -> StreamOptions:
        """Options that one client may ask of a device that others use, too."""
        options = read_options(value)
        for name, most in (("steps", self.steps), ("window", self.window)):
            if (value.get(name) or 0) > most:
                raise UserError(f"{name} is at most {most} here, got {value[name]}")
        return options

    def check_take(self, take: Take) -> None:
        """Refuse a take that asks for more than a client may."""
        start, *asked = take.events
        self.read_options(start.value["options"])
        for event in asked:
            if event.kind == "settings":
                self.read_options({name: value for name, value in event.value.items() if name != "seed"})


class Bucket:
    """Lets through so many messages a second, and a burst of them."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._last = float(burst), time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._last) * self.rate)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def is_empty(self) -> bool:
        return self._left <= 0
