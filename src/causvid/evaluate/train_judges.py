"""Train a judge from rendered clips, within a number of minutes: `train(JudgeTraining("report"), folder, minutes=12)`.

Three parts share the time: rendering a cache of stacks, training the net over stacks on it, and training the head over
time (see train_head).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from causvid.codecs.vista import VistaCodec
from causvid.evaluate.judge_data import (
    STACK,
    VALUES,
    Labels,
    augment,
    fingerprint,
    labels_of,
    rendered,
    stacks_of,
    to_input,
)
from causvid.evaluate.judges import GLOBAL, ROLES, Judge, grid, shift_costs
from causvid.evaluate.protocol import through_codec
from causvid.evaluate.train_head import ERROR_CLIPS, judge_rate, measure_errors, simulate, train_head
from causvid.noise import seeded
from causvid.training.checkpoint import load_checkpoint, save_checkpoint, write_weights
from causvid.training.optim import step_all
from causvid.training.run import Budget, Run, stop_signal

CACHE_SHARE, STACKS_SHARE, HEAD_SHARE = 0.25, 0.55, 0.1  # of the minutes; the rest measures the net's errors
STACKS_PER_CLIP = 9
SQUARE_EVERY = 6  # clips: one square clip among so many
SPEED_STEPS = 3000
CODEC_EVERY = 3  # steps: one on pictures that went through the codec among so many
CODEC_FRAMES = 33
CODEC_STACKS = CODEC_FRAMES // STACK
FIRST_CODEC = 500_000  # scene numbers of clips for the codec
MAX_CLIPS = 12_000


@dataclass(frozen=True)
class JudgeTraining:
    role: str
    codec_clips: int = 500  # clips that go through the packaged codec; 0 trains without it
    seed: int = 0
    batch: int = 48
    lr: float = 2.5e-3
    weight_decay: float = 0.02


def train(cfg: JudgeTraining, run_dir: Path, minutes: float) -> Path:
    """Train the judge `cfg.role`; the same call resumes. Returns the weight file, or the folder if stopped."""
    if cfg.role not in ROLES:
        raise ValueError(f"there is no judge '{cfg.role}'; the judges are {' and '.join(ROLES)}")
    run = Run(run_dir, cfg, data=f"vista judge scenes {fingerprint(cfg.role)}")
    torch.manual_seed(cfg.seed)  # of the initial weights only
    judge = Judge(cfg.role)
    cache = StackCache(run_dir / "cache", cfg.role)
    started = time.monotonic()
    with stop_signal() as stopped, Progress(console=run.console, transient=True) as progress:
        cache.fill(60 * minutes * CACHE_SHARE, progress, stopped)
        cache.fill_codec(cfg.codec_clips, progress, stopped)
        train_stacks(cfg, run, judge, cache, minutes * STACKS_SHARE, progress, stopped)
        if not stopped:
            train_speed(cfg, run, judge, cache, progress)
            _head(cfg, run, judge, minutes * HEAD_SHARE, progress)
    if stopped:
        run.status("stopped and saved; the same call goes on")
        return run_dir
    run.status(f"trained in {(time.monotonic() - started) / 60:.1f} min of this sitting")
    about = {"role": cfg.role, "commit": str(run.commit), "fingerprint": fingerprint(cfg.role)}
    path = run_dir / f"judge_{cfg.role}.safetensors"
    write_weights(path, judge, about=about, dtype=torch.bfloat16)
    return path


def train_speed(cfg: JudgeTraining, run: Run, judge: Judge, cache: StackCache, progress: Progress) -> None:
    """The camera's net: shift costs are measured once, the rest takes seconds."""
    costs, truth = [], []
    parts = cache.open()
    shares = {part: 6000 if part == "wide" else 2000 for part in parts}
    task = progress.add_task("measuring shifts", total=sum(shares.values()))
    for part, (pixels, table) in parts.items():
        rows = torch.randperm(cache.rows(part), generator=seeded(cfg.seed, 2))[: shares[part]].sort().values
        for number, batch in enumerate(rows.split(100)):
            x = to_input(pixels[batch.numpy()])
            costs.append(shift_costs(augment(x, seeded(cfg.seed, 3, number)) if number % 2 else x))
            truth.append(torch.from_numpy(table[batch.numpy(), StackCache.COLUMNS.index("speed")]))
            progress.advance(task, len(batch))
    # the mirrored world is a second data set for free
    x, y = torch.cat(costs), torch.cat(truth)
    x, y = torch.cat([x, x.flip(2)]), torch.cat([y, -y])
    optimizer = torch.optim.AdamW(judge.speed_net.parameters(), 3e-3, weight_decay=0.02)
    for step in range(SPEED_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / SPEED_STEPS) + 1e-5
        rows = torch.randint(len(x), (256,), generator=seeded(cfg.seed, 4, step))
        loss = F.smooth_l1_loss(64 * judge.speed_net(x[rows]), 64 * y[rows], beta=0.3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    run.log(900_000, speed_loss=float(loss.detach()))


def _head(cfg: JudgeTraining, run: Run, judge: Judge, minutes: float, progress: Progress) -> None:
    task = progress.add_task("measuring errors", total=ERROR_CLIPS)
    errors = measure_errors(judge, on_clip=lambda row: progress.update(task, completed=row))
    tracks = simulate(cfg.role)
    task = progress.add_task("training on tracks", total=1.0)

    def told(done: float, numbers: dict[str, float]) -> None:
        progress.update(task, completed=done, description=f"tracks: motion {numbers['motion']:.2f}")
        run.log(1_000_000 + int(numbers["step"]), **{k: v for k, v in numbers.items() if k != "step"})

    train_head(judge, errors, tracks, minutes, cfg.seed, told)


class StackCache:
    """Stacks of rendered clips on disk, uint8 [N, 64, W, 9] for both shapes of picture, with their labels."""

    COLUMNS = (*VALUES, "x", "y", "second x", "second y", "visible", "speed", "settled")

    def __init__(self, folder: Path, purpose: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.purpose = folder, purpose
        self.about = folder / "about.json"
        known = json.loads(self.about.read_text()) if self.about.exists() else {}
        self.clips, self.codec_clips = int(known.get("clips", 0)), int(known.get("codec clips", 0))
        self.seconds = float(known.get("seconds", 0.0))

    def _arrays(self, part: str, mode: str) -> tuple[Any, Any]:
        count = 5000 * CODEC_STACKS if part == "codec" else MAX_CLIPS * STACKS_PER_CLIP
        width = 64 if part == "square" else 112
        pixels = np.lib.format.open_memmap(self.folder / f"stacks-{part}.npy", mode, np.uint8, (count, 64, width, 9))
        shape = (count, len(self.COLUMNS))
        return pixels, np.lib.format.open_memmap(self.folder / f"labels-{part}.npy", mode, np.float32, shape)

    def rows(self, part: str) -> int:
        squares = -(-self.clips // SQUARE_EVERY)
        clips = {"square": squares, "wide": self.clips - squares}
        return self.codec_clips * CODEC_STACKS if part == "codec" else STACKS_PER_CLIP * clips[part]

    def fill(self, seconds: float, progress: Progress, stopped: list[int]) -> None:
        """Render until `seconds` are used up, over all sittings."""
        files = {part: self._arrays(part, "r+" if self.clips else "w+") for part in ("square", "wide")}
        task = progress.add_task("rendering clips", total=seconds)
        while self.seconds < seconds and self.clips < MAX_CLIPS and not stopped:
            start = time.monotonic()
            part = "square" if self.clips % SQUARE_EVERY == 0 else "wide"
            row = self.rows(part)
            scene, frames, state = rendered(self.purpose, self.clips, 64 if part == "square" else 112)
            labels = labels_of(scene, state, 64)
            # every third stack, from another place each time
            chosen = np.arange(self.clips % 3, len(frames) // STACK, 3)[:STACKS_PER_CLIP]
            pixels, table = files[part]
            pixels[row : row + len(chosen)] = stacks_of(frames)[chosen]
            table[row : row + len(chosen)] = self._table(labels)[chosen]
            self.clips += 1
            self.seconds += time.monotonic() - start
            progress.update(task, completed=self.seconds)
            if self.clips % 200 == 0:
                self._save()
        self._save()

    def fill_codec(self, count: int, progress: Progress, stopped: list[int]) -> None:
        """Clips as the packaged codec gives them back: blurred where they move, which is what generators' clips are."""
        if self.codec_clips >= count:
            return
        round_trip = through_codec(VistaCodec.load_packaged())
        pixels, table = self._arrays("codec", "r+" if self.codec_clips else "w+")
        task = progress.add_task("through the codec", total=count)
        while self.codec_clips < count and not stopped:
            number = FIRST_CODEC + self.codec_clips
            scene, frames, state = rendered(self.purpose, number, num_frames=CODEC_FRAMES)
            row = self.rows("codec")
            pixels[row : row + CODEC_STACKS] = stacks_of(round_trip(frames))
            table[row : row + CODEC_STACKS] = self._table(labels_of(scene, state, 64))
            self.codec_clips += 1
            progress.update(task, completed=self.codec_clips)
            if self.codec_clips % 50 == 0:
                self._save()
        self._save()

    def _save(self) -> None:
        known = {"clips": self.clips, "seconds": self.seconds, "codec clips": self.codec_clips}
        self.about.write_text(json.dumps(known))

    def _table(self, labels: Labels) -> np.ndarray:
        columns = [labels.value[name] for name in VALUES]
        columns += [*labels.place.T, *labels.second_place.T, labels.visible, labels.speed, labels.settled]
        return np.stack([np.asarray(column, np.float32) for column in columns], 1)

    def open(self) -> dict[str, tuple[Any, Any]]:
        """Part -> (pixels, labels), to read from."""
        return {part: self._arrays(part, "r") for part in ("square", "wide", "codec") if self.rows(part)}


def _mirror(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The world seen in a mirror: every other batch, so that left and right are learned as such."""
    columns = StackCache.COLUMNS
    table = table.clone()
    wide = x.shape[-1] / x.shape[-2]
    for name in ("x", "second x"):
        table[:, columns.index(name)] = wide - table[:, columns.index(name)]
    table[:, columns.index("speed")] *= -1
    return x.flip(-1), table


def stack_loss(judge: Judge, x: Tensor, table: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The net's loss on stacks x [N, 9, H, W] with the labels of StackCache.COLUMNS."""
    column = {name: table[:, i] for i, name in enumerate(StackCache.COLUMNS)}
    with torch.autocast("cpu", torch.bfloat16):
        out = judge.stack_net(x)
    settled, visible = column["settled"] > 0, column["visible"]
    has_second = column["second"] > 0
    use = dict.fromkeys(GLOBAL, settled) | {
        "biome": torch.ones_like(settled), "hero": visible > 0.35, "colour": (visible > 0.35) & settled,
        "second": torch.ones_like(settled), "second colour": has_second}  # fmt: skip
    losses, right = {}, {}
    for name, logits in out.logits.items():
        target, mask = column[name].long(), use[name].float()
        each = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=0.02)
        losses[name] = (each * mask).sum() / mask.sum().clamp(min=1)
        right[name] = float(((logits.argmax(1) == target) * mask).sum() / mask.sum().clamp(min=1))
    place = torch.stack([column["x"], column["y"]], 1)
    second = torch.stack([column["second x"], column["second y"]], 1).nan_to_num()
    in_sight = visible > 0.35
    gap = (out.place - place).abs().sum(1)
    losses["place"] = 6 * (gap * in_sight).sum() / in_sight.sum().clamp(min=1)
    losses["second place"] = 2 * ((out.second_place - second).abs().sum(1) * has_second).mean()
    losses["heat"] = 0.3 * (
        _heat_loss(out.heat[:, 0], place, in_sight) + _heat_loss(out.heat[:, 1], second, has_second)
    )
    losses["visible"] = 0.5 * F.binary_cross_entropy_with_logits(out.visible.float(), visible.clamp(0, 1))
    numbers = right | {"place": float((gap.detach() * in_sight).sum() / in_sight.sum().clamp(min=1) * 32)}
    return sum(losses.values()), numbers  # type: ignore[return-value]


def _heat_loss(heat: Tensor, place: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of a heat map [N, h, w] with a bump of one cell's width around the true place."""
    height, width = heat.shape[1:]
    squared = (place[:, None] - grid(height, width)).square().sum(-1) * height**2
    target = torch.softmax(-squared / 2, 1)
    return -((target * heat.flatten(1)).sum(1) * mask).sum() / mask.sum().clamp(min=1)


def train_stacks(cfg: JudgeTraining, run: Run, judge: Judge, cache: StackCache, minutes: float, progress: Progress,
                 stopped: list[int]) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW(judge.stack_net.parameters(), cfg.lr, (0.9, 0.99), weight_decay=cfg.weight_decay)
    modules, optimizers, step, seconds = {"judge": judge}, {"judge": optimizer}, 0, 0.0
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, modules=modules, optimizers=optimizers)
        step, seconds = run.checkpoint.step, run.checkpoint.state["seconds"]
    budget = Budget(minutes=minutes, seconds_before=seconds)
    files = cache.open()
    task = progress.add_task("training on stacks", total=1.0)
    judge.stack_net.train()
    saved = time.monotonic()
    while (done := budget.progress(step)) < 1 and not stopped:
        rng = seeded(cfg.seed, step)
        part = "square" if step % SQUARE_EVERY == 0 else "codec" if step % CODEC_EVERY == 1 else "wide"
        part = part if part in files else "wide"
        pixels, table = files[part]
        rows = torch.randint(cache.rows(part), (cfg.batch,), generator=rng).sort().values.numpy()
        x, labels = to_input(pixels[rows]), torch.from_numpy(np.asarray(table[rows]))
        if step // SQUARE_EVERY % 2:
            x, labels = _mirror(x, labels)
        loss, numbers = stack_loss(judge, augment(x, rng), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.stack_net.parameters(), 5.0)
        step_all(optimizers, judge_rate(cfg.lr, step, done))
        step += 1
        if step % 50 == 0:
            run.log(step, loss=float(loss.detach()), **numbers)
            progress.update(task, completed=done, description=f"stacks: hero {numbers['hero']:.2f}")
        if time.monotonic() - saved > 90 or stopped:
            saved = time.monotonic()
            save_checkpoint(run.folder / "checkpoints", step, modules=modules, optimizers=optimizers,
                            state={"seconds": budget.seconds}, about=run.about, keep=1)  # fmt: skip
    save_checkpoint(run.folder / "checkpoints", step, modules=modules, optimizers=optimizers,
                    state={"seconds": budget.seconds}, about=run.about, keep=1)  # fmt: skip
    judge.stack_net.eval()


def measure_judge(
    judge: Judge, count: int, first: int = 0, width: int = 112, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, float]:
    """Accuracy per attribute over settled stretches of held-out clips, and errors in pixels of a 64 pixel picture.

    `change` spoils the frames first (the codec, noise); it must keep their number."""
    right: dict[str, list[bool]] = {name: [] for name in VALUES}
    place, speed = [], []
    for number in range(first, first + count):
        scene, frames, state = rendered("held-out", number, width)
        labels = labels_of(scene, state, 64)
        reading = judge.read(frames if change is None else change(frames))
        for name in VALUES:
            if name == "second colour" and scene.second is None:
                continue
            for stretch in settled_stretches(labels, name):
                right[name].append(reading.answer(name, stretch) == VALUES[name][labels.value[name][stretch.start]])
        seen = labels.visible > 0.5
        place += list(np.linalg.norm(reading.place - labels.place, axis=1)[seen] * 64)
        speed += list(np.abs(reading.speed - labels.speed) * 64)
    accuracy = {name: float(np.mean(answers)) for name, answers in right.items()}
    return accuracy | {"place median px": float(np.median(place)), "place p90 px": float(np.percentile(place, 90)),
                       "speed median px": float(np.median(speed))}  # fmt: skip


def settled_stretches(labels: Labels, name: str) -> list[slice]:
    """Runs of at least six stacks in which the attribute keeps one value; the whole clip for what never changes."""
    values, count = labels.value[name], len(labels.settled)
    if name in ("biome", "hero", "second", "second colour"):
        return [slice(0, count)]
    stretches, start = [], 0
    for i in range(count + 1):
        if i == count or not labels.settled[i] or values[i] != values[start]:
            if i - start >= 6 and labels.visible[start:i].mean() > 0.3:
                stretches.append(slice(start, i))
            start = i + 1 if i < count and not labels.settled[i] else i
    return stretches


__all__ = ["JudgeTraining", "measure_judge", "train"]
