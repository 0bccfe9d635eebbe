"""The engine: one thread that owns the device and answers the passes of every lane, many at a time.

Whoever has used the device least is next, and takes along everybody whose pass fits and who has not used much more.
Streams are paced to real time and started just in time, so what they leave free is for jobs.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causvid.bundle import Model
from causvid.errors import UserError
from causvid.serve.batch import Batching, answer, fits
from causvid.serve.lanes import Command, Done, Job, Lane, Stream, Work, settle
from causvid.serve.meters import Meters
from causvid.serve.room import Full, Room, RoomConfig
from causvid.session import Session, StreamOptions
from causvid.take import Take

log = logging.getLogger(__name__)

FAIR = 0.1  # seconds of the device by which a lane may be ahead of the neediest one and still join its batch


@dataclass(frozen=True)
class EngineConfig(RoomConfig):
    max_batch: int = 8
    max_jobs: int = 8
    result_bytes: int = 2 << 30  # of movies that wait to be fetched, on disk; the oldest make room
    batching: Batching | None = None  # None: exact on a CPU, where whole products gain little; fast elsewhere
    threads: int | None = None
    warm_up: bool = True


class Engine:
    def __init__(self, model: Model, cfg: EngineConfig | None = None) -> None:
        self.model, self.cfg = model, cfg or EngineConfig()
        self.batching: Batching = self.cfg.batching or ("exact" if model.device.type == "cpu" else "fast")
        self._threads = self.cfg.threads or torch.get_num_threads()  # torch counts them per thread
        self.meters = Meters()
        self.room = Room(model, self.cfg, self.meters, self._remove)
        self.streams = self.room.streams
        self.jobs: dict[str, Job] = {}
        self.ready = threading.Event()
        self.broken: str | None = None
        self._mail: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_care = 0.0

    # ---- from any thread -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End now; what is being computed is lost."""
        if self._thread.is_alive():
            self._mail.put(None)
            self._thread.join(timeout=30)
        self.room.shelf.close()

    @property
    def draining(self) -> bool:
        return self.room.draining

    def drain(self, timeout: float) -> None:
        """Take nothing new; let chunks and jobs that run come to their end."""
        self.room.draining = True
        end = time.monotonic() + timeout
        self.call(self._pause_all).result(timeout)
        while time.monotonic() < end and any(lane.work for lane in self._lanes()):
            time.sleep(0.02)

    def call(self, function: Callable[[], Any]) -> Future:
        """Run something in the engine's thread, between passes."""
        future: Future = Future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                result = error
            settle(future, result)

        self._mail.put(run)
        return future

    def open(self, prompt: str, seed: int, options: StreamOptions) -> Future:
        """A new stream, paused."""
        moments = self.cfg.moment_bytes
        return self.call(
            lambda: self._add(lambda: Session(self.model, prompt, seed=seed, options=options, moment_bytes=moments))
        )

    def resume(self, take: Take) -> Future:
        return self.call(lambda: self._add(lambda: self._resume(take)))

    def fork(self, stream: Stream) -> Future:
        return self.ask(stream, lambda session: self._add(session.fork))

    def find(self, name: str) -> Future:
        """The stream of that name, taken from the shelf if it lies there; None if there is none."""

        def find() -> Stream | None:
            if name not in self.streams and name in self.room.shelf:
                self.room.check_open()  # or it stays where it is
                take = self.room.shelf.pop(name)
                self._add(lambda: self._resume(take), name)
            return self.streams.get(name)

        return self.call(find)

    def ask(self, stream: Stream, command: Command) -> Future:
        """Have a command run with a stream's session, between two of its chunks."""
        future: Future = Future()

        def enqueue() -> None:
            if stream.id not in self.streams:
                settle(future, UserError("this session has ended; open another one"))
                return
            stream.touched = time.monotonic()
            stream.commands.append(Done(future, command))

        self._mail.put(enqueue)
        return future

    def play(self, stream: Stream) -> Future:
        return self.call(lambda: self._play(stream))

    def pause(self, stream: Stream) -> Future:
        def pause() -> None:
            stream.playing, stream.reel = False, None

        return self.call(pause)

    def replay(self, stream: Stream, start: int = 0) -> Future:
        """Show what was made from chunk `start` on, again."""

        def begin(session: Session) -> None:
            self.room.check_playing(stream)
            take = session.take()
            stream.playing, stream.reel = False, take.replay_in_turns(self.model, start)
            stream.shown_until = time.monotonic()
            stream.epoch += 1
            stream.tell("replaying", {"start": start, "chunks": len(take.chunks) - start})

        return self.ask(stream, begin)

    def rewind(self, stream: Stream, keep: int) -> Future:
        """Back to the first `keep` chunks."""

        def rewind(session: Session) -> Work:
            yield from session.rewind_passes(max(0, session.num_chunks - keep))
            stream.reel = None  # it would show what is no more
            stream.source_ends = stream.source_ends and session.restyles
            stream.shown_until = time.monotonic()
            stream.epoch += 1
            stream.tell("rewound", {"chunks": session.num_chunks})

        return self.ask(stream, rewind)

    def close(self, stream: Stream) -> Future:
        return self.call(lambda: self._remove(stream))

    def submit(self, job: Job) -> Job:
        if self.draining:
            raise Full("this server is shutting down and takes no new jobs; try again when it is back")
        waiting = sum(not other.ended for other in self.jobs.values())
        if waiting >= self.cfg.max_jobs:
            raise Full(f"{waiting} jobs are waiting already, which is as many as this server takes; try again later")
        self.jobs[job.id] = job
        self._mail.put(lambda: None)
        return job

    def cancel(self, job: Job) -> Future:
        def cancel() -> None:
            if not job.ended:
                if job.work is not None:
                    job.work.close()
                    job.work = job.wanted = None
                job.end("cancelled", None)

        return self.call(cancel)

    def poke(self) -> None:
        """Look again whether there is something to do: frames have come."""
        self._mail.put(lambda: None)

    def gauges(self) -> dict[str, float]:
        streams = list(self.streams.values())
        return {
            "sessions": len(streams),
            "sessions_playing": self.room.num_playing(),
            "sessions_parked": sum(stream.session.is_parked for stream in streams),
            "sessions_watched": sum(stream.watched for stream in streams),
            "sessions_shelved": len(self.room.shelf),
            "session_bytes": self.room.nbytes,
            "capacity": self.room.capacity(),
            "jobs_waiting": sum(not job.ended for job in list(self.jobs.values())),
            "draining": self.draining,
        }

    # ---- in the engine's thread ------------------------------------------------------------------------------------

    def _add(self, make: Callable[[], Session], name: str | None = None) -> Stream:
        self.room.check_open()
        stream = Stream(session=make(), fps=self.model.cfg.fps)
        stream.id = name or stream.id
        chunk = self.model.cfg.rollout.chunk * self.model.codec.time_factor
        stream.max_unsent = 2 * chunk
        self.streams[stream.id] = stream
        self.meters.count("sessions_total")
        return stream

    def _resume(self, take: Take) -> Session:
        return Session.resume(take, self.model, moment_bytes=self.cfg.moment_bytes)

    def _remove(self, stream: Stream) -> None:
        stream.playing, stream.reel = False, None
        if stream.work is not None:
            stream.work.close()
            stream.work = stream.wanted = None
        for done in stream.commands:
            settle(done.future, UserError("this session has ended; open another one"))
        self.room.forget(stream)
        stream.tell("ended")

    def _play(self, stream: Stream) -> None:
        if stream.id not in self.streams:
            raise UserError("this session has ended; open another one")
        if stream.playing:
            return
        self.room.check_playing(stream)
        stream.begin_to_play()

    def _pause_all(self) -> None:
        for stream in self.streams.values():
            stream.playing, stream.reel = False, None
            stream.tell("draining")

    def _lanes(self) -> list[Lane]:
        jobs = [job for job in list(self.jobs.values()) if not job.ended]
        return [*list(self.streams.values()), *jobs]

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            if self.cfg.warm_up:
                self._warm_up()
            self.ready.set()
            while self._read_mail(self._time_to_wait()):
                self._turn()
        except Exception as error:
            log.exception("the engine has stopped")
            self.broken = f"{type(error).__name__}: {error}"
            self.ready.set()
            for stream in list(self.streams.values()):
                stream.tell("failed", error)

    def _read_mail(self, timeout: float) -> bool:
        """Do what other threads have asked for. False once the engine is to stop."""
        with contextlib.suppress(queue.Empty):
            letter = self._mail.get(timeout=timeout) if timeout > 0 else self._mail.get_nowait()
            while True:
                if letter is None:
                    return False
                letter()
                letter = self._mail.get_nowait()
        return True

    def _time_to_wait(self) -> float:
        """Seconds until there is something to do, if nobody writes."""
        now, wait = time.monotonic(), 0.5
        for lane in self._lanes():
            if lane.work is not None or (isinstance(lane, Job) and lane.state == "waiting"):
                return 0.0
            try:
                wait = min(wait, _seconds_until(lane, now))
            except Exception as error:
                self._fail(lane, error)
        return wait

    def _turn(self) -> None:
        """One batch, or a look around."""
        now = time.monotonic()
        if now - self._last_care > 1.0:
            self._last_care = now
            try:
                self._take_care(now)
            except Exception:  # what cannot be tidied up is no reason to stop showing pictures
                log.exception("taking care of sessions failed")
                self.meters.count("failures_total")
        lanes = [lane for lane in self._lanes() if self._wants(lane, now)]
        if not lanes:
            return
        lanes.sort(key=lambda lane: lane.used)
        first = lanes[0]
        assert first.wanted is not None
        group = [
            lane
            for lane in lanes
            if lane.used <= first.used + FAIR and lane.wanted is not None and fits(first.wanted, lane.wanted)
        ][: self.cfg.max_batch]
        start = time.perf_counter()
        results = answer(self.model.need_student(), [lane.wanted for lane in group if lane.wanted], self.batching)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        seconds = time.perf_counter() - start
        self.meters.saw_pass(len(group), seconds)
        for lane, v in zip(group, results):
            lane.used += seconds / len(group) / lane.weight
            if len(group) > 1 and self.batching == "fast" and isinstance(lane, Stream):
                lane.session.exact = False
            self._advance(lane, v)

    def _wants(self, lane: Lane, now: float) -> bool:
        """Whether a lane waits for a pass; begins its next work if it has none."""
        if lane.wanted is not None:
            return True
        if lane.work is None:
            try:
                lane.work = lane.next_work(now)
            except Exception as error:
                self._fail(lane, error)
            if lane.work is None:
                return False
            # who was away does not make up for it now
            others = [other.used for other in self._lanes() if other.work is not None and other is not lane]
            lane.used = max(lane.used, min(others, default=lane.used))
        self._advance(lane, None)
        return lane.wanted is not None

    @torch.no_grad()
    def _advance(self, lane: Lane, v: Any) -> None:
        """Send a lane the result it waits for, up to its next pass."""
        assert lane.work is not None
        start = time.perf_counter()
        try:
            lane.wanted = lane.work.send(v)
        except StopIteration as end:
            lane.work = lane.wanted = None
            if isinstance(lane, Stream) and lane._command is None:
                self.meters.chunk_overhead.add(time.perf_counter() - start)
            lane.finish(end.value)
        except Exception as error:
            lane.work = lane.wanted = None
            self._fail(lane, error)
        lane.used += (time.perf_counter() - start) / lane.weight

    def _fail(self, lane: Lane, error: Exception) -> None:
        if not isinstance(error, UserError):
            log.error("a lane failed", exc_info=error)
            self.meters.count("failures_total")
        lane.fail(error)

    def _take_care(self, now: float) -> None:
        self.room.take_care(now)
        nbytes = 0
        for job in reversed([job for job in list(self.jobs.values()) if job.ended]):
            path = job.result if isinstance(job.result, Path) else None
            nbytes += path.stat().st_size if path is not None and path.is_file() else 0
            if now - job.born > self.cfg.forget_after or nbytes > self.cfg.result_bytes:
                del self.jobs[job.id]
                if path is not None:
                    path.unlink(missing_ok=True)

    def _warm_up(self) -> None:
        """Everything once, before anybody waits for it: kernels, caches, and how long a pass takes alone and shared."""
        prompt = self.model.cfg.no_prompt or "a"
        sessions = [Session(self.model, prompt, seed=seed, options=StreamOptions()) for seed in range(4)]
        start = time.perf_counter()
        for _ in range(2):
            sessions[0].next_chunk()
        if time.perf_counter() - start > 2.0:  # a large model warms up on its first stream
            return
        lanes = [_one_chunk(session) for session in sessions]
        self.jobs |= {lane.id: lane for lane in lanes}
        while any(not lane.ended for lane in lanes):
            self._turn()
        for lane in lanes:
            del self.jobs[lane.id]
        self.meters.counts.clear()


def _seconds_until(lane: Lane, now: float) -> float:
    """Until a lane is to be looked at again."""
    at = lane.next_time(now)
    if at is None:
        return float("inf")
    idle = isinstance(lane, Stream) and not (lane.commands or lane.reel or lane.inbox or lane.session.can_step)
    return max(at - now, 0.02 if idle else 0.0)


def _one_chunk(session: Session) -> Job:
    return Job(make=lambda _: session.chunk_passes())
