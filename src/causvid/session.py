"""A stream as a value: prompts and pictures in, chunks of frames out, for as long as somebody asks.

One session serves every way of making video, and changes between them while it runs: text, an image or a video to begin
from, frames to restyle as they come. What was asked and what was made is kept, so a stream can be rewound, forked,
saved, and shown or continued elsewhere.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from causvid.codecs import CodecStream
from causvid.errors import UserError
from causvid.history import (
    MOMENT_EVERY,
    Commit,
    History,
    Moment,
    Record,
    commit_again_passes,
    leave_out,
    rebuild_passes,
)
from causvid.inputs import Inputs, Next
from causvid.models.dit import TextMemory
from causvid.pixels import frames_from_video, video_from_frames
from causvid.rollout import Passes, Rollout, Turns, drive
from causvid.shapes import Latents, Text, Video
from causvid.situation import (
    EDIT,
    PROMPT_MODES,
    Situation,
    StreamOptions,
    check_settings,
    read_of,
    read_options,
    read_prompt,
    read_strength,
)
from causvid.sources import Source, encode_clip, encode_image, levels_from
from causvid.stopwatch import Stopwatch
from causvid.story import first_words, last_asked, next_part
from causvid.take import ChunkNote, Cut, Event, EventKind, Kind, Take
from causvid.text import Settler, Understood
from causvid.view_noise import Course

if TYPE_CHECKING:
    from causvid.bundle import Model

MOMENT_BYTES = 128 << 20  # ours: at Vista's size, going back within the last half minute takes no time
MAX_EVENTS = 20_000  # of one stream (ours: five minutes of as many as a server takes)


@dataclass(frozen=True)
class Chunk:
    """What one call of `next_chunk` makes."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    latents: Latents  # [1, K, C, h, w]
    index: int
    prompt: str
    timings: dict[str, float]  # seconds: commit (of the chunk before), denoise, decode
    kind: Kind = "made"
    drift: float = 0.0  # how far the statistics of the latents have moved since the prompt or the shot began
    strength: float | None = None


class Session:
    """One stream. Hold it, ask it for chunks, change its prompt between them.

    Changes take effect with the next chunk. The methods that end in `_passes` are for who runs the network themselves.
    """

    def __init__(
        self,
        model: Model,
        prompt: str,
        *,
        seed: int = 0,
        options: StreamOptions | None = None,
        moment_bytes: int = MOMENT_BYTES,
        story: bool | tuple[str, ...] = True,
    ) -> None:
        """`story`: whether prompts are told part by part, with what they leave open named, or the parts of this one."""
        self.model = model
        self._tells_stories = story is not False
        self._inputs = Inputs()
        self._shot_begins = True
        value: dict[str, Any] = {"text": prompt, "seed": seed, "options": asdict(options or StreamOptions())}
        if story is True:
            value |= self._story_of(prompt, seed)
        elif story or story is False:
            value["story"] = [*(story or ())]
        start = Event(0, 0.0, "start", value)
        self.history = History(moment_bytes, [start])
        self.exact = True  # whoever answers passes in a way that depends on other streams says so here
        self._began = time.monotonic()
        self._texts: tuple[Text, TextMemory] | None = None
        self._source_text: tuple[str, TextMemory] | None = None
        self.now = Situation.start(start, self._embed, self._course(seed))
        self.now.options.apply(model.cfg.rollout)  # refuse what cannot be run now, not at the first chunk
        self._rollout: Rollout | None = None  # its cache is allocated with the first chunk
        self._decoder: CodecStream = model.decode_stream()
        self._decoder_is_behind = False  # and has to see again what was shown

    # ---- chunks ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            yield self.next_chunk()

    def next_chunk(self) -> Chunk:
        """Generate, decode and return the next chunk."""
        return drive(self.model.need_student(), self.chunk_passes())

    def chunk_passes(self) -> Turns[Chunk]:
        clock = Stopwatch(self.model.device)
        yield from self.wake_passes()
        yield from self._catch_up_passes()
        yield from self.rollout.settle_passes()
        clock.lap("commit")
        text = self._remember(self.now.words.rows)
        size = self.rollout.cfg.chunk_size(self._shot_begins)
        coming = self._inputs.take(self.now, size, self._shot_begins)
        count = coming.latents.shape[1] if coming.kind == "given" and coming.latents is not None else size
        self.now = replace(self.now, motion=coming.motion).onward(coming.kind, count)
        travel = self.now.travel
        source, of, sigmas = None, None, None
        if coming.kind == "restyled":
            assert coming.latents is not None and coming.strength is not None
            source = self._to_device(coming.latents)
            sigmas = levels_from(coming.strength, self.rollout.cfg.sigmas)  # the scene is there: no first levels
            of = None if coming.of is None else self._remember_source(coming.of)
        if coming.kind == "given":
            assert coming.latents is not None
            latents = coming.latents
            yield from self.rollout.feed_passes(latents, text, travel)
        else:
            carry = source is None and self.now.course is not None and self.now.course.is_known
            latents = yield from self.rollout.step_passes(
                text, start=source, of=of, sigmas=sigmas, travel=travel, carry=carry
            )
        clock.lap("denoise")
        frames = frames_from_video(self._decode(latents))
        clock.lap("decode")
        self.now, drift = self.now.with_look(latents)
        note = ChunkNote(coming.kind, latents.shape[1], self._shot_begins, coming.strength, coming.of, self.exact)
        self._shot_begins = False
        self.history.add(Record(note, latents.cpu(), self.now, source))
        self._keep_moment()
        about = coming.kind, drift, coming.strength
        return Chunk(frames, latents, self.num_chunks - 1, self.now.prompt, clock.laps, *about)

    @property
    def num_chunks(self) -> int:
        return len(self.history.records)

    @property
    def prompt(self) -> str:
        """The prompt that was asked for last."""
        return self._inputs.prompt or self.now.prompt

    @property
    def asked_prompt(self) -> str:
        """The same as it was asked for: of a story that is under way, `prompt` is the part that is told now."""
        return last_asked([*self.history.events, *list(self._inputs.waiting)])[0].value["text"]

    @property
    def _last_told(self) -> str:
        """The newest words for the network."""
        events = [*self.history.events, *list(self._inputs.waiting)]
        return next(first_words(event.value) for event in reversed(events) if event.kind in ("start", "prompt"))

    @property
    def understood(self) -> Understood:
        """How the prompt that was asked for last is read, and what to know about that."""
        return self.model.understand(self.prompt)

    @property
    def asked(self) -> Situation:
        """The situation of the next chunk, but for its words."""
        return self._inputs.after(self.now, self._embed)

    @property
    def seed(self) -> int:
        return self.asked.seed

    @property
    def rollout(self) -> Rollout:
        assert self._rollout is not None, "a session has a cache from its first chunk on, and none while it is parked"
        return self._rollout

    def settle(self) -> None:
        """Do the work that the next chunk would begin with: useful while somebody watches this one."""
        if not self.is_parked:
            drive(self.model.need_student(), self.rollout.settle_passes())

    # ---- asking for changes ------------------------------------------------------------------------------------

    def set_prompt(self, text: str, mode: str = "keep", blend: int = 0) -> None:
        """From the next chunk on, follow `text`, wholly or over `blend` chunks.

        keep: the past stays as it is. recache: the past is recomputed under the new words, which take hold faster.
        flush: the past is forgotten and a new shot begins.
        """
        value = {"text": text, "mode": mode, "blend": blend}
        read_prompt(value)
        self._embed(text)  # refuse a hopeless prompt now, not at the next chunk
        self._ask("prompt", value | self._story_of(text, self.seed, self._last_told, new_shot=mode == "flush"))

    def change(self, **settings: Any) -> None:
        """Another seed, number of steps, window, sink or relative from the next chunk on."""
        check_settings(settings)
        event = Event(0, 0.0, "settings", settings)
        self.asked.after(event, self._embed).options.apply(self.model.cfg.rollout)
        self._ask("settings", settings)

    def begin_with_image(self, image: np.ndarray, how: str = "first") -> None:
        """Go on from a picture: it is the next frame, and begins a shot unless the stream is just beginning."""
        chunk = self.model.cfg.rollout.chunk
        self._give([encode_image(self.model.codec, image, self._size, chunk, how)], "image")

    def extend(self, frames: np.ndarray) -> int:
        """Go on from a video: its chunks come first, as the codec shows them. Returns how many there are."""
        chunks = encode_clip(self.model.codec, frames, self._size, self.model.cfg.rollout.chunk)
        self._give(chunks, "video")
        return len(chunks)

    def restyle(self, strength: float | str | None = EDIT, *, of: str | None = "", limit: int | None = None) -> None:
        """From the next chunk on, follow the frames that `push` brings.

        `of` tells what they show, as far as is known: what the prompt says otherwise is changed, all else stays. With
        None they are drawn anew, which is right for sketches. `strength` is the noise level to begin at (in (0, 1], or
        'motion'): the higher, the more may change. The past of the stream is kept. A second call changes these, a
        strength of None ends it. `limit` is how many frames may wait before the oldest are dropped.
        """
        words = None if read_strength(strength) is None else read_of(of)
        if words:
            self._embed(words)  # refuse hopeless words now
        if strength is None:
            self._inputs.source = self._source_text = None
        elif self._inputs.source is None:
            self._inputs.source = Source(self.model.codec, self._size, limit)
            self._say_as_it_is()
        self._ask("source", {"strength": strength, "of": words})

    def push(self, frames: np.ndarray) -> None:
        """Frames to restyle, one [H, W, 3] or several [F, H, W, 3], of any size."""
        if self._inputs.source is None:
            raise UserError("this stream restyles nothing; call restyle(strength) first")
        self._inputs.source.push(frames)

    @property
    def will_recache(self) -> bool:
        """Whether the next chunk takes longer because the past is computed again before it."""
        words = self.now.words
        return self._inputs.will_recache or (words.left == 1 and words.mode == "recache")

    @property
    def restyles(self) -> bool:
        """Whether frames that are pushed are used."""
        return self._inputs.source is not None

    @property
    def can_step(self) -> bool:
        """False while a stream that restyles waits for frames."""
        return self.num_missing_frames == 0

    @property
    def num_missing_frames(self) -> int:
        """How many frames must be pushed before the next chunk can be made."""
        size = self.model.cfg.rollout.chunk_size(self._shot_begins)
        return self._inputs.num_missing_frames(size, self._shot_begins)

    # ---- going back, going elsewhere ---------------------------------------------------------------------------

    def rewind(self, num_chunks: int) -> None:
        """Take back the last chunks, and what was asked since. The next one is made again, or made otherwise."""
        drive(self.model.need_student(), self.rewind_passes(num_chunks))

    def rewind_passes(self, num_chunks: int) -> Turns[None]:
        if not 0 <= num_chunks <= self.num_chunks:
            raise UserError(f"this stream has {self.num_chunks} chunks and cannot go back by {num_chunks}")
        keep = self.num_chunks - num_chunks
        self._inputs.given = self._given_from(keep)
        self.history.truncate(keep)
        self._inputs.waiting.clear()
        if keep:
            self.now = self.history.records[-1].after
        else:
            start, *asked = self.history.events
            self.history.events = [start]
            self.now = Situation.start(start, self._embed, self._course(start.value["seed"]))
            live = self._inputs.source is not None
            self._inputs.waiting.extend(e for e in asked if e.kind != "cut" and (live or e.kind != "source"))
        if (self.now if keep else self.asked).strength is None:
            self._inputs.source = None
        elif keep and self._inputs.source is None:
            self._leave_source()
        self._shot_begins = not keep
        self._rollout, self._decoder_is_behind = None, True
        yield from self.wake_passes()

    def fork(self) -> Session:
        """A second stream with the same past. The two share it and go on alone."""
        twin = object.__new__(Session)
        twin.__dict__.update(self.__dict__)
        twin.history = self.history.copy()
        twin._inputs = self._inputs.copy()
        twin._decoder = self.model.decode_stream()
        twin._decoder.load(self._decoder.save())
        if self._rollout is not None:
            twin._rollout = twin._new_rollout()
            twin._rollout.load(self._rollout.save())
        twin._leave_source()
        return twin

    def park(self) -> None:
        """Free the cache of a stream that nobody watches. It goes on later as if nothing had been."""
        self._rollout = self._texts = self._source_text = None
        self.history.moments.clear()

    @property
    def is_parked(self) -> bool:
        """Whether there is no cache: it was freed, or there is no chunk yet."""
        return self._rollout is None

    @property
    def nbytes(self) -> int:
        """Memory that grows with a stream, or comes and goes with its cache. What forks share counts for each."""
        cache = 0 if self._rollout is None else self._rollout.cache.nbytes
        words = sum(known[1].nbytes for known in (self._texts, self._source_text) if known is not None)
        return cache + words + self.history.nbytes + self._inputs.nbytes

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache takes, or would take if there were one."""
        model, options = self.model, self.asked.options.apply(self.model.cfg.rollout)
        shape = model.need_student().cache_shape(*model.latent_shape[1:])
        frames = options.policy.window or options.max_frames
        width = shape.tokens_per_frame * shape.num_heads * shape.head_width
        return 2 * shape.num_layers * frames * width * model.dtype.itemsize

    def wake_passes(self) -> Turns[None]:
        """Build a stream's cache. The next chunk would do it, too."""
        if self._decoder_is_behind:
            yield from self._rebuild_decoder()
        if self.is_parked:
            yield from self._rebuild_passes()

    def take(self) -> Take:
        """What this stream is up to now, as a value that can be saved: also what waits for the next chunk, but for
        pictures."""
        records, count = self.history.records, self.num_chunks
        asked = [e for e in list(self._inputs.waiting) if e.kind in ("prompt", "settings")]
        return Take(
            self.model.cfg.name,
            self.model.cfg.fps,
            self.model.latent_shape,
            (*self.history.events, *(replace(event, chunk=count) for event in asked)),
            tuple(record.note for record in records),
            tuple(self.history.cuts),
            tuple(record.latents for record in records),
            {index: record.source for index, record in enumerate(records) if record.source is not None},
        )

    def save(self, path: str | Path) -> Path:
        return self.take().save(path)

    @classmethod
    def resume(cls, take: Take, model: Model, *, moment_bytes: int = MOMENT_BYTES) -> Session:
        """Go on with a take where it ended. The session comes parked: its first chunk takes the time to wake."""
        take.check_codec(model)
        session = cls.from_start(take, model, moment_bytes=moment_bytes)
        session.history.cuts = list(take.cuts)
        events = deque(take.events[1:])
        for index, (note, latents) in enumerate(zip(take.chunks, take.latents)):
            while events and events[0].chunk <= index:
                session.history.events.append(events.popleft())
                session.now = session.now.after(session.history.events[-1], session._embed)
            session.now, _ = session.now.step().onward(note.kind, note.num_latents).with_look(latents)
            session.history.add(Record(note, latents, session.now, take.sources.get(index)))
        asked = session.now
        for event in events:
            asked = asked.after(event, session._embed)  # refuse what cannot be understood now, not at the next chunk
        asked.options.apply(model.cfg.rollout)
        session._inputs.waiting.extend(events)
        session._began -= take.events[-1].time
        session._leave_source()
        session._shot_begins = not session.history.records
        session._decoder_is_behind = True
        session.park()
        return session

    @classmethod
    def from_start(cls, take: Take, model: Model, *, moment_bytes: int = MOMENT_BYTES, **options: Any) -> Session:
        """A new stream that begins as a take did; `options` replace those of the take."""
        start = take.events[0].value
        chosen, parts = read_options(start["options"] | options), start.get("story")
        story = False if parts == [] else tuple(parts or ())
        return cls(model, start["text"], seed=take.seed, options=chosen, moment_bytes=moment_bytes, story=story)

    # ---- making a take again: what was asked and given, without the pictures ---------------------------------------

    def repeat(self, event: Event) -> None:
        """Ask for what another session was asked for."""
        self._inputs.waiting.append(event)

    def give(self, latents: Latents) -> None:
        """The next chunk that is not given yet, as latents."""
        self._inputs.given.append(self._to_device(latents))

    def follow(self, source: Latents, note: ChunkNote) -> None:
        """Restyle this in the next chunk that has none yet."""
        self._inputs.scripted.append(Next("restyled", source, note.strength, note.of))

    def amend(self, latents: Latents) -> None:
        """Go on from these latents in place of those that were made last."""
        self.rollout.amend(latents)
        self.history.records[-1] = replace(self.history.records[-1], latents=latents)

    # ---- inside --------------------------------------------------------------------------------------------------

    @property
    def _size(self) -> tuple[int, int]:
        return self.model.cfg.height, self.model.cfg.width

    def _ask(self, kind: EventKind, value: dict[str, Any]) -> None:
        if len(self.history.events) >= MAX_EVENTS:
            raise UserError(f"a stream has at most {MAX_EVENTS:,} changes; save it, and go on with a new one")
        self._inputs.ask(Event(self.num_chunks, time.monotonic() - self._began, kind, value))

    def _story_of(self, prompt: str, seed: int, before: str = "", new_shot: bool = False) -> dict[str, list[str]]:
        """What a prompt is told as, where that is not as it is: part by part, and with what it leaves open named. Where
        pictures came from elsewhere, they show what words leave open."""
        if not self._tells_stories:
            return {}
        understood, text = self.model.understand(prompt), self.model.text
        parts = understood.story
        if isinstance(text, Settler) and not self._shows_others(new_shot):
            parts = text.settle(parts or (understood.text,), seed, before)
        return {"story": [*parts]} if parts not in ((), (understood.text,)) else {}

    def _shows_others(self, new_shot: bool) -> bool:
        """Whether this shot, or a new one, shows pictures that were not made here, or is about to."""
        if self._inputs.source is not None or self._inputs.given:
            return True
        if self._shot_begins or new_shot:
            return False
        return any(record.note.kind != "made" for record in self.history.records[self.history.shot_start() :])

    def _say_as_it_is(self) -> None:
        """Take back what was named for a prompt that leaves it open, because pictures are about to show it."""
        event, told = last_asked([*self.history.events, *list(self._inputs.waiting)])
        plain, parts = self._story_of(event.value["text"], self.seed).get("story", []), event.value.get("story", [])
        if not parts or parts == plain:
            return
        value = {key: given for key, given in event.value.items() if key != "story"}
        rest = plain[told:]
        text, story = rest[0] if told and rest else value["text"], {"story": rest} if rest else {}
        if event.kind == "start" and not self.num_chunks:
            start = replace(event, value=value | story)
            self.history.events[0] = start
            self.now = Situation.start(start, self._embed, self._course(value["seed"]))
        else:
            self._ask("prompt", {"text": text, "mode": "keep", "blend": 0} | story)

    def _embed(self, prompt: str) -> Text:
        return self.model.embed([prompt])

    @torch.no_grad()
    def _remember(self, rows: Text) -> TextMemory:
        """Project a prompt once, not for every chunk."""
        if self._texts is None or self._texts[0] is not rows:
            self._texts = rows, self.model.need_student().project_text(rows)
        return self._texts[1]

    @torch.no_grad()
    def _remember_source(self, of: str) -> TextMemory:
        if self._source_text is None or self._source_text[0] != of:
            model = self.model
            self._source_text = of, model.remember(of) if of else model.need_student().project_text(model.no_text())
        return self._source_text[1]

    @torch.no_grad()
    def _decode(self, latents: Latents) -> Video:
        return self._decoder(latents.to(device=self.model.device, dtype=self.model.codec.dtype))

    def _to_device(self, latents: Latents) -> Latents:
        return latents.to(device=self.model.device, dtype=self.model.dtype)

    def _course(self, seed: int) -> Course | None:
        return self.model.course(seed, self.model.need_student())

    def _new_rollout(self) -> Rollout:
        cfg = self.now.options.apply(self.model.cfg.rollout)
        model = self.model
        return Rollout(
            model.need_student(),
            cfg,
            model.latent_shape,
            seeds=(self.now.seed,),
            dtype=model.dtype,
            device=model.device,
            view_noise=model.view_noise(model.need_student()),
        )

    def _catch_up_passes(self) -> Passes[None]:
        """Put in force what was asked for since the last chunk, and what a story has come to."""
        part = next_part(self.history, self.now.words.left, self.rollout.cfg.chunk_size(self._shot_begins))
        if part is not None and self._inputs.prompt is None:
            self.repeat(Event(self.num_chunks, time.monotonic() - self._began, "prompt", part))
        while self._inputs.waiting:
            event = replace(self._inputs.waiting.popleft(), chunk=self.num_chunks)
            self.history.events.append(event)
            self.now = self.now.after(event, self._embed)
            if event.kind == "cut" or (event.kind == "prompt" and self.now.words.mode == "flush"):
                self._begin_shot()
            elif event.kind == "settings":
                yield from self._reconfigure_passes()
        was_on_its_way = self.now.words.left > 0
        self.now = self.now.step()
        words = self.now.words
        if was_on_its_way and words.left == 0 and words.mode == "recache" and self.num_chunks and not self._shot_begins:
            yield from self.rollout.recache_passes(self._remember(words.rows))
            self._cut(self.rollout.in_sight, own_words=False)

    def _begin_shot(self) -> None:
        self.rollout.flush()
        self._decoder = self.model.decode_stream()
        self._shot_begins = True
        self._cut(())

    def _reconfigure_passes(self) -> Passes[None]:
        """Take other settings. Another window is filled from the chunks of this shot."""
        old, new = self.rollout, self._new_rollout()
        if new.cfg.policy == old.cfg.policy:
            old.cfg, old.seeds = new.cfg, new.seeds
            return
        start = self.history.shot_start() if not self._shot_begins else self.num_chunks
        commits = [Commit.of(i, record) for i, record in enumerate(self.history.records[start:], start)]
        sink, _, recent = leave_out(commits, new.cfg.policy.sink, new.cfg.policy.window)
        self._rollout = new
        yield from commit_again_passes(new, [*sink, *recent], self._remember)
        yield from new.settle_passes()
        new.chunk_index = self.num_chunks
        self._cut(commit.index for commit in [*sink, *recent])

    def _cut(self, fed: Iterable[int], own_words: bool = True) -> None:
        if self.num_chunks:
            self.history.cuts.append(Cut(self.num_chunks, tuple(fed), own_words))
        self.exact = True

    def _rebuild_passes(self) -> Passes[None]:
        """The cache as it was when the last chunk was handed out."""
        self._rollout = self._new_rollout()
        from_moment = yield from rebuild_passes(self._rollout, self.history, self._remember)
        self.exact = self.exact or not from_moment

    def _rebuild_decoder(self) -> Turns[None]:
        """The decoder as it was when the last chunk had been shown. Gives way after every chunk it sees again."""
        self._decoder = self.model.decode_stream()
        start = self.history.shot_start()
        moment = self.history.newest_moment(not_before=start)
        if moment:
            self._decoder.load(moment.decoder)
            start = moment.num_chunks
        for record in self.history.records[start:]:
            self._decode(record.latents)
            yield None
        self._decoder_is_behind = False

    def _keep_moment(self) -> None:
        if self.num_chunks % MOMENT_EVERY == 0:
            self.history.keep(Moment(self.num_chunks, self.rollout.save(), self._decoder.save()))

    def _give(self, chunks: list[Tensor], what: str) -> None:
        self._ask("cut", {"why": what, "chunks": len(chunks)})
        self._inputs.given = deque(self._to_device(chunk) for chunk in chunks)
        self._say_as_it_is()

    def _given_from(self, keep: int) -> deque[Latents]:
        """What there is to give after the first `keep` chunks: the rest of a video that was asked for before that."""
        later = [event.chunk for event in self.history.events if event.kind == "cut" and event.chunk >= keep]
        records = self.history.records[keep : later[0] if later else None]
        shown = takewhile(lambda record: record.note.kind == "given", records)
        again = [self._to_device(record.latents) for record in shown]
        replaced = later or any(event.kind == "cut" for event in self._inputs.waiting)
        return deque(again if replaced else [*again, *self._inputs.given])

    def _leave_source(self) -> None:
        """Frames that come in belong to one session: another one with the same past goes on without."""
        self._inputs.source = None
        if self.now.strength is not None:
            self._ask("source", {"strength": None})


__all__ = ["PROMPT_MODES", "Chunk", "Session", "StreamOptions", "frames_from_video", "video_from_frames"]
