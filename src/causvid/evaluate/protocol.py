"""What is evaluated: frozen prompts, one noise seed for each, and the clips that everything is compared with.

A prompt's index fixes its scene, its words and the seed of the generator's noise, so all models are compared in pairs.
Nothing here may depend on a model.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from causvid.noise import mix
from causvid.worlds.vista.captions import caption
from causvid.worlds.vista.render import render
from causvid.worlds.vista.sampling import sample_scene
from causvid.worlds.vista.scene import Scene

NUM_FRAMES = 81
FIRST_SEED = 1_000_000  # scenes below are free for trying things out
FIRST_CHOICE = 1_000_000  # prompts from this index on are for choosing: what is chosen is reported on others
OTHER_LAYOUT = 5 << 40  # the range of layouts for the ceiling: the same attributes, drawn anew
SUITES = ("val", "compose", "order", "paraphrase")
REFERENCES = {
    "temporal": ("shuffle", "freeze", "flicker", "drop"),
    "frame": ("blur", "noise", "saturation", "exposure"),
}
REFERENCE_STRENGTH = 0.7


@dataclass(frozen=True)
class Prompt:
    suite: str
    index: int
    caption: str
    scene: Scene
    noise_seed: int


def prompts(suite: str = "val", count: int = 256, choosing: bool = False) -> list[Prompt]:
    """The first `count` prompts of a suite, to report or to choose by; a longer list begins with the shorter one."""
    if suite not in SUITES:
        raise ValueError(f"there is no suite '{suite}'; the suites are {', '.join(SUITES)}")
    found = []
    first = FIRST_CHOICE * choosing
    for index in range(first, first + count):
        scene = sample_scene(FIRST_SEED + index, suite)
        words = caption(scene, mix(FIRST_SEED, index) % 2**31, suite)
        found.append(Prompt(suite, index, words, scene, noise_seed=mix(SUITES.index(suite), index) % 2**31))
    return found


def fingerprint(listed: list[Prompt]) -> str:
    """A hash of the prompts in order; reports of different hashes must not be compared."""
    text = "\n".join(f"{p.caption}|{p.noise_seed}|{p.scene.to_json()}" for p in listed)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def truth(prompt: Prompt, num_frames: int = NUM_FRAMES, width: int = 112) -> np.ndarray:
    """The clip that the caption was written about."""
    return render(prompt.scene, num_frames, 64, width)[0]


def another_truth(prompt: Prompt, num_frames: int = NUM_FRAMES, width: int = 112, draw: int = 0) -> np.ndarray:
    """The same attributes and events in a layout drawn anew: what a perfect generator could have made."""
    scene = replace(prompt.scene, seed=OTHER_LAYOUT + mix(prompt.scene.seed, draw) % 2**40)
    return render(scene, num_frames, 64, width)[0]


def through_codec(codec: Any, device: torch.device | str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """Frames -> frames as the codec gives them back: the best that any model in its latent space can do."""

    @torch.inference_mode()
    def round_trip(frames: np.ndarray) -> np.ndarray:
        usable = len(frames) - (len(frames) - 1) % codec.time_factor
        video = torch.from_numpy(frames[:usable]).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        back = codec.decode(codec.encode(video.to(device, codec.dtype)))[0].float().cpu()
        return ((back.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()

    return round_trip
