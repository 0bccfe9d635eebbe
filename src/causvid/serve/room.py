"""Room on the device and in memory: who may come in, and who makes room for whom.

Time. One more stream is let in while those that play keep up and one more fits by what a chunk has cost lately. When
the device becomes slower under them, all slow down alike, because whoever has used it least is next, and all are told.
When they fall too far behind for too long, the newest is paused and told why, until the others keep up.

Memory. All that sessions keep counts towards one budget. What is missed least goes first: caches of streams that pause,
moments for going back quickly, and then sessions that nobody watches, which go to disk.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from causvid.bundle import Model
from causvid.errors import UserError
from causvid.serve.lanes import Stream
from causvid.serve.meters import Meters
from causvid.serve.shelf import Shelf

log = logging.getLogger(__name__)

KEEPS_UP = 0.9  # of real time: below it a stream stutters
GIVE_BACK_EVERY = 5.0  # seconds
RESERVE = 0.9  # share of the device that is promised; the rest is for compressing and sending pictures


class Full(UserError):
    """Nobody's mistake: the device has no room. Told with what would help."""


@dataclass(frozen=True)
class RoomConfig:
    max_sessions: int = 64  # open at a time, playing or not
    max_playing: int | None = None  # None: as many as the device shows in real time, as measured
    pause_below: float = 0.75  # of real time on average, at which the newest stream is paused ...
    pause_every: float = 5.0  # ... after so many seconds, and then again
    session_bytes: int = 1 << 30  # all sessions together, in memory
    shelf_bytes: int = 4 << 30  # all sessions together, on disk
    moment_bytes: int = 32 << 20  # per stream, for going back quickly
    park_after: float = 120.0  # seconds without playing
    park_unwatched_after: float = 10.0
    forget_after: float = 1800.0  # seconds without a viewer
    evict_after: float = 60.0  # seconds without a viewer after which a session makes room for a new one
    max_minutes: float = 30.0  # of one stream


@dataclass
class Room:
    model: Model
    cfg: RoomConfig
    meters: Meters
    remove: Callable[[Stream], None]
    streams: dict[str, Stream] = field(default_factory=dict)
    nbytes: int = 0  # held by sessions, when last counted
    draining: bool = False
    _behind_since: float | None = None
    _freed: bool = False  # since memory was last given back to the system
    _gave_back: float = 0.0

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.cfg.shelf_bytes)

    # ---- time --------------------------------------------------------------------------------------------------------

    def capacity(self) -> int:
        """How many streams can play in real time together."""
        if self.cfg.max_playing is not None:
            return self.cfg.max_playing
        speeds = self._speeds()
        if speeds and self.is_behind:
            return max(1, int(sum(speeds)))
        seconds = self.meters.chunk_seconds(len(self.model.cfg.rollout.sigmas))
        return max(1, int(RESERVE * self._chunk_seconds / seconds)) if seconds else 1

    def num_playing(self) -> int:
        return sum(stream.active for stream in list(self.streams.values()))

    @property
    def is_behind(self) -> bool:
        """Whether the streams that play do not keep up with real time."""
        speeds = self._speeds()
        return bool(speeds) and sum(speeds) / len(speeds) < KEEPS_UP

    def check_playing(self, stream: Stream) -> None:
        """Raise Full unless a stream may begin to play."""
        if self.draining:
            raise Full("this server is shutting down; save your take, and play it on when it is back")
        if stream.active:
            return
        room, playing = self.capacity(), self.num_playing()
        if playing >= room:
            fps = self.model.cfg.fps
            raise Full(
                f"this device is full: it shows {room} stream{'s' * (room != 1)} at {fps:g} frames a second, and "
                f"{playing} {'are' if playing != 1 else 'is'} playing; try again when one has paused"
            )
        session = stream.session
        if session.is_parked and not self.make_room(session.cache_bytes):
            raise Full(self._no_memory())

    def _tell_speeds(self, now: float) -> None:
        """Tell streams that fall behind, and pause the newest if that lasts."""
        playing = sorted((s for s in self.streams.values() if s.playing), key=lambda stream: stream.began_to_play)
        for stream in playing:
            slow = stream.speed < KEEPS_UP
            if slow and not stream.was_told_slow:
                share = f"{100 * stream.speed:.0f} % of real time"
                stream.tell("slow", f"{len(playing)} streams share this device: yours reaches {share}")
            stream.was_told_slow = slow
        speeds = self._speeds()
        if self.cfg.max_playing is not None or len(speeds) < 2 or sum(speeds) / len(speeds) >= self.cfg.pause_below:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > self.cfg.pause_every:
            self._behind_since = now
            playing[-1].playing = False
            self.meters.count("paused_for_others_total")
            room = self.capacity()
            playing[-1].tell(
                "full",
                f"this device has become too slow for {len(playing)} streams, it shows {room} in real time; "
                "yours is the newest and is paused; play on when another one has paused",
            )

    def _speeds(self) -> list[float]:
        return [stream.speed for stream in list(self.streams.values()) if stream.playing]

    # ---- memory ------------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise Full unless there is room for one more session."""
        if self.draining:
            raise Full("this server is shutting down and opens no new sessions; try again when it is back")
        if len(self.streams) >= self.cfg.max_sessions and not self._evict():
            raise Full(
                f"this server is full: {len(self.streams)} sessions are open, which is as many as it holds; "
                "try again in a few minutes"
            )
        if not self.make_room(0):
            raise Full(self._no_memory())

    def make_room(self, wanted: int) -> bool:
        """Free what is missed least until `wanted` bytes more fit; of a kind, what was not touched for longest."""
        oldest = sorted(self.streams.values(), key=lambda stream: stream.touched)
        idle = [stream for stream in oldest if not stream.active and stream.work is None]
        for free, streams in (
            (self._park, [stream for stream in idle if not stream.session.is_parked]),
            (self._drop_moments, oldest),
            (self.put_away, [stream for stream in idle if not stream.watched]),
        ):
            for stream in streams:
                if self._count() + wanted <= self.cfg.session_bytes:
                    return True
                free(stream)
        return self._count() + wanted <= self.cfg.session_bytes

    def put_away(self, stream: Stream) -> None:
        """Out of memory, onto the shelf: if anything was made, it can be gone on with under the same name."""
        if stream.session.num_chunks:
            try:
                self.shelf.put(stream.id, stream.session.take())
                self.meters.count("shelved_total")
            except (OSError, UserError):
                log.exception("there is no place on disk for a session, it ends")
        self.remove(stream)

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        self.streams.pop(stream.id, None)
        stream.session.park()  # whoever still holds the stream does not hold its cache
        self._freed = True

    def _evict(self) -> bool:
        """Put away the session that nobody has watched for longest, if that is long enough."""
        now = time.monotonic()
        left = [s for s in self.streams.values() if not s.watched and now - s.touched > self.cfg.evict_after]
        if left:
            self.put_away(min(left, key=lambda stream: stream.touched))
        return bool(left)

    def _park(self, stream: Stream) -> None:
        stream.session.park()
        self._freed = True
        self.meters.count("parked_total")
        stream.tell("parked")

    def _drop_moments(self, stream: Stream) -> None:
        stream.session.history.moments.clear()
        self._freed = True

    def _count(self) -> int:
        self.nbytes = sum(stream.session.nbytes for stream in self.streams.values())
        return self.nbytes

    def _no_memory(self) -> str:
        most = f"{self.cfg.session_bytes / 2**20:,.0f} MB"
        return f"this server is full: the sessions that are open take all of its {most}; try again in a few minutes"

    # ---- every now and then ------------------------------------------------------------------------------------------

    def take_care(self, now: float) -> None:
        """Park what idles, end what nobody wants, stop what has become too long, and keep to the budgets."""
        cfg = self.cfg
        for stream in list(self.streams.values()):
            session, idle = stream.session, now - stream.touched
            limit = cfg.park_after if stream.watched else min(cfg.park_after, cfg.park_unwatched_after)
            if stream.playing and not stream.watched:
                stream.playing, stream.reel = False, None
            if stream.playing and session.num_chunks * self._chunk_seconds / 60 >= cfg.max_minutes:
                stream.playing = False
                stream.tell("limit", f"a stream lasts at most {cfg.max_minutes:g} minutes here; save it, or rewind")
            if not stream.active and stream.work is None and idle > limit and not session.is_parked:
                self._park(stream)
            # a session that made nothing is not worth coming back to
            if not stream.watched and idle > (cfg.forget_after if session.num_chunks else limit):
                self.remove(stream)
        self.shelf.forget(cfg.forget_after)
        self._tell_speeds(now)
        playing = [stream for stream in self.streams.values() if stream.playing]
        if not self.make_room(0) and playing:
            largest = max(playing, key=lambda stream: stream.session.nbytes)
            largest.playing = False
            largest.tell("limit", f"{self._no_memory()}; your stream is the largest, save it and begin a new one")
        if self._freed and now - self._gave_back > GIVE_BACK_EVERY:
            self._freed, self._gave_back = False, now
            give_memory_back()

    @property
    def _chunk_seconds(self) -> float:
        cfg = self.model.cfg
        return cfg.rollout.chunk * self.model.codec.time_factor / cfg.fps


def give_memory_back() -> None:
    """What was freed goes back to the system. glibc keeps blocks of up to 32 MB otherwise, in pieces between others."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
