"""The judge's head over time, trained without pixels: simulated tracks with the net's own errors laid over them.

Errors are taken from rendered clips of the same hero and motion (places) and of the same biome and camera (speed): a
still boat is misread in the same way in every frame, a bobbing one is not.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from causvid.evaluate.judge_data import VALUES, augment, judge_scene, labels_of, stacks_of, to_input, track
from causvid.evaluate.judges import Judge, shift_costs, steps_from
from causvid.noise import seeded
from causvid.training.optim import OptimConfig, learning_rate, step_all
from causvid.training.run import Budget
from causvid.worlds.vista.render import render

FIRST_ERROR, FIRST_TRACK = 1_000_000, 2_000_000  # scene numbers, away from those of the stacks
ERROR_CLIPS, TRACKS = 300, 6000
SQUARE_EVERY = 5
Key = tuple[str, str]


@dataclass
class Errors:
    """What the net got wrong along whole clips, [clips, S, ...], and which clips are alike."""

    place: Tensor
    speed: Tensor
    visible: Tensor
    by_motion: dict[Key, list[int]]  # (hero, motion)
    by_camera: dict[Key, list[int]]  # (biome, camera)


@torch.inference_mode()
def measure_errors(judge: Judge, count: int = ERROR_CLIPS, on_clip: Callable[[int], None] | None = None) -> Errors:
    places, speeds, visibles = [], [], []
    by_motion, by_camera = defaultdict(list), defaultdict(list)
    for row in range(count):
        scene, start = judge_scene(FIRST_ERROR + row, judge.role)
        scene = replace(scene, events=())
        frames, state = render(scene, 81, 64, 112, start_frame=start)
        labels = labels_of(scene, state, 64)
        x = to_input(stacks_of(frames))
        x = augment(x, seeded(row)) if row % 5 == 0 else x
        out = judge.stack_net(x)
        places.append(out.place.float() - torch.from_numpy(labels.place).float())
        speeds.append(judge.speed_net(shift_costs(x)) - torch.from_numpy(labels.speed).float())
        visibles.append(out.visible.float().sigmoid())
        by_motion[scene.hero, scene.motion].append(row)
        by_camera[scene.biome, scene.camera].append(row)
        if on_clip is not None:
            on_clip(row)
    return Errors(torch.stack(places), torch.stack(speeds), torch.stack(visibles), dict(by_motion), dict(by_camera))


@dataclass
class Tracks:
    """Clean tracks, stacked: [N, S, ...]."""

    place: Tensor
    speed: Tensor
    motion: Tensor
    camera: Tensor
    settled: Tensor
    hero: Tensor  # [N]
    motion_keys: list[Key]
    camera_keys: list[Key]


def simulate(role: str, count: int = TRACKS) -> Tracks:
    paths = []
    for number in range(count):
        scene, start = judge_scene(FIRST_TRACK + number, role)
        paths.append(track(scene, 81, start, 64.0 if number % SQUARE_EVERY == 0 else 112.0))

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(path._asdict()[name]) for path in paths]))

    return Tracks(
        stacked("place").float(), stacked("speed").float(), stacked("motion"), stacked("camera"), stacked("settled"),
        torch.tensor([VALUES["hero"].index(path.scene.hero) for path in paths]),
        [(path.scene.hero, path.scene.motion) for path in paths],
        [(path.scene.biome, path.scene.camera) for path in paths],
    )  # fmt: skip


def draw_batch(tracks: Tracks, errors: Errors, size: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Steps [B, L, STEP_WIDTH] of random stretches, and motion, camera, settled [B, L]."""
    rows = torch.randint(len(tracks.hero), (size,), generator=rng)
    picks = torch.rand(2, size, generator=rng)
    everyone = range(len(errors.place))

    def alike(table: dict[Key, list[int]], keys: list[Key], part: Tensor) -> Tensor:
        groups = [table.get(keys[r], everyone) for r in rows.tolist()]
        return torch.tensor([group[int(p * len(group))] for group, p in zip(groups, part.tolist())])

    by_motion = alike(errors.by_motion, tracks.motion_keys, picks[0])
    by_camera = alike(errors.by_camera, tracks.camera_keys, picks[1])
    place = tracks.place[rows] + errors.place[by_motion]
    speed = tracks.speed[rows] + errors.speed[by_camera]
    hero = F.one_hot(tracks.hero[rows], len(VALUES["hero"])).float()
    unsure = (torch.rand(size, 1, generator=rng) < 0.2).float() * torch.rand(size, 1, generator=rng)
    hero = hero + unsure * (torch.rand(hero.shape, generator=rng).pow(4).softmax(1) - hero)
    length = int(torch.randint(8, place.shape[1] + 1, (), generator=rng))
    first = int(torch.randint(place.shape[1] - length + 1, (), generator=rng))
    cut = slice(first, first + length)
    steps = steps_from(place[:, cut], errors.visible[by_motion][:, cut], speed[:, cut], hero)
    return steps, tracks.motion[rows][:, cut], tracks.camera[rows][:, cut], tracks.settled[rows][:, cut]


def judge_rate(lr: float, step: int, progress: float) -> float:
    """The learning rate of all judges: a hundred steps up, then down a half cosine."""
    return learning_rate(OptimConfig(lr, decay_from=0.0, decay_to=0.02), step, progress)


def train_head(
    judge: Judge,
    errors: Errors,
    tracks: Tracks,
    minutes: float,
    seed: int,
    on_step: Callable[[float, dict[str, float]], None],
    batch: int = 128,
    lr: float = 2e-3,
) -> None:
    """Train `judge.clip_net` in place for `minutes`."""
    optimizer = torch.optim.AdamW(judge.clip_net.parameters(), lr, (0.9, 0.99), weight_decay=0.01)
    budget, step = Budget(minutes=minutes), 0
    judge.clip_net.train()
    while (done := budget.progress(step)) < 1:
        steps, motion, camera, settled = draw_batch(tracks, errors, batch, seeded(seed, 1, step))
        out = judge.clip_net(steps)
        weight = settled.flatten().float() / settled.sum()
        loss, right = torch.zeros(()), {}
        for name, target in (("motion", motion), ("camera", camera)):
            each = F.cross_entropy(out[name].flatten(0, 1), target.flatten(), reduction="none")
            loss = loss + (each * weight).sum()
            right[name] = float(((out[name].argmax(-1) == target).flatten() * weight).sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.clip_net.parameters(), 2.0)
        step_all({"head": optimizer}, judge_rate(lr, step, done))
        step += 1
        if step % 100 == 0:
            on_step(done, {"step": step, "loss": float(loss.detach()), **right})
    judge.clip_net.eval()
