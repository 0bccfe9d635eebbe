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
    def __init__(self, max_characters: int, max_frames: int) -> None:
        self.max_characters = max_characters
        self._news: deque[str] = deque()
        self._size = 0  # of the news, in characters
        self._frames: deque[bytes] = deque(maxlen=max_frames)
        self._wake = asyncio.Event()

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    def tell(self, news: dict[str, Any]) -> None:
        text = json.dumps(news)
        if self._size + len(text) <= self.max_characters:  # a reader that takes nothing is owed nothing
            self._news.append(text)
            self._size += len(text)
        self._wake.set()

    def show(self, frames: list[bytes]) -> int:
        """Returns how many of the oldest had to make room."""
        dropped = max(0, len(self._frames) + len(frames) - (self._frames.maxlen or 0))
        self._frames.extend(frames)
        self._wake.set()
        return dropped

    def forget_frames(self) -> None:
        self._frames.clear()

    async def send_to(self, sender: Sender) -> None:
        """Send what there is; returns when nothing is left."""
        while self._news or self._frames:
            if self._news:
                text = self._news.popleft()
                self._size -= len(text)
                await sender.send_text(text)
            else:
                await sender.send_bytes(self._frames.popleft())

    async def wait(self) -> None:
        """Until there is something to send, or `wake` is called."""
        await self._wake.wait()
        self._wake.clear()

    def wake(self) -> None:
        self._wake.set()
