"""The text encoder: it learns to tell what a caption says, and the teacher then reads it as it is.

Captions cost nothing without their pictures, so in minutes the encoder reads more of them than a teacher ever sees, and
the teacher is given rows in which every attribute can be found. Readers ask the encoder's rows one question each,
by attention, which is how the network will read them; they are dropped after training.

An encoder that networks read already can be mended (`mend`): it learns from captions that it misreads, and keeps the
rows of those that it reads rightly where they are.

Reads:  a world's captions with what they say (data/vista.py).
Writes: a run folder; weights/text.safetensors holds the averaged encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid.data.vista import FACTS, told_facts
from causvid.errors import UserError
from causvid.presets import VISTA_TEXT
from causvid.shapes import Scalar, Text
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.training import parallel
from causvid.training.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from causvid.training.cpu import fast_training
from causvid.training.ema import EMA
from causvid.training.optim import OptimConfig, all_parameters, build_optimizers, learning_rate, step_all
from causvid.training.run import Budget, Run, take_steps

LOG_EVERY = 20  # steps
STATUS_SECONDS = 20.0
LOOKED_THROUGH = 6  # captions read for each that is learnt from, in search of misread ones
HELD_OUT = 1024  # captions of the scenes that nothing is trained on

# A caption by its number and split, and the answer to every question.
Facts = Callable[[int, str], tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class TextConfig:
    text: VistaTextConfig
    optim: OptimConfig
    batch: int = 192
    ema_decay: float = 0.99
    mend: str | None = None  # the checkpoint of a finished run, to go on from so that what reads its rows still can
    stay: float = 30.0  # mending: the weight of the mean square by which rows of captions read rightly have moved
    seed: int = 0
    checkpoint_minutes: float = 2.0


VISTA = TextConfig(text=VISTA_TEXT, optim=OptimConfig(lr=2e-3, decay_from=0.4))
PRESETS = {"vista": VISTA}


@dataclass(frozen=True)
class Lesson:
    """What there is to read: the words, the questions with their answers, and captions."""

    vocabulary: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]  # the first answer is that the caption does not say
    facts: Facts


def vista_lesson() -> Lesson:
    from causvid.worlds.vista.captions import vocabulary

    return Lesson(tuple(vocabulary()), FACTS, told_facts)


class Readers(nn.Module):
    """One query for each question, over all rows as the network sees them: padding included, no mask."""

    def __init__(self, width: int, questions: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(questions), width))
        self.keys = nn.Linear(width, width)
        self.answers = nn.ModuleList(nn.Linear(width, len(answers)) for answers in questions.values())

    def forward(self, text: Text) -> list[Tensor]:
        weights = (self.keys(text) @ self.queries.T * text.shape[-1] ** -0.5).softmax(dim=1)  # [B, Y, questions]
        found = weights.mT @ text
        return [answer(found[:, index]) for index, answer in enumerate(self.answers)]


class Pupil(nn.Module):
    """The encoder and its readers, trained and averaged as one."""

    def __init__(self, cfg: VistaTextConfig, lesson: Lesson) -> None:
        super().__init__()
        self.text = VistaText(cfg, lesson.vocabulary)
        self.readers = Readers(cfg.width, lesson.questions)

    def forward(self, captions: list[str]) -> list[Tensor]:
        """Logits [B, answers] for every question."""
        return self.readers(self.text(captions))


def loss_of_answers(logits: list[Tensor], answers: Tensor) -> Scalar:
    """The sum over all questions of their mean cross-entropy with `answers` [questions, B]."""
    return torch.stack([F.cross_entropy(x.float(), answer) for x, answer in zip(logits, answers)]).sum()


def train(
    cfg: TextConfig,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    lesson: Lesson | None = None,
) -> Path:
    """Train until the budget is used up, or resume and do so. Returns the weight file; `lesson`: Vista's captions."""
    sitting = Sitting(cfg, run_dir, parallel.start(device), lesson or vista_lesson())
    take_steps(sitting, Budget(minutes, steps, sitting.seconds), save_minutes=cfg.checkpoint_minutes)
    return sitting.file


class Sitting:
    def __init__(self, cfg: TextConfig, run_dir: Path, device: torch.device, lesson: Lesson) -> None:
        if parallel.num_ranks() > 1:
            raise UserError("the text stage is minutes of one process; start it without torchrun.")
        self.cfg, self.device, self.lesson = cfg, device, lesson
        self.file = run_dir / "weights" / "text.safetensors"
        self.run = Run(run_dir, cfg, data=f"captions over {len(lesson.vocabulary)} words")
        torch.manual_seed(cfg.seed)
        self.pupil = Pupil(cfg.text, lesson).to(device)
        self.before: Pupil | None = None
        if cfg.mend is not None:
            load_checkpoint(read_checkpoint(Path(cfg.mend)), modules={"ema": self.pupil}, optimizers={})
            self.before = deepcopy(self.pupil).eval().requires_grad_(False)
            self.pupil.readers.requires_grad_(False)
        self.ema = EMA(deepcopy(self.pupil), cfg.ema_decay)
        self.modules = {"pupil": self.pupil, "ema": self.ema.averages}
        trained = [self.pupil.text] if self.before else [self.pupil.text, self.pupil.readers]
        self.optimizers = build_optimizers(cfg.optim, trained)
        self.step, self.seconds = 0, 0.0
        if self.run.checkpoint is not None:
            self.resume(self.run.checkpoint)

    def take_step(self, progress: float) -> None:
        cfg = self.cfg
        with fast_training(self.device, torch.bfloat16):
            loss = self.mending_loss(self.before) if self.before else self.learning_loss()
        loss.backward()
        norm = parallel.clip_gradients(all_parameters(self.optimizers), cfg.optim.clip)
        if not math.isfinite(norm):
            raise UserError(f"training diverged at step {self.step}; start a new run with a lower optim.lr.")
        step_all(self.optimizers, learning_rate(cfg.optim, self.step, progress))
        self.ema.update(self.pupil)
        self.step += 1
        if self.step % LOG_EVERY == 0:
            values = {
                "loss": float(loss.detach()),
                "captions": self.step * cfg.batch,
                "seconds": round(self.seconds, 2),
            }
            self.run.log(self.step, **values)
            line = f"{progress:6.1%}  step {self.step}  loss {values['loss']:.3f}  {values['captions']} captions"
            self.run.status(line, every=STATUS_SECONDS)

    def learning_loss(self) -> Scalar:
        start = self.step * self.cfg.batch
        captions, answers = self.read(range(start, start + self.cfg.batch), "train")
        return loss_of_answers(self.pupil(captions), answers)

    def mending_loss(self, before: Pupil) -> Scalar:
        """Of captions that were misread, at most half of the batch, and of others, whose rows are to stay."""
        size = self.cfg.batch
        start = self.step * size * LOOKED_THROUGH
        captions, answers = self.read(range(start, start + size * LOOKED_THROUGH), "train")
        with torch.no_grad():
            rows = before.text(captions)
            right = torch.stack([x.argmax(-1) == answer for x, answer in zip(before.readers(rows), answers)]).all(0)
        misread, others = (~right).nonzero()[: size // 2, 0], right.nonzero()[:, 0]
        chosen = torch.cat([misread, others[: size - len(misread)]])
        now = self.pupil.text([captions[index] for index in chosen.tolist()])
        moved = (now - rows[chosen])[len(misread) :].float().square().mean()
        return loss_of_answers(self.pupil.readers(now), answers[:, chosen]) + self.cfg.stay * moved

    def read(self, numbers: Sequence[int], split: str) -> tuple[list[str], Tensor]:
        """Captions, and their answers [questions, B]."""
        captions, answers = zip(*(self.lesson.facts(number, split) for number in numbers))
        return list(captions), torch.tensor(answers, device=self.device).T

    @torch.no_grad()
    def scores(self, split: str) -> dict[str, float]:
        """The share of right answers of the averaged weights, per question."""
        captions, answers = self.read(range(HELD_OUT), split)
        right = [
            (x.argmax(-1) == answer).float().mean().item() for x, answer in zip(self.ema.averages(captions), answers)
        ]
        return dict(zip(self.lesson.questions, right))

    def save(self) -> None:
        state = {"seconds": self.seconds, "ema_updates": self.ema.num_updates}
        folder, about = self.run.folder / "checkpoints", self.run.about
        save_checkpoint(folder, self.step, modules=self.modules, optimizers=self.optimizers, state=state, about=about)
        self.file.parent.mkdir(exist_ok=True)
        self.ema.averages.text.save(self.file, torch.float32)
        for split in ("val", "paraphrase"):
            scores = self.scores(split)
            self.run.log(self.step, **{f"{split} {question}": share for question, share in scores.items()})
            worst = min(scores, key=scores.__getitem__)
            mean = sum(scores.values()) / len(scores)
            self.run.status(f"step {self.step}: {split} answers {mean:.4f} right, least {worst} {scores[worst]:.4f}")

    def resume(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, modules=self.modules, optimizers=self.optimizers)
        self.step, state = checkpoint.step, checkpoint.state
        self.seconds, self.ema.num_updates = state["seconds"], state["ema_updates"]
        self.run.status(f"resuming at step {self.step}, after {self.seconds / 60:.1f} minutes of training")
