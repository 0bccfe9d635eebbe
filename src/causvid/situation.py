"""What is in force in a stream between two chunks, as a value: prompt, seed, options, strength.

Every chunk remembers the situation it was made in, so going back in time is taking an old value up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from causvid.cache import CachePolicy
from causvid.errors import UserError
from causvid.rollout import PromptMode, RolloutConfig
from causvid.shapes import Latents, Text
from causvid.sources import MotionStrength
from causvid.story import first_words
from causvid.take import Event, Kind
from causvid.view_noise import Course

PROMPT_MODES = ("keep", "recache", "flush")
MAX_BLEND = 64
EDIT_MOTION = 1.0, 0.9  # (ours) of a still source and of a moving one, where it is edited
EDIT, REDRAW = 0.95, 0.7  # (ours) strengths of restyling where none is asked for
SETTINGS = ("seed", "steps", "window", "sink", "relative")

Embed = Callable[[str], Text]


@dataclass(frozen=True)
class StreamOptions:
    """How to run a stream; what is None comes with the model."""

    steps: int | None = None
    window: int | None = None  # latent frames a chunk sees
    sink: int | None = None
    relative: bool | None = None

    def apply(self, cfg: RolloutConfig) -> RolloutConfig:
        if self.steps is not None:
            cfg = cfg.with_steps(self.steps)
        policy = CachePolicy(
            window=cfg.policy.window if self.window is None else self.window,
            sink=cfg.policy.sink if self.sink is None else self.sink,
            relative=cfg.policy.relative if self.relative is None else self.relative,
        )
        try:
            policy.check(max(cfg.chunk, cfg.first_chunk or 0))
        except ValueError as error:
            raise UserError(str(error)) from None
        return replace(cfg, policy=policy)


@dataclass(frozen=True)
class Words:
    """A prompt as the network reads it, perhaps on its way to another one."""

    rows: Text
    goal: Text
    left: int = 0  # chunks until the goal is reached
    mode: PromptMode = "keep"  # what happens to the past on arrival

    def step(self) -> Words:
        if self.left == 0:
            return self
        rows = self.goal if self.left == 1 else self.rows + (self.goal - self.rows) / self.left
        return replace(self, rows=rows, left=self.left - 1)


@dataclass(frozen=True)
class Situation:
    prompt: str
    words: Words
    seed: int
    options: StreamOptions
    strength: float | MotionStrength | None = None  # None: nothing is restyled
    of: str | None = None  # what the source shows, as far as is said; None: it is drawn anew
    motion: float | None = None  # of the source, smoothed
    course: Course | None = None  # of the view, for models that are told how it moves
    travel: Tensor | None = None  # how far it had come at the frames of the last chunk [K]
    look: Tensor | None = field(default=None, compare=False)  # statistics that drift is measured from

    @classmethod
    def start(cls, event: Event, embed: Embed, course: Course | None = None) -> Situation:
        text, seed, options = (event.value.get(key) for key in ("text", "seed", "options"))
        if not isinstance(text, str) or not isinstance(options, dict):
            raise UserError("the start of this stream lacks its prompt or its options")
        rows = embed(first_words(event.value))
        course = course and course.after(first_words(event.value))
        return cls(text, Words(rows, rows), check_seed(seed), read_options(options), course=course)

    def after(self, event: Event, embed: Embed) -> Situation:
        """The situation once `event` is in force. What it does to the past is the session's business."""
        value = event.value
        if event.kind == "prompt":
            text, mode, blend = read_prompt(value)
            words = Words(self.words.rows, embed(first_words(event.value)), max(1, blend), mode)
            course = self.course and self.course.after(first_words(event.value))
            return replace(self, prompt=text, words=words, course=course, look=None)
        if event.kind == "settings":
            check_settings(value)
            seed = check_seed(value.get("seed", self.seed))
            options = read_options(asdict(self.options) | {k: v for k, v in value.items() if k != "seed"})
            return replace(self, seed=seed, options=options)
        if event.kind == "source":
            strength, of = read_strength(value.get("strength")), read_of(value.get("of"))
            if isinstance(strength, MotionStrength) and of is not None:
                strength = MotionStrength(*EDIT_MOTION)
            return replace(self, strength=strength, of=of, motion=None)
        return replace(self, look=None)  # a cut

    def with_look(self, latents: Latents) -> tuple[Situation, float]:
        """And how far the statistics of latents have moved from the first ones since the prompt or the shot began."""
        look = torch.cat([latents.float().mean((0, 1, 3, 4)), latents.float().std((0, 1, 3, 4))]).cpu()
        first = look if self.look is None else self.look
        return replace(self, look=first), float((look - first).square().mean().sqrt())

    def onward(self, kind: Kind, num_frames: int) -> Situation:
        """Into a chunk of so many latent frames."""
        if self.course is None:
            return self
        travel, course = through_chunk(self.course, kind, num_frames)
        return replace(self, course=course, travel=travel)

    def step(self) -> Situation:
        """On to the next chunk."""
        return replace(self, words=self.words.step())


def through_chunk(course: Course, kind: Kind, num_frames: int) -> tuple[Tensor, Course]:
    """How far the view comes in a chunk, and its course after that."""
    return (course if kind == "made" else course.unknown()).advance(num_frames)


# ---- reading values from outside ---------------------------------------------------------------------------------


def check_settings(value: dict[str, Any]) -> None:
    unknown = value.keys() - set(SETTINGS)
    if unknown or not value:
        raise UserError(
            f"a stream has no setting {', '.join(sorted(unknown)) or 'of no name'}; it has {', '.join(SETTINGS)}"
        )


def check_seed(seed: Any) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise UserError(f"a seed is a whole number of at most 64 bits, got {seed!r}")
    return seed


def read_options(value: dict[str, Any]) -> StreamOptions:
    for key, option in value.items():
        if key not in StreamOptions.__dataclass_fields__:
            raise UserError(f"a stream has no option '{key}'; it has {', '.join(StreamOptions.__dataclass_fields__)}")
        if key == "relative":
            ok = option is None or isinstance(option, bool)
        else:
            ok = option is None or (isinstance(option, int) and not isinstance(option, bool) and 0 <= option <= 10_000)
        if not ok:
            raise UserError(f"{key} is {'true or false' if key == 'relative' else 'a whole number'}, got {option!r}")
    return StreamOptions(**value)


def read_prompt(value: dict[str, Any]) -> tuple[str, PromptMode, int]:
    text, mode, blend = value.get("text"), value.get("mode", "keep"), value.get("blend", 0)
    if not isinstance(text, str):
        raise UserError("a prompt is text")
    if mode not in PROMPT_MODES:
        raise UserError(f"there is no prompt mode '{mode}'; use one of {', '.join(PROMPT_MODES)}")
    if not isinstance(blend, int) or isinstance(blend, bool) or not 0 <= blend <= MAX_BLEND:
        raise UserError(f"a prompt is blended in over 0 to {MAX_BLEND} chunks, got {blend!r}")
    if mode == "flush" and blend > 1:
        raise UserError("a flush begins a new shot at once and cannot be blended; use keep or recache")
    return text, mode, blend


def read_strength(value: Any) -> float | MotionStrength | None:
    """A noise level, 'motion', or None for an end of restyling."""
    if value is None:
        return None
    if value == "motion":
        return MotionStrength()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise UserError(f"a strength is a number above 0 and at most 1, or 'motion'; got {value!r}")


def read_of(value: Any) -> str | None:
    """What a source shows, in words, '' where nobody says, or None for one that is drawn anew."""
    if value is None or isinstance(value, str):
        return value and value.strip()
    raise UserError(f"what a source shows is told in words; got {value!r}")
