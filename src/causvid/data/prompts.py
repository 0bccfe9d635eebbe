"""Prompts to train on, as a function of their number: the world's own endless captions, or the lines of a text file.

A clip whose prompt changes has a script: the prompts that a stream is given one after the other, none of which knows
the next.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from causvid.errors import UserError
from causvid.noise import mix, seeded
from causvid.text import clean_prompt

VISTA = "vista"
FIRST_SCENE = 2_000_000_000  # after the scenes that most pools of clips are made of
CLIPS_THAT_CHANGE = 1_000_000  # are left to pools, before those that only their captions are wanted of

Prompts = Callable[[int], str]  # number -> prompt; never ends


@dataclass(frozen=True)
class Script:
    cues: tuple[tuple[int, str], ...]  # (from this latent frame on, the prompt), the first from 0 on

    def at(self, frame: int) -> str:
        """The prompt in force."""
        return [prompt for start, prompt in self.cues if start <= frame][-1]


def one_prompt(prompt: str) -> Script:
    return Script(((0, prompt),))


def ways_of(scripts: Iterable[Script], num_frames: int, seeds: Iterable[int]) -> Tensor:
    """How far the views of Vista have come at each latent frame of these clips, in latents [B, T]."""
    from causvid.worlds.vista.course import travel

    return torch.stack([travel(script.cues, num_frames, seed) for script, seed in zip(scripts, seeds)])


Scripts = Callable[[int], Script]


def read_scripts(source: str, seed: int, changing: float, foretold: float = 0.0) -> Scripts:
    """`changing`: the share of Vista's clips that are told of what changes when it happens, not from the start.
    `foretold`: the share that is told from the start of a change of light, weather or colour."""
    prompts = read_prompts(source, seed)

    def script(number: int) -> Script:
        drawn = mix(seed, number) % 1000
        if source == VISTA and drawn < 1000 * changing:
            return vista_script(number)
        if source == VISTA and drawn < 1000 * (changing + foretold):
            return one_prompt(vista_change(number))
        return one_prompt(prompts(number))

    return script


def vista_script(number: int) -> Script:
    from causvid.data.vista import FPS
    from causvid.worlds import vista
    from causvid.worlds.vista.captions import timeline_prompts

    scene_seed = FIRST_SCENE + number
    scene, words = vista.sample_scene(scene_seed), mix(scene_seed)
    return Script(tuple((round(start * FPS / 4), prompt) for start, prompt in timeline_prompts(scene, words)))


def read_prompts(source: str, seed: int) -> Prompts:
    """`source` is 'vista' (captions of scenes of the train split) or the path of a text file, one prompt a line."""
    return vista_caption if source == VISTA else lines_of(Path(source), seed)


def vista_caption(number: int) -> str:
    from causvid.worlds import vista

    scene_seed = FIRST_SCENE + number
    return vista.caption(vista.sample_scene(scene_seed), mix(scene_seed), "train")


def vista_change(number: int) -> str:
    from causvid.data.vista import FIRST_CHANGING, changing_scene
    from causvid.worlds import vista

    seed = FIRST_CHANGING + CLIPS_THAT_CHANGE + number
    return vista.caption(changing_scene(seed), mix(seed), "train")


def lines_of(file: Path, seed: int) -> Prompts:
    """Every line once per epoch, in an order that the epoch decides."""
    try:
        lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); give a text file with one prompt a line.") from None
    if not lines:
        raise UserError(f"{file} holds no prompts; write one a line.")
    prompts = [clean_prompt(line) for line in lines]

    @lru_cache(maxsize=1)
    def order(epoch: int) -> list[int]:
        return torch.randperm(len(prompts), generator=seeded(seed, epoch)).tolist()

    def prompt(number: int) -> str:
        epoch, place = divmod(number, len(prompts))
        return prompts[order(epoch)[place]]

    return prompt
