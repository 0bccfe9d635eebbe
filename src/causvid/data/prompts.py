"""Prompts to train on, as a function of their number: the world's own endless captions, or the lines of a text file."""

from collections.abc import Callable
from pathlib import Path

import torch

from causvid.errors import UserError
from causvid.noise import mix, seeded
from causvid.text import clean_prompt

VISTA = "vista"
FIRST_SCENE = 2_000_000_000  # after the scenes that pools of clips are made of

Prompts = Callable[[int], str]  # number -> prompt; never ends


def read_prompts(source: str, seed: int) -> Prompts:
    """`source` is 'vista' (captions of scenes of the train split) or the path of a text file, one prompt a line."""
    return vista_caption if source == VISTA else lines_of(Path(source), seed)


def vista_caption(number: int) -> str:
    from causvid.worlds import vista

    scene_seed = FIRST_SCENE + number
    return vista.caption(vista.sample_scene(scene_seed), mix(scene_seed), "train")


def lines_of(file: Path, seed: int) -> Prompts:
    """Every line once per epoch, in an order that the epoch decides."""
    try:
        lines = [line for line in file.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); give a text file with one prompt a line.") from None
    if not lines:
        raise UserError(f"{file} holds no prompts; write one a line.")
    prompts = [clean_prompt(line) for line in lines]

    def prompt(number: int) -> str:
        epoch, place = divmod(number, len(prompts))
        return prompts[int(torch.randperm(len(prompts), generator=seeded(seed, epoch))[place])]

    return prompt
