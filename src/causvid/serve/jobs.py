"""Work with an end: a movie of a prompt, or of what a session has made, while streams go on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causvid import media
from causvid.bundle import Model
from causvid.errors import UserError
from causvid.serve.lanes import Job, Work
from causvid.session import Session, StreamOptions
from causvid.take import Take

TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif"}


class Results:
    """The folder that results lie in until they are fetched or forgotten."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="causvid-")

    def path(self, job: Job, suffix: str) -> Path:
        if suffix not in TYPES:
            raise UserError(f"a movie is {', '.join(TYPES)}; not '{suffix}'")
        return Path(self._folder.name) / f"{job.id}{suffix}"

    def close(self) -> None:
        self._folder.cleanup()


def generation(
    model: Model,
    results: Results,
    prompt: str,
    *,
    seconds: float,
    seed: int = 0,
    options: StreamOptions,
    changes: Sequence[tuple[float, str, str]],
    suffix: str = ".mp4",
) -> Job:
    """A movie of a prompt, and of further ones: (second, prompt, mode)."""

    def make(job: Job) -> Work:
        session = Session(model, prompt, seed=seed, options=options, moment_bytes=0)
        fps, waiting = model.cfg.fps, sorted(changes)
        wanted, made = max(1, round(seconds * fps)), 0
        path = results.path(job, suffix)
        with media.VideoWriter(path, fps) as movie:
            while made < wanted:
                while waiting and made >= round(waiting[0][0] * fps):
                    _, text, mode = waiting.pop(0)
                    session.set_prompt(text, mode)
                chunk = yield from session.chunk_passes()
                movie.write(chunk.frames[: wanted - made])
                made += len(chunk.frames)
                job.progress = min(made / wanted, 1.0)
        return path

    told = (prompt, *(text for _, text, _ in changes))
    notes = [note for text in told for note in model.understand(text).streamed_notes]
    return Job(what="generate", make=make, notes=notes)


def movie_of(model: Model, results: Results, take: Take, start: int, stop: int, suffix: str = ".mp4") -> Job:
    """Chunks [start, stop) of a take as a movie."""
    stop = min(stop, len(take.chunks))
    if not 0 <= start < stop:
        raise UserError(f"there are no chunks from {start} to {stop}; this stream has {len(take.chunks)}")

    def make(job: Job) -> Work:
        path = results.path(job, suffix)
        with media.VideoWriter(path, model.cfg.fps) as movie:
            for shown in take.replay_in_turns(model, start, stop):
                if shown is not None:
                    movie.write(shown.frames)
                    job.progress = (shown.index + 1 - start) / (stop - start)
                yield None
        return path

    return Job(what="movie", make=make)


def describe(job: Job) -> dict[str, Any]:
    about: dict[str, Any] = {"job": job.id, "what": job.what, "state": job.state, "progress": round(job.progress, 3)}
    if job.notes:
        about["notes"] = job.notes
    if job.error:
        about["error"] = job.error
    if job.state == "done":
        about["result"] = f"/api/jobs/{job.id}/result"
    return about
