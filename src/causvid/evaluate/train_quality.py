"""Train the quality judge on rendered clips, spoilt on the way: `train(QualityTraining(), folder, minutes=10)`."""

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from causvid.evaluate.distortions import NAMES, TRAINED, distort
from causvid.evaluate.judge_data import fingerprint, rendered
from causvid.evaluate.quality import SPATIAL, STACKS, TEMPORAL, WINDOW, QualityJudge, windows_of
from causvid.evaluate.train_head import judge_rate
from causvid.noise import mix, seeded
from causvid.training.checkpoint import load_checkpoint, save_checkpoint, write_weights
from causvid.training.optim import step_all
from causvid.training.run import Budget, Run, stop_signal

SEGMENT = 40  # frames of a cached clip: ramps need room
CACHE_SHARE, HEAD_SHARE = 0.2, 0.25  # of the time: rendering, and the severity in space by itself
MAX_CLIPS = 3000
WINDOWS = 8  # of each clip, that its head sees
Amounts = dict[str, np.ndarray]  # by name of a flaw, [F]
Seen = tuple[Tensor, Tensor]  # [N, SEEN], and the severity [N]
HEAD_STEPS, HEAD_BATCH, HEAD_LR = 4000, 512, 2e-3


@dataclass(frozen=True)
class QualityTraining:
    seed: int = 33
    batch: int = 12
    lr: float = 2e-3
    weight_decay: float = 0.02


def train(cfg: QualityTraining, run_dir: Path, minutes: float) -> Path:
    """Train within `minutes`; the same call resumes. Returns the weight file."""
    run = Run(run_dir, cfg, data=f"vista judge scenes {fingerprint('quality')}")
    torch.manual_seed(cfg.seed)
    judge = QualityJudge()
    with stop_signal() as stopped, Progress(console=run.console, transient=True) as progress:
        clips = fill_cache(run_dir / "cache", 60 * minutes * CACHE_SHARE, progress, stopped)
        _train(cfg, run, judge, clips, minutes * (1 - CACHE_SHARE - HEAD_SHARE) * 0.95, progress, stopped)
        judge.eval()
        data = see_spoilt(judge, clips, cfg.seed, 60 * minutes * HEAD_SHARE * 0.8, progress, stopped)
        if not stopped:
            train_spatial(judge, data, cfg.seed)
    with torch.inference_mode():
        features = [judge(_to_input(windows_of(clip)[1:2]))["feature"] for clip in clips[:: max(1, len(clips) // 600)]]
    judge.fit_clean(torch.cat(features).float())
    path = run_dir / "judge_quality.safetensors"
    about = {"role": "quality", "commit": str(run.commit), "fingerprint": fingerprint("quality")}
    write_weights(path, judge, about=about, dtype=torch.bfloat16)
    return path


def fill_cache(folder: Path, seconds: float, progress: Progress, stopped: list[int]) -> np.ndarray:
    """Clean clips on disk, uint8 [clips, 40, 64, 112, 3]; rendered once."""
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "about.json"
    known = json.loads(about.read_text()) if about.exists() else {}
    count, spent = int(known.get("clips", 0)), float(known.get("seconds", 0.0))

    def save() -> None:
        about.write_text(json.dumps({"clips": count, "seconds": spent}))

    shape = (MAX_CLIPS, SEGMENT, 64, 112, 3)
    mode = "r+" if count else "w+"
    clips = np.lib.format.open_memmap(folder / "clips.npy", mode, np.uint8, shape)
    task = progress.add_task("rendering clips", total=seconds)
    while spent < seconds and count < MAX_CLIPS and not stopped:
        start = time.monotonic()
        clips[count] = rendered("quality", count, num_frames=SEGMENT)[1]
        count, spent = count + 1, spent + time.monotonic() - start
        progress.update(task, completed=spent)
        if count % 100 == 0:
            save()
    save()
    return clips[:count]


def spoil(clip: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A window [13, 64, 64, 3] with no, one or two flaws; which [8], and their severity per stack [6] and in time."""
    rng = np.random.default_rng(mix(number) >> 1)
    column = int(rng.integers(clip.shape[2] - 64 + 1))
    frames = clip[:, :, column : column + 64]
    first = int(rng.integers(len(frames) - WINDOW + 1))
    kind = rng.random()
    chosen = []
    if kind > 0.85:
        chosen = [TEMPORAL[rng.integers(len(TEMPORAL))], SPATIAL[rng.integers(len(SPATIAL))]]
    elif kind > 0.2:
        chosen = [TRAINED[rng.integers(len(TRAINED))]]
    frames, amounts = with_flaws(frames, chosen, rng)
    cut = slice(first, first + WINDOW)
    flaws = np.zeros(len(TRAINED), np.float32)
    for name, amount in amounts.items():
        flaws[TRAINED.index(name)] = float(amount[cut].max() > 0.08)
    spatial, temporal = severity_of(amounts, SPATIAL, frames), severity_of(amounts, TEMPORAL, frames)
    return frames[cut], flaws, per_stack(spatial[cut]), float(temporal[cut].mean())


def _to_input(windows: np.ndarray) -> Tensor:
    return torch.from_numpy(windows).permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1)


def _train(cfg: QualityTraining, run: Run, judge: QualityJudge, clips: np.ndarray, minutes: float, progress: Progress,
           stopped: list[int]) -> None:  # fmt: skip
    optimizer = torch.optim.AdamW(judge.parameters(), cfg.lr, (0.9, 0.99), weight_decay=cfg.weight_decay)
    modules, optimizers, step, seconds = {"judge": judge}, {"judge": optimizer}, 0, 0.0
    if run.checkpoint is not None:
        load_checkpoint(run.checkpoint, modules=modules, optimizers=optimizers)
        step, seconds = run.checkpoint.step, run.checkpoint.state["seconds"]
    budget = Budget(minutes=minutes, seconds_before=seconds)
    task = progress.add_task("training on windows", total=1.0)
    judge.train()

    def save() -> None:
        save_checkpoint(run.folder / "checkpoints", step, modules=modules, optimizers=optimizers,
                        state={"seconds": budget.seconds}, about=run.about, keep=1)  # fmt: skip

    saved = time.monotonic()
    while (done := budget.progress(step)) < 1 and not stopped:
        rows = torch.randint(len(clips), (cfg.batch,), generator=seeded(cfg.seed, step)).tolist()
        windows, flaws, spatial, temporal = zip(*(spoil(clips[r], mix(cfg.seed, step, i)) for i, r in enumerate(rows)))
        loss, numbers = quality_loss(judge, _to_input(np.stack(windows)), torch.from_numpy(np.stack(flaws)),
                                     torch.from_numpy(np.stack(spatial)), torch.tensor(temporal))  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        step_all(optimizers, judge_rate(cfg.lr, step, done))
        step += 1
        if step % 50 == 0:
            run.log(step, loss=float(loss.detach()), **numbers)
            progress.update(task, completed=done, description=f"windows: flaws {numbers['flaws']:.2f}")
        if time.monotonic() - saved > 90:
            saved = time.monotonic()
            save()
    save()


def see_spoilt(judge: QualityJudge, clips: np.ndarray, seed: int, seconds: float, progress: Progress,
               stopped: list[int]) -> Seen:  # fmt: skip
    """What the severity in space is told from, for spoilt windows of as many clips as the time allows."""
    task = progress.add_task("reading spoilt windows", total=len(clips))
    start, seen, wanted = time.monotonic(), [], []
    for number, clip in enumerate(clips):
        windows, severities = zip(*(spoil_picture(clip, mix(seed, number, i)) for i in range(WINDOWS)))
        with torch.no_grad():
            seen.append(judge(_to_input(np.stack(windows)))["seen"].flatten(0, 1))
        wanted.append(torch.from_numpy(np.stack(severities)).flatten())
        progress.update(task, advance=1)
        if stopped or time.monotonic() - start > seconds:
            break
    return torch.cat(seen), torch.cat(wanted)


def train_spatial(judge: QualityJudge, data: Seen, seed: int) -> None:
    """The head of the severity in space alone, in place. What it sees was computed once and is gone through many times,
    which is what faint colours and little light take."""
    seen, severity = data
    optimizer = torch.optim.AdamW(judge.spatial.parameters(), HEAD_LR, (0.9, 0.99), weight_decay=0.02)
    for step in range(HEAD_STEPS):
        rows = torch.randint(len(seen), (HEAD_BATCH,), generator=seeded(seed, step))
        loss = F.smooth_l1_loss(judge.spatial(seen[rows])[:, 0].sigmoid(), severity[rows], beta=0.1)
        loss.backward()
        step_all({"spatial": optimizer}, judge_rate(HEAD_LR, step, step / HEAD_STEPS))


def spoil_picture(clip: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A window [13, 64, 112, 3], most of them with one flaw in space, and its severity per stack [6]."""
    rng = np.random.default_rng(mix(number) >> 1)
    first = int(rng.integers(len(clip) - WINDOW + 1))
    spatial, temporal = rng.permutation(SPATIAL), rng.choice(TEMPORAL)
    kind = rng.random()
    chosen = spatial[:2] if kind > 0.9 else [temporal, spatial[0]] if kind > 0.8 else spatial[:1]
    chosen = [] if kind < 0.15 else [temporal] if kind < 0.25 else chosen
    clip, amounts = with_flaws(clip, chosen, rng)
    cut = slice(first, first + WINDOW)
    return clip[cut], per_stack(severity_of(amounts, SPATIAL, clip)[cut])


def with_flaws(frames: np.ndarray, names: Iterable[str], rng: np.random.Generator) -> tuple[np.ndarray, Amounts]:
    """Spoilt in these ways, at strengths of chance, and how much of each there is in every frame."""
    amounts = {}
    for name in names:
        frames, amounts[name] = distort(frames, name, float(rng.uniform(0.05, 1.0)), rng)
    return frames, amounts


def severity_of(amounts: Amounts, names: Collection[str], frames: np.ndarray) -> np.ndarray:
    """[F]: the worst of these ways."""
    return np.max([np.zeros(len(frames), np.float32), *(a for name, a in amounts.items() if name in names)], axis=0)


def per_stack(severity: np.ndarray) -> np.ndarray:
    """[13] of frames -> [6] of the stacks of three."""
    return np.array([severity[2 * i : 2 * i + 3].mean() for i in range(STACKS)], np.float32)


def quality_loss(
    judge: QualityJudge, x: Tensor, flaws: Tensor, spatial: Tensor, temporal: Tensor
) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        out = judge(x)
    parts = {
        "flaws": F.binary_cross_entropy_with_logits(out["flaws"].float(), flaws),
        "spatial": F.smooth_l1_loss(out["spatial"].float().sigmoid(), spatial, beta=0.1),
        "temporal": F.smooth_l1_loss(out["temporal"].float().sigmoid(), temporal, beta=0.1),
    }
    right = ((out["flaws"] > 0) == (flaws > 0)).float().mean()
    numbers = {"flaws": float(right), **{f"{name} loss": float(value.detach()) for name, value in parts.items()}}
    return 2 * parts["flaws"] + 3 * parts["spatial"] + 3 * parts["temporal"], numbers


def measure_quality(judge: QualityJudge, count: int = 60, strength: float = 0.6) -> dict[str, dict[str, float]]:
    """Mean response to every named distortion on held-out clips, those never trained on included."""
    table: dict[str, dict[str, float]] = {}
    clips = [rendered("held-out", 90_000 + n)[1] for n in range(count)]
    for name in ("clean", *NAMES):
        rows = []
        for number, clip in enumerate(clips):
            frames = clip if name == "clean" else distort(clip, name, strength, np.random.default_rng(number))[0]
            read = judge.read(frames)
            top = TRAINED[int(read.flaws.mean(0).argmax())] if read.flaws.max() > 0.5 else "clean"
            rows.append([read.spatial.mean(), read.temporal.mean(), read.naturalness, top == name, top == "clean"])
        mean = np.mean(np.array(rows, float), 0)
        table[name] = dict(zip(("spatial", "temporal", "naturalness", "named", "called clean"), map(float, mean)))
    return table


__all__ = ["QualityTraining", "measure_quality", "train"]
