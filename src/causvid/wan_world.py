"""Folders of the Wan world as models of ours: diffusers pipelines and original releases, with any few-step student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from causvid import flow
from causvid.bundle import Model, ModelConfig, Place, TeacherSampling
from causvid.cache import CachePolicy
from causvid.checkpoints import load_dit
from causvid.codecs import Codec
from causvid.errors import UserError
from causvid.rollout import RolloutConfig
from causvid.text import TextEncoder
from causvid.text.umt5 import WAN_NEGATIVE_PROMPT, EmbeddingStore, Umt5Text

ORIGINAL_VAE = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
ORIGINAL_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
WINDOW = CachePolicy(window=21)  # latent frames of a Wan training clip: 81 frames

# How published students were distilled. The list of a student belongs to its weights: another one gives worse video.
STUDENT_RECIPES: dict[str, RolloutConfig] = {
    # Self-Forcing's DMD, SiD and GAN checkpoints, and their descendants
    "self-forcing": RolloutConfig(
        sigmas=tuple(flow.sigmas_from_timesteps([1000, 750, 500, 250], warp_shift=5)),
        shift=5.0,
        chunk=3,
        policy=WINDOW,
    ),
    # CausVid's autoregressive_checkpoint_warp_4step_cfg2
    "causvid-4step": RolloutConfig(
        sigmas=tuple(flow.sigmas_from_timesteps([1000, 750, 500, 250], warp_shift=8)),
        shift=8.0,
        chunk=3,
        policy=WINDOW,
    ),
    # CausVid's autoregressive_checkpoint and its ODE initialisation
    "causvid-3step": RolloutConfig(sigmas=tuple(flow.sigmas_from_timesteps([1000, 757, 522])), chunk=3, policy=WINDOW),
}


def load_wan(folder: Path, place: Place, recipe: str | None) -> Model:
    """A Wan2.1 or Wan2.2-5B folder as it was downloaded. Its transformer is the teacher."""
    recipe = recipe or "self-forcing"
    if recipe not in STUDENT_RECIPES:
        raise UserError(f"there is no student recipe '{recipe}'; use one of {', '.join(STUDENT_RECIPES)}")
    codec = load_codec(folder, place.device)
    text = load_text(folder, place.device)
    is_five_billion = codec.space_factor == 16  # Wan2.2 TI2V-5B, by its autoencoder
    cfg = ModelConfig(
        name=folder.name,
        fps=24 if is_five_billion else 16,
        height=704 if is_five_billion else 480,
        width=1280 if is_five_billion else 832,
        num_latents=31 if is_five_billion else 21,
        codec="wan",
        text="umt5",
        rollout=STUDENT_RECIPES[recipe],
        teacher=TeacherSampling(
            steps=50, guidance=5.0 if is_five_billion else 6.0, shift=5.0 if is_five_billion else 8.0
        ),
        no_prompt=WAN_NEGATIVE_PROMPT,
        codec_folder=str(folder.resolve()),
        text_folder=str(folder.resolve()),
    )
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    return Model(
        cfg,
        codec,
        text,
        teacher_source=lambda: place.settle(load_dit(transformer, precision="islands")),
        dtype=place.dtype,
        device=place.device,
    )


def load_codec(folder: Path, device: torch.device) -> Codec:
    from causvid.codecs.wan import WanCodec

    settings: dict[str, Any] = {"device": device}
    for name in ORIGINAL_VAE:
        if (folder / name).is_file():
            return WanCodec.from_original(folder / name, **settings)
    return WanCodec.from_folder(folder, **settings)


def load_text(folder: Path, device: torch.device) -> TextEncoder:
    """Embeddings are kept next to the model, so that the 11 GB encoder is read for new prompts only."""
    settings: dict[str, Any] = {"store": EmbeddingStore(folder / "embeddings"), "device": device}
    if (folder / ORIGINAL_TEXT).is_file():
        return Umt5Text.from_original(folder / ORIGINAL_TEXT, folder / "google" / "umt5-xxl", **settings)
    return Umt5Text.from_folder(folder, **settings)
