"""Clips of a model for the protocol: one per prompt, streams with prompts that change, several seeds of one prompt.

Noise comes from the prompt's index alone, so that models are compared in pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from causvid.bundle import Model
from causvid.evaluate.drift import Timeline
from causvid.evaluate.protocol import NUM_FRAMES, Prompt, another_truth
from causvid.flow import Guidance
from causvid.noise import mix
from causvid.sample import Renewal
from causvid.worlds.vista.captions import timeline_prompts
from causvid.worlds.vista.render import render
from causvid.worlds.vista.sampling import sample_timeline_scene

Maker = Callable[[str, int], np.ndarray]  # (caption, noise seed) -> frames uint8 [F, H, W, 3]
Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]  # (name, how to make it) -> frames, from disk if there


def student_maker(model: Model, num_frames: int = NUM_FRAMES, story: bool = True, **options: int | None) -> Maker:
    """Clips streamed chunk by chunk; options are those of a session (steps, window, ...)."""

    def make(caption: str, seed: int) -> np.ndarray:
        return stream(model, [(0.0, caption)], num_frames, seed, story, **options)

    return make


def teacher_maker(
    model: Model,
    num_frames: int = NUM_FRAMES,
    steps: int | None = None,
    guidance: Guidance | None = None,
    renewal: Renewal | None = None,
    named: bool = True,
) -> Maker:
    """Clips sampled as a whole from the bidirectional teacher, one after the other: a batch is no faster on a CPU."""

    def make(caption: str, seed: int) -> np.ndarray:
        seconds = num_frames / model.cfg.fps
        clip = model.sample(
            caption, seconds=seconds, steps=steps, guidance=guidance, seed=seed, renewal=renewal, named=named
        )
        return clip[:num_frames]

    return make


def kept(make: Maker, keep: Keep) -> Maker:
    """The same clips, each made once."""
    return lambda caption, seed: keep(f"{seed} {caption}", lambda: make(caption, seed))


def make_anew(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    return make()


def clips(make: Maker, listed: Sequence[Prompt]) -> Iterator[tuple[Prompt, np.ndarray]]:
    """What `report.evaluate` takes."""
    return ((prompt, make(prompt.caption, prompt.noise_seed)) for prompt in listed)


def stream(
    model: Model, timeline: Timeline, num_frames: int, seed: int, story: bool = True, **options: int | None
) -> np.ndarray:
    """One stream whose prompt changes at the given seconds, each at the next chunk that can still obey."""
    waiting = sorted(timeline)[1:]
    session = model.session(timeline[0][1], seed=seed, story=story, **options)
    parts: list[np.ndarray] = []
    made = 0
    while made < num_frames:
        while waiting and made >= waiting[0][0] * model.cfg.fps:
            session.set_prompt(waiting.pop(0)[1])
        parts.append(np.asarray(session.next_chunk().frames))
        made += len(parts[-1])
    return np.concatenate(parts)[:num_frames]


def long_streams(
    model: Model, count: int, seconds: float = 30.0, keep: Keep = make_anew, steps: int | None = None
) -> Iterator[tuple[Timeline, np.ndarray, np.ndarray]]:
    """What `drift.measure_drift` takes: timelines of the held-out split, the model's streams, and their truth."""
    num_frames = round(seconds * model.cfg.fps)
    for index in range(count):
        scene = sample_timeline_scene(index, seconds)
        timeline = timeline_prompts(scene, index)
        true = render(scene, num_frames, model.cfg.height, model.cfg.width, model.cfg.fps)[0]
        make = partial(stream, model, timeline, num_frames, mix(7, index) % 2**31, steps=steps)
        yield timeline, keep(f"stream {index} of {seconds:g} s", make), true


def seeds_of_a_prompt(make: Maker, listed: Sequence[Prompt], count: int = 8) -> Iterator[
    tuple[str, list[np.ndarray], list[np.ndarray]]
]:  # fmt: skip
    """What `diversity.measure_diversity` takes."""
    for prompt in listed:
        made = [make(prompt.caption, mix(prompt.noise_seed, draw) % 2**31) for draw in range(count)]
        yield prompt.caption, made, [another_truth(prompt, len(made[0]), draw=draw) for draw in range(count)]
