"""`causvid demo`: stream a captioned clip with a prompt switch, write movie and contact sheet, say how fast it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from causvid import media
from causvid.bundle import Model

FIRST_PROMPT = "in daytime, a city bus drives through the city"
SECOND_PROMPT = "at night, a city bus drives through the city"
SECONDS = 13.5
SWITCH_AT = 6.75  # the length of a training clip


def run(model: Model, out: Path, seed: int) -> Iterator[str]:
    """Lines to print, as they become known."""
    fps = model.cfg.fps
    wanted = round(SECONDS * fps)
    warm_up = model.session(FIRST_PROMPT, seed=seed)
    warm_up.next_chunk()

    frames: list[np.ndarray] = []
    start = time.perf_counter()
    session = model.session(FIRST_PROMPT, seed=seed)
    first = 0.0
    switched = False
    yield f'streaming "{FIRST_PROMPT}"'
    while sum(map(len, frames)) < wanted:
        if not switched and sum(map(len, frames)) >= SWITCH_AT * fps:
            session.set_prompt(SECOND_PROMPT, mode="keep")
            switched = True
            yield f'at {sum(map(len, frames)) / fps:.1f} s the same scene goes on as "{SECOND_PROMPT}"'
        frames.append(session.next_chunk().frames)
        first = first or time.perf_counter() - start
    elapsed = time.perf_counter() - start
    clip = np.concatenate(frames)[:wanted]
    made = sum(map(len, frames))
    rate = made / elapsed
    yield f"time to first frame {first * 1e3:.0f} ms, {rate:.1f} frames a second ({rate / fps:.1f} times real time)"
    for name in ("demo.mp4", "demo.gif", "demo.png"):
        yield f"wrote {media.write_video(out / name, clip, fps)}"
