"""What waits for a reader: news, all of them and first, and frames, of which the newest count."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Sender(Protocol):
    async def send_text(self, data: str) -> None: ...
    async def send_bytes(self, data: bytes) -> None: ...


class Outbox:
    """A reader that tells how many frames it took is sent at most `window` ahead of that.

    A browser takes in whatever it is sent, however slowly it draws: only the page knows how far it is."""

    def __init__(self, max_characters: int, max_frames: int, window: int) -> None:
        self.max_characters = max_characters
        self.window = window
        self._num_sent = 0
        self._num_taken: int | None = None  # as told; None: never
        self._news: deque[str] = deque()
        self._size = 0  # of the news, in characters
        self._frames: deque[bytes] = deque(maxlen=max_frames)
        self._wake = asyncio.Event()

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    @property
    def _is_full(self) -> bool:
        return self._num_taken is not None and self._num_sent - self._num_taken >= self.window

    def took(self, num_frames: int) -> None:
        """So many of the frames that were sent are done with."""
        self._num_taken = min(num_frames, self._num_sent)
        self._wake.set()

    def tell(self, news: dict[str, Any]) -> None:
        text = json.dumps(news)
        if self._size + len(text) <= self.max_characters:  # a reader that takes nothing is owed nothing
            self._news.append(text)
            self._size += len(text)
        self._wake.set()

    def show(self, frames: list[bytes]) -> int:
        """Returns how many of the oldest had to make room."""
        dropped = max(0, len(self._frames) + len(frames) - (self._frames.maxlen or 0))
        if self._is_full:
            dropped = len(self._frames)
            self._frames.clear()
        self._frames.extend(frames)
        self._wake.set()
        return dropped

    def forget_frames(self) -> None:
        self._frames.clear()

    async def send_to(self, sender: Sender) -> None:
        """Send what there is; returns when nothing is left, or the reader has enough."""
        while self._news or (self._frames and not self._is_full):
            if self._news:
                text = self._news.popleft()
                self._size -= len(text)
                await sender.send_text(text)
            else:
                self._num_sent += 1
                await sender.send_bytes(self._frames.popleft())

    async def wait(self) -> None:
        """Until there is something to send, or `wake` is called."""
        await self._wake.wait()
        self._wake.clear()

    def wake(self) -> None:
        self._wake.set()
