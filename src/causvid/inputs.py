"""What was asked of a stream and given to it, and is no part of it yet: changes, chunks, frames to restyle."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from causvid.errors import UserError
from causvid.shapes import Latents
from causvid.situation import Embed, Situation
from causvid.sources import MotionStrength, Source
from causvid.take import Event, Kind

MAX_WAITING = 200  # changes that one chunk may put in force (ours: a person makes a few)


@dataclass(frozen=True)
class Next:
    """What the next chunk is; if it is given, which; if it is restyled, from what and how strongly."""

    kind: Kind
    latents: Latents | None = None
    strength: float | None = None
    of: str | None = None  # what the source shows, where it is edited
    motion: float | None = None  # of the source, smoothed


@dataclass
class Inputs:
    waiting: deque[Event] = field(default_factory=deque)  # asked for, in force from the next chunk on
    given: deque[Latents] = field(default_factory=deque)  # chunks that need not be made
    scripted: deque[Next] = field(default_factory=deque)  # chunks of a take made again
    source: Source | None = None

    def copy(self) -> Inputs:
        """For a fork. Frames that come in belong to one session."""
        return Inputs(deque(self.waiting), deque(self.given), deque(self.scripted))

    def ask(self, event: Event) -> None:
        if len(self.waiting) >= MAX_WAITING:
            raise UserError(f"{MAX_WAITING} changes wait for the next chunk already; let it be made first")
        self.waiting.append(event)

    @property
    def nbytes(self) -> int:
        return sum(latents.nbytes for latents in self.given) + (0 if self.source is None else self.source.nbytes)

    @property
    def prompt(self) -> str | None:
        """The newest one that waits."""
        asked = [event.value["text"] for event in list(self.waiting) if event.kind == "prompt"]
        return asked[-1] if asked else None

    def after(self, now: Situation, embed: Embed) -> Situation:
        """The situation once all that waits is in force, but for its words."""
        for event in list(self.waiting):
            if event.kind in ("settings", "source"):
                now = now.after(event, embed)
        return now

    @property
    def will_recache(self) -> bool:
        return any(e.kind == "prompt" and e.value.get("mode") == "recache" for e in list(self.waiting))

    def num_missing_frames(self, num_latents: int, shot_begins: bool) -> int:
        if self.source is None or self.given or self.scripted:
            return 0
        return max(0, self.source.needed(num_latents, shot_begins) - len(self.source))

    def take(self, now: Situation, num_latents: int, shot_begins: bool) -> Next:
        """Take what the next chunk needs."""
        if self.given:
            return Next("given", self.given.popleft(), motion=now.motion)
        if self.scripted:
            return replace(self.scripted.popleft(), motion=now.motion)
        if self.source is None:
            return Next("made", motion=now.motion)
        latents, motion = self.source.take(num_latents, shot_begins)
        if isinstance(now.strength, MotionStrength):
            strength, smooth = now.strength.next(motion, now.motion)
            return Next("restyled", latents, strength, now.of, smooth)
        return Next("restyled", latents, now.strength, now.of, now.motion)
