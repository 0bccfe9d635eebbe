"""Where a prompt sends the camera, so that noise can go along (causvid.view_noise)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causvid.worlds.vista.parsing import parse_known, phases
from causvid.worlds.vista.sampling import complete, draw_camera
from causvid.worlds.vista.scene import TRAVELS
from causvid.worlds.vista.streams import Stream
from causvid.worlds.vista.tracks import CAMERA_SPEEDS, SWEEP_PERIOD, SWEEP_UNITS
from causvid.worlds.vista.wording import rephrase

HEIGHT = 64  # units: pixels of the usual picture
LATENTS = 8  # rows of its latents
FRAME = 1 / 3  # seconds of a latent frame
FIRST = FRAME * 3 / 4  # from the first one, a single picture, to the middle of the next (truth.latent_frames)
EASE = 3  # latent frames in which the view takes up another speed
PART = 7  # latent frames until what a prompt tells in advance happens (causvid.story)


@dataclass(frozen=True)
class VistaCourse:
    """A value: `after` a prompt and `advance` by frames give the next one."""

    seed: int
    scale: float = LATENTS / HEIGHT  # latents of a unit
    camera: str | None = None  # None: nothing is known of it
    motion: str | None = None
    is_told: bool = False  # by words that are in force
    later: tuple[tuple[int, str | None, str | None], ...] = ()  # (latent frames from now on, camera, motion)
    speed: float = 0.0  # units a second, without sweeping
    sweeping: float = 0.0  # 0 to 1
    place: float = 0.0  # units, without sweeping
    frames: int = 0  # so far

    def after(self, prompt: str) -> VistaCourse:
        parsed = parse_known(rephrase(prompt)[0])
        told, *later = phases(parsed.attributes, parsed.events)
        if self.camera is None and not (told["camera"] or told["motion"] or self.frames == 0):
            return self  # it goes on from pictures whose camera nobody knows
        motion = told["motion"] or self.motion
        camera = told["camera"] or self._camera_with(motion, told["motion"] is not None, parsed.attributes)
        steps = [(PART * (number + 1), part["camera"], part["motion"]) for number, part in enumerate(later)]
        is_told = told["camera"] is not None or told["motion"] is not None
        now = replace(self, camera=camera, motion=motion, is_told=is_told, later=tuple(steps))
        return now._at_once()

    def unknown(self) -> VistaCourse:
        """Pictures come from elsewhere: unless words tell, who knows how their camera moves?"""
        if self.is_told:
            return self
        here = self.place + self.sweeping * self._swing()
        return replace(self, camera=None, motion=None, later=(), place=here, speed=0.0, sweeping=0.0)

    @property
    def is_known(self) -> bool:
        return self.camera is not None

    def advance(self, num_frames: int) -> tuple[Tensor, VistaCourse]:
        ways, now = [], self
        for _ in range(num_frames):
            ways.append((now.place + now.sweeping * now._swing()) * now.scale)
            now = now._step()
        return torch.tensor(ways, dtype=torch.float64), now

    # ---- inside --------------------------------------------------------------------------------------------------

    def _camera_with(self, motion: str | None, is_told: bool, attributes: dict[str, str]) -> str:
        """The camera where none is named: what goes somewhere is followed, until it stops; otherwise as before, and in
        the beginning as the world would have it."""
        if is_told and motion in TRAVELS:
            return "follow"
        if self.camera is not None:
            stopped = is_told and self.motion in TRAVELS and self.camera == "follow"
            return "static" if stopped or (is_told and motion == "stays" and self.camera != "sweep") else self.camera
        likely = motion or complete(attributes, (), self.seed).motion
        return draw_camera(Stream(self.seed, "course"), likely)

    def _at_once(self) -> VistaCourse:
        """A stream that begins is in full swing."""
        if self.frames or self.camera is None:
            return self
        return replace(self, speed=CAMERA_SPEEDS[self.camera], sweeping=float(self.camera == "sweep"))

    def _seconds(self) -> float:
        return FIRST + (self.frames - 1) * FRAME if self.frames else 0.0

    def _swing(self) -> float:
        phase = Stream(self.seed, "course sweep").uniform(0, 2 * math.pi)
        return SWEEP_UNITS * math.sin(2 * math.pi * self._seconds() / SWEEP_PERIOD + phase)

    def _step(self) -> VistaCourse:
        now = self
        due = [step for step in self.later if step[0] <= 0]
        if due:
            _, camera, motion = due[-1]
            now = replace(now, camera=camera or now.camera, motion=motion or now.motion)
        camera = now.camera or "static"
        speed, sweeping = CAMERA_SPEEDS[camera], float(camera == "sweep")
        return replace(
            now,
            later=tuple((left - 1, camera, motion) for left, camera, motion in now.later if left > 0),
            speed=now.speed + _limited(speed - now.speed, max(map(abs, CAMERA_SPEEDS.values())) / EASE),
            sweeping=now.sweeping + _limited(sweeping - now.sweeping, 1 / EASE),
            place=now.place + now.speed * (FRAME if now.frames else FIRST),
            frames=now.frames + 1,
        )


def _limited(change: float, most: float) -> float:
    return max(-most, min(most, change))


def travel(cues: Sequence[tuple[int, str]], num_frames: int, seed: int) -> Tensor:
    """How far the view has come [T], in latents, in a clip whose prompts come at these frames, the first from 0 on."""
    course, parts = VistaCourse(seed), []
    stops = [start for start, _ in cues[1:]] + [num_frames]
    for (start, prompt), stop in zip(cues, stops, strict=True):
        way, course = course.after(prompt).advance(max(0, min(stop, num_frames) - start))
        parts.append(way)
    return torch.cat(parts).float()
