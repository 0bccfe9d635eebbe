"""`causvid.load`: a model by name, or from a folder of ours, of diffusers, or of an original Wan release."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from causvid import config, wan_world
from causvid.bundle import SPEC_FILE, Model, ModelConfig, Network, Place
from causvid.checkpoints import load_dit
from causvid.codecs import Codec
from causvid.codecs.tiny import TinyCodec
from causvid.codecs.vista import VistaCodec
from causvid.errors import UserError
from causvid.text import TextEncoder
from causvid.text.vista import VistaText

PACKAGED = ("vista",)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    student: str | Path | None = None,
    recipe: str | None = None,
    size: tuple[int, int] | None = None,
    lora: Sequence[str | Path | tuple[str | Path, float]] = (),
    codec: str | Path | None = None,
) -> Model:
    """A model by name ('vista') or folder: one of ours, a diffusers Wan pipeline, or an original Wan release.

    `student` is a few-step causal checkpoint (.pt or .safetensors) to stream with, and `recipe` says how it was
    distilled (its step list; see `causvid.wan_world.STUDENT_RECIPES`), or which of its own ways to run a student of
    ours takes (vista: framewise). `size` is a height and width in pixels other
    than the model's own. `lora` files are merged in, each with a scale. `codec` is a small autoencoder of the TAEHV
    family (taew2_1.pth) that stands in for Wan's: much faster, a little less detail.
    """
    folder = find(name_or_path)
    is_ours = (folder / SPEC_FILE).is_file()
    place = Place.of(device, dtype, is_small=is_ours and read_spec(folder).codec == "vista")
    if is_ours:
        model = load_ours(folder, place, recipe)
    elif (folder / "transformer").is_dir() or any((folder / name).is_file() for name in wan_world.ORIGINAL_VAE):
        model = wan_world.load_wan(folder, place, recipe)
    else:
        raise UserError(
            f"{folder} is not a model: it holds neither {SPEC_FILE} (ours), nor transformer/ (diffusers), "
            f"nor {' or '.join(wan_world.ORIGINAL_VAE)} (original Wan)"
        )
    if codec is not None:
        model.codec = stand_in(Path(codec), model)
    if size is not None:
        model.resize(*size)
    if student is not None:
        path = Path(student)
        model.student_source = lambda: place.settle(load_dit(path, few_steps=True))
    if lora:
        model.apply_lora(lora)
    return model


def find(name_or_path: str | Path) -> Path:
    if str(name_or_path) in PACKAGED:
        folder = Path(str(resources.files("causvid"))) / "weights" / str(name_or_path)
        if not (folder / SPEC_FILE).is_file():
            raise UserError(f"this installation lacks the weights of '{name_or_path}'; reinstall causvid")
        return folder
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"there is no model '{name_or_path}': neither a packaged one ({', '.join(PACKAGED)}) nor a folder"
        )
    return folder


def load_ours(folder: Path, place: Place, recipe: str | None) -> Model:
    cfg = read_spec(folder)
    if recipe is not None:
        if recipe not in cfg.recipes:
            known = f"use one of {', '.join(cfg.recipes)}, or none" if cfg.recipes else "it has none, leave it out"
            raise UserError(f"the model '{cfg.name}' has no recipe '{recipe}'; {known}")
        cfg = replace(cfg, rollout=cfg.recipes[recipe])
    codec: Codec
    text: TextEncoder
    if cfg.codec == "vista":
        codec = VistaCodec.load(folder / "codec.safetensors").to(place.device)
    else:
        codec = wan_world.load_codec(_elsewhere(cfg, "codec"), place.device)
    if cfg.text == "vista":
        text = VistaText.load(folder / "text.safetensors").to(place.device)
    else:
        text = wan_world.load_text(_elsewhere(cfg, "text"), place.device)

    def source(name: str) -> Network | None:
        path = folder / f"{name}.safetensors"
        return (lambda: place.settle(load_dit(path))) if path.is_file() else None

    networks = source("teacher"), source("student"), source("guide")
    return Model(cfg, codec, text, *networks, place.dtype, place.device)


def stand_in(file: Path, model: Model) -> Codec:
    """A small codec for the same latents as the model's own."""
    if model.cfg.codec == "vista":
        raise UserError(f"only its own codec reads the latents of '{model.cfg.name}'; leave out the other one")
    small, own = TinyCodec.from_file(file, device=model.device), model.codec
    shapes = [f"{codec.latent_channels} channels for {codec.space_factor} pixels" for codec in (small, own)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{file} has {shapes[0]} and '{model.cfg.name}' {shapes[1]}; use taew2_1 for Wan2.1 and taew2_2 for "
            "Wan2.2-5B"
        )
    return small


def _elsewhere(cfg: ModelConfig, part: Literal["codec", "text"]) -> Path:
    """Where a part lives that was too large to copy."""
    place = cfg.codec_folder if part == "codec" else cfg.text_folder
    if place is None or not Path(place).is_dir():
        raise UserError(
            f"the {part} of '{cfg.name}' is expected in {place}, which is not there; "
            f"correct {part}_folder in {SPEC_FILE}"
        )
    return Path(place)


def read_spec(folder: Path) -> ModelConfig:
    path = folder / SPEC_FILE
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    return config.from_json(ModelConfig, values, source=str(path))
