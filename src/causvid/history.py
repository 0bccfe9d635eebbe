"""The past of a stream: what was asked, what was made, and how to have the cache of any moment again.

A cache is never stored in a file. It is a function of the chunks that were committed since it was last begun afresh, in
their order and under their words; committing them again gives the same bits, at one pass a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from causvid.models.dit import TextMemory
from causvid.rollout import Passes, Rollout, RolloutState
from causvid.shapes import Latents, Text
from causvid.situation import Situation
from causvid.take import ChunkNote, Cut, Event

MOMENT_EVERY = 4  # chunks


@dataclass(frozen=True)
class Record:
    """A chunk that was made, and all that is needed to make it again."""

    note: ChunkNote
    latents: Latents
    after: Situation
    source: Latents | None = None

    def nbytes_after(self, before: Record | None) -> int:
        """Memory that this record takes beside the one before it: they share the words of a prompt that lasts."""
        known = () if before is None else (before.after.words.rows, before.after.words.goal)
        words = {id(rows): rows for rows in (self.after.words.rows, self.after.words.goal)}
        new = [rows for rows in words.values() if not any(rows is other for other in known)]
        tensors = [self.latents, *new] if self.source is None else [self.latents, self.source, *new]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Moment:
    """The state after `num_chunks` chunks, kept so that going back is quick."""

    num_chunks: int
    rollout: RolloutState
    decoder: list[Any]

    @property
    def nbytes(self) -> int:
        cache = self.rollout.cache
        held = [cache["keys"], cache["values"], cache["sink_keys"], *self.decoder]
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class Commit:
    """A chunk to commit again."""

    index: int
    latents: Latents
    rows: Text
    travel: Tensor | None

    @classmethod
    def of(cls, index: int, record: Record, rows: Text | None = None) -> Commit:
        """Under its own words, or others."""
        after = record.after
        return cls(index, record.latents, after.words.rows if rows is None else rows, after.travel)


@dataclass
class History:
    moment_bytes: int  # memory that moments may take
    events: list[Event] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=lambda: [Cut(0)])
    moments: deque[Moment] = field(default_factory=deque)
    record_bytes: int = 0

    def copy(self) -> History:
        lists = [*self.events], [*self.records], [*self.cuts], deque(self.moments)
        return History(self.moment_bytes, *lists, self.record_bytes)

    def add(self, record: Record) -> None:
        self.record_bytes += record.nbytes_after(self.records[-1] if self.records else None)
        self.records.append(record)

    def truncate(self, num_chunks: int) -> None:
        """Forget what came after. What was asked before the first chunk is part of how a stream begins, and stays."""
        while len(self.records) > num_chunks:
            last = self.records.pop()
            self.record_bytes -= last.nbytes_after(self.records[-1] if self.records else None)
        limit = max(num_chunks, 1)
        self.events = [event for event in self.events if event.chunk < limit]
        self.cuts = [cut for cut in self.cuts if cut.chunk < limit]
        self.moments = deque(moment for moment in self.moments if moment.num_chunks <= num_chunks)

    def keep(self, moment: Moment) -> None:
        self.moments.append(moment)
        while self.moments and self.nbytes_of_moments > self.moment_bytes:
            self.moments.popleft()

    @property
    def nbytes_of_moments(self) -> int:
        return sum(moment.nbytes for moment in self.moments)

    @property
    def nbytes(self) -> int:
        return self.record_bytes + self.nbytes_of_moments

    def shot_start(self) -> int:
        """Index of the chunk that begins the present shot."""
        for index in range(len(self.records) - 1, -1, -1):
            if self.records[index].note.begins_shot:
                return index
        return 0

    def commits(self) -> list[Commit]:
        """Everything that the present cache was made from, in order."""
        cut = self.cuts[-1]
        fed = []
        for index in cut.fed:
            rows = None if cut.own_words else self.records[cut.chunk].after.words.rows
            fed.append(Commit.of(index, self.records[index], rows))
        return fed + [Commit.of(i, record) for i, record in enumerate(self.records[cut.chunk :], cut.chunk)]

    def newest_moment(self, not_before: int) -> Moment | None:
        """The newest one that lies after chunk `not_before`, or none."""
        if self.moments and self.moments[-1].num_chunks > not_before:
            return self.moments[-1]
        return None


def leave_out(
    commits: list[Commit], num_sink: int, num_frames: int | None
) -> tuple[list[Commit], list[Commit], list[Commit]]:
    """Split commits into those that fill the sink, those that no longer matter, and the rest: at least `num_frames`."""
    sizes = [commit.latents.shape[1] for commit in commits]
    head = 0
    while head < len(commits) and sum(sizes[:head]) < num_sink:
        head += 1
    if num_frames is None:
        return commits[:head], [], commits[head:]
    tail = len(commits)
    while tail > head and sum(sizes[tail:]) < num_frames:
        tail -= 1
    return commits[:head], commits[head:tail], commits[tail:]


Remember = Callable[[Text], TextMemory]  # rows of a prompt -> what the network keeps of them


def commit_again_passes(rollout: Rollout, commits: Iterable[Commit], remember: Remember) -> Passes[None]:
    for commit in commits:
        rollout.chunk_index = commit.index
        yield from rollout.feed_passes(commit.latents, remember(commit.rows), commit.travel)


def rebuild_passes(rollout: Rollout, history: History, remember: Remember) -> Passes[bool]:
    """Bring a new roll-out to the end of a history. True if it was begun from a moment that was kept."""
    commits, moment = history.commits(), history.newest_moment(not_before=history.cuts[-1].chunk)
    if moment:
        rollout.load(moment.rollout)
        newer = len(history.records) - moment.num_chunks
        yield from commit_again_passes(rollout, commits[len(commits) - newer :], remember)
    else:
        sink, skipped, recent = leave_out(commits, rollout.cfg.policy.sink, rollout.frames_that_matter())
        yield from commit_again_passes(rollout, sink, remember)
        if skipped:
            yield from rollout.skip_passes(sum(commit.latents.shape[1] for commit in skipped))
        yield from commit_again_passes(rollout, recent, remember)
    rollout.chunk_index = len(history.records)
    return moment is not None
