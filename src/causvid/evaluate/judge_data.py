"""Clips for training and testing judges: rendered scenes that no generator ever sees, spoilt a little.

Layout seeds of the generator's splits lie below 2^34; judges use their own ranges from 2^40 on, one per purpose. Scenes
are drawn over every combination of attributes, held-out ones included: a judge that had never seen a red duck could not
tell whether a student draws one.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from causvid.worlds.vista.motion import CALM, walk
from causvid.worlds.vista.render import render
from causvid.worlds.vista.sampling import add_event
from causvid.worlds.vista.scene import (
    BIOMES,
    CAMERAS,
    COLOURS,
    EVENT_KINDS,
    HEROES,
    LANES,
    LEGAL_MOTIONS,
    LIGHTS,
    MOTIONS,
    TRAVELS,
    WEATHERS,
    Scene,
    Second,
)
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.tracks import State, Tracks

SEED_RANGES = {"report": 1 << 40, "select": 2 << 40, "quality": 3 << 40, "held-out": 4 << 40}
VALUES: dict[str, tuple[str, ...]] = {
    "biome": BIOMES,
    "light": LIGHTS,
    "weather": WEATHERS,
    "hero": HEROES,
    "colour": COLOURS,
    "second": ("none", *HEROES),
    "second colour": COLOURS,
    "motion": MOTIONS,
    "camera": CAMERAS,
}
CONSTANT = ("biome", "hero", "second", "second colour")  # no event changes these
TIMED = ("light", "weather", "colour", "motion", "camera")
STACK = 3  # frames in a stack


def judge_scene(number: int, purpose: str) -> tuple[Scene, int]:
    """Scene `number` of a judge's own seed range, and the frame to start at: the beginning, or anywhere in 10 minutes.

    Attributes are uniform, every other scene has a second entity; events fall into the 81 frames after the start."""
    seed = SEED_RANGES[purpose] + number
    stream = Stream(seed, "attributes")
    biome = stream.pick(BIOMES)
    floor = "water" if biome == "sea" else "ground"
    lane = floor if stream.chance(0.55) else "air"
    hero = stream.pick([h for h in HEROES if LANES[h] == lane])
    motion = stream.pick(LEGAL_MOTIONS[hero])
    cameras = ("follow",) if motion in TRAVELS else CAMERAS[:4] if motion != "stays" else ("static", "sweep")
    light, weather, colour, camera = (stream.pick(v) for v in (LIGHTS, WEATHERS, COLOURS, cameras))
    other = stream.pick([h for h in HEROES if LANES[h] == (floor if lane == "air" else "air")])
    second = Second(other, stream.pick(COLOURS), CALM.get(other, "stays"))
    scene = Scene(seed, biome, light, weather, hero, colour, motion, camera, second if stream.chance(0.5) else None)
    start = 0 if stream.chance(0.5) else stream.below(600 * 12)
    kinds = stream.shuffled(EVENT_KINDS)
    for kind, time in zip(kinds, (stream.uniform(0.5, 2.5), stream.uniform(3.5, 5.5))):
        if stream.chance(0.35):
            scene = add_event(scene, stream, start / 12 + time, kind)
    return scene, start


def fingerprint(purpose: str, count: int = 64) -> str:
    """A hash of the first scenes of a range: two judges of the same fingerprint were trained on the same draw."""
    text = "\n".join(f"{start} {scene.to_json()}" for scene, start in (judge_scene(n, purpose) for n in range(count)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Labels(NamedTuple):
    """Truth of N stacks; `settled` is false while an event is under way. Lengths are in picture heights."""

    value: dict[str, np.ndarray]  # attribute -> [N]
    place: np.ndarray  # [N, 2] x, y of the hero
    second_place: np.ndarray  # [N, 2], NaN without one
    visible: np.ndarray  # [N] share of the hero in sight
    speed: np.ndarray  # [N] camera, heights per frame
    settled: np.ndarray  # [N]


def labels_of(scene: Scene, state: State, height: int) -> Labels:
    """One row per stack of three frames, read at the middle frame."""
    middle = np.arange(1, len(state.time) - 1, STACK)
    count = len(middle)
    second = 0 if scene.second is None else 1 + HEROES.index(scene.second.hero)
    second_colour = 0 if scene.second is None else COLOURS.index(scene.second.colour)
    constant = {"biome": BIOMES.index(scene.biome), "hero": HEROES.index(scene.hero), "second": second,
                "second colour": second_colour}  # fmt: skip
    timed = {name: vars(state)[f"{name}_index"][middle] for name in TIMED}
    return Labels(
        value={name: np.full(count, value) for name, value in constant.items()} | timed,
        place=np.stack([state.hero_x, state.hero_y], 1)[middle] / height,
        second_place=np.stack([state.second_x, state.second_y], 1)[middle] / height,
        visible=state.hero_visible[middle],
        speed=(state.camera_x[middle + 1] - state.camera_x[middle - 1]) / 2 / height,
        settled=state.settled[middle],
    )


def stacks_of(frames: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] -> [F//3, H, W, 9]: neighbouring threes; a remainder at the end is left out."""
    count = len(frames) // STACK
    if count == 0:
        raise ValueError(f"a judge reads stacks of {STACK} frames, this clip has {len(frames)}")
    stacks = frames[: count * STACK].reshape(count, STACK, *frames.shape[1:])
    return np.moveaxis(stacks, 1, 3).reshape(count, *frames.shape[1:3], 3 * STACK)


def to_input(stacks: np.ndarray | Tensor) -> Tensor:
    """uint8 [N, H, W, 9] -> float [N, 9, H, W] in [-1, 1]"""
    return torch.as_tensor(stacks).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def rendered(purpose: str, number: int, width: int = 112, num_frames: int = 81) -> tuple[Scene, np.ndarray, State]:
    scene, start = judge_scene(number, purpose)
    return scene, *render(scene, num_frames, 64, width, start_frame=start)


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """What pictures from a generator may suffer without changing what they show: x [N, 9, H, W] in [-1, 1].

    Noise most of all: flakes and drops are told from it only by a judge that has seen both."""

    def chosen(share: float) -> Tensor:
        return torch.nonzero(torch.rand(len(x), generator=rng) < share)[:, 0]

    def amounts(rows: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(rows), 1, 1, 1, generator=rng)

    x = x.clone()
    rows = chosen(0.4)
    soft = F.avg_pool2d(F.pad(x[rows], (1, 1, 1, 1), mode="replicate"), 3, 1)
    x[rows] += amounts(rows, 0.2, 1.0) * (soft - x[rows])
    rows = chosen(0.15)  # the loss of detail of a coarse codec
    if len(rows):
        small = F.interpolate(x[rows], scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)
        x[rows] = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    rows = chosen(0.35)
    x[rows] += amounts(rows, 0.01, 0.22) * torch.randn((len(rows), *x.shape[1:]), generator=rng)
    rows = chosen(0.15)  # in grains of a flake's size
    height, width = x.shape[-2:]
    grains = torch.randn((len(rows), x.shape[1], height // 2, width // 2), generator=rng)
    x[rows] += amounts(rows, 0.01, 0.15) * grains.repeat_interleave(2, 2).repeat_interleave(2, 3)
    every = torch.arange(len(x))
    return x.mul_(amounts(every, 0.94, 1.06)).add_(amounts(every, -0.05, 0.05)).clamp_(-1, 1)


class Track(NamedTuple):
    """What a perfect judge would read off a clip's motion, without its pixels: [S] per stack."""

    place: np.ndarray  # [S, 2] heights
    speed: np.ndarray  # [S] heights per frame
    motion: np.ndarray
    camera: np.ndarray
    settled: np.ndarray
    scene: Scene


def track(scene: Scene, num_frames: int, start_frame: int = 0, wide: float = 112.0, fps: float = 12.0) -> Track:
    """The simulator's own path, a thousand times cheaper than rendering."""
    t = (start_frame + np.arange(num_frames)) / fps
    tracks = Tracks(scene, t)
    path = walk(scene.hero, tracks.motion_weights(), tracks, wide, "hero")
    middle = np.arange(1, num_frames - 1, STACK)
    return Track(
        place=np.stack([path.x, path.y], 1)[middle] / 64.0,
        speed=(tracks.camera[middle + 1] - tracks.camera[middle - 1]) / 128.0,
        motion=tracks.index("motion", MOTIONS)[middle],
        camera=tracks.index("camera", CAMERAS)[middle],
        settled=tracks.settled()[middle],
        scene=scene,
    )
