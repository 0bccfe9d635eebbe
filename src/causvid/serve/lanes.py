"""What waits for the device: streams that people watch, and jobs that run to an end. Each is a lane of passes in order.

Lanes live in the engine's thread; other threads reach them through `Engine` only.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from causvid.errors import UserError
from causvid.rollout import Pass
from causvid.session import Chunk, Session
from causvid.take import Shown

# Asks for passes and is sent their results; None gives way to the other lanes, and nothing is sent for it.
Work = Generator[Pass | None, Any, Any]
Command = Callable[[Session], Any]  # what it returns is the answer, unless it is Work: then what that returns
Listener = Callable[["Stream", str, Any], None]  # (stream, kind of news, what)


@dataclass
class Done:
    """A future that other threads wait for, and its work."""

    future: Future
    command: Command


@dataclass(eq=False)
class Lane:
    weight: float = 1.0  # share of the device, relative to others
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    used: float = 0.0  # weighted seconds of the device: whoever has used least is next
    work: Work | None = None
    wanted: Pass | None = None
    inexact: bool = False  # whether a pass of this piece of work was computed with others, and rounded otherwise

    def next_work(self, now: float) -> Work | None:
        """The next piece of work, if there is one to do now."""
        raise NotImplementedError

    def finish(self, result: Any) -> None:
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        raise NotImplementedError

    def next_time(self, now: float) -> float | None:
        """When to look again, if nothing else happens before."""
        return None


@dataclass(eq=False)
class Stream(Lane):
    """A session and the ones who watch it."""

    session: Session = None  # type: ignore[assignment]
    fps: float = 12.0
    playing: bool = False
    pace: float | None = 1.0  # times real time; None is as fast as it goes
    listener: Listener | None = None
    num_unsent: Callable[[], int] = lambda: 0  # frames that its reader has not taken yet
    max_unsent: int = 36
    lead: float = 0.3  # seconds of the clock before the last shown frame, at which the next chunk is begun
    born: float = field(default_factory=time.monotonic)
    touched: float = field(default_factory=time.monotonic)
    epoch: int = 0  # counts what makes chunks from before obsolete: rewinds, replays
    shown_until: float = 0.0  # when the frames made so far have been shown
    asked_to_play: float | None = None
    began_to_play: float = 0.0
    chunk_latency: float = 0.2
    speed: float = 1.0  # share of real time that it reaches, or of its pace if that is slower
    was_told_slow: bool = False
    commands: deque[Done] = field(default_factory=deque)
    inbox: deque[np.ndarray] = field(default_factory=deque)  # frames to restyle, from other threads
    source_ends: bool = False  # it is a file: what cannot fill a chunk ends it, and no frames join it
    reel: Iterator[Shown | None] | None = None  # a replay that is being shown
    saved: bool = False  # its page has fetched it since the server began to leave
    _command: Done | None = None
    _began: float = 0.0

    def tell(self, kind: str, what: Any = None) -> None:
        if self.listener is not None:
            self.listener(self, kind, what)

    @property
    def watched(self) -> bool:
        return self.listener is not None

    @property
    def unsaved(self) -> bool:
        """Somebody would lose something if the server went now."""
        return self.watched and not self.saved and self.session.num_chunks > 0

    @property
    def active(self) -> bool:
        return self.playing or self.reel is not None

    def begin_to_play(self) -> None:
        self.playing, self.reel = True, None
        self.speed, self.was_told_slow = 1.0, False
        self.touched = self.asked_to_play = self.began_to_play = self.shown_until = time.monotonic()

    # ---- as a lane -------------------------------------------------------------------------------------------------

    def next_work(self, now: float) -> Work | None:
        while self.inbox:
            frame = self.inbox.popleft()
            if self.session.restyles and not self.source_ends:
                self.session.push(frame)
        self._began = now
        if self.commands:
            self._command = self.commands.popleft()
            return self._run_command(self._command)
        if not self.active or self.next_time(now) != now:
            return None
        if self.reel is not None:
            return self._show_next(self.reel)
        if self.source_ends and not self.session.can_step:
            self.source_ends = False
            self.session.restyle(None)
            self.tell("source_ended")
        return self.session.chunk_passes() if self.session.can_step else None

    def next_time(self, now: float) -> float | None:
        if self.commands:
            return now
        if not self.active or self.num_unsent() > self.max_unsent:
            return None
        if self.pace is None:
            return now
        lead = self.lead + (2 * self.chunk_latency if self.session.will_recache else 0.0)
        return max(now, self.shown_until - lead)

    def finish(self, result: Any) -> None:
        now = time.monotonic()
        if self._command is not None:
            done, self._command = self._command, None
            settle(done.future, result)
        elif isinstance(result, Chunk | Shown):
            self._deliver(result, now)
        elif self.reel is not None:
            self.reel = None
            self.tell("replayed")

    def fail(self, error: Exception) -> None:
        if self._command is not None:
            done, self._command = self._command, None
            settle(done.future, error)
            return
        self.playing, self.reel = False, None
        self.tell("failed", error)

    def _run_command(self, done: Done) -> Work:
        result = done.command(self.session)
        if isinstance(result, Generator):
            result = yield from result
        return result

    def _show_next(self, reel: Iterator[Shown | None]) -> Work:
        yield None
        for shown in reel:
            if shown is not None or self.reel is not reel:
                return shown
            yield None
        return None

    def _deliver(self, chunk: Chunk | Shown, now: float) -> None:
        took, length = now - self._began, len(chunk.frames) / self.fps
        self.chunk_latency += 0.2 * (took - self.chunk_latency)
        # a chunk is begun when it is due, so what it takes longer than it lasts is the device's lack of time
        self.speed += 0.5 * (min(1.0, length / min(1.0, self.pace or 1.0) / took) - self.speed)
        seconds = length / (self.pace or 1.0)
        late = now - self.shown_until
        self.shown_until = max(self.shown_until, now) + seconds
        # begun late enough that a new prompt is seen soon, early enough that the picture does not stop
        self.lead = min(max(0.08, 1.4 * self.chunk_latency + 0.03), seconds)
        waited = None
        if self.asked_to_play is not None:
            waited, self.asked_to_play = now - self.asked_to_play, None
            late = 0.0
        self.touched = now
        self.tell("chunk", (chunk, {"waited": waited, "late": max(0.0, late)}))


@dataclass(eq=False)
class Job(Lane):
    """Work with an end and a result, in the time that streams leave."""

    weight: float = 0.25
    what: str = "job"
    make: Callable[[Job], Work] = None  # type: ignore[assignment]
    notes: list[str] = field(default_factory=list)  # what there is to know about how its prompts are read
    state: str = "waiting"  # waiting, running, done, failed, cancelled
    progress: float = 0.0
    error: str | None = None
    result: Any = None
    born: float = field(default_factory=time.monotonic)
    on_end: Callable[[Job], None] | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def next_work(self, now: float) -> Work | None:
        if self.state != "waiting":
            return None
        self.state = "running"
        return self.make(self)

    def finish(self, result: Any) -> None:
        self.end("done", result)

    def fail(self, error: Exception) -> None:
        self.error = str(error)
        self.end("failed", None)

    def end(self, state: str, result: Any) -> None:
        self.state, self.result = state, result
        if state == "done":
            self.progress = 1.0
        if self.on_end is not None:
            self.on_end(self)


def settle(future: Future, result: Any) -> None:
    """Whoever waited may have gone away."""
    if isinstance(result, UserError):
        # where it was raised says nothing, and its frames would hold the session until a collection of garbage
        result = result.with_traceback(None)
    if future.set_running_or_notify_cancel():
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
