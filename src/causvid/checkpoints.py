"""Weights of video transformers, from and to the files the world keeps them in.

Read: folders of diffusers and of the original Wan (one file or shards), single safetensors files, and the `.pt` files
of few-step students. Whatever the file, the result has the original Wan names, which are VideoDiT's own. Tensors are
mapped from the file, not copied, and put into a network that was built without memory, so that nothing is held twice.
Code in pickles is never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from causvid.differences import add_difference
from causvid.errors import UserError
from causvid.models.dit import Precision, VideoDiT, VideoDiTConfig, is_island
from causvid.models.wan import EPS, HEAD_WIDTH, TEXT_LENGTH, to_original
from causvid.tensor_files import first_few, one_line, read_file

# What training code calls the network in a `.pt` file; averaged weights first.
GENERATORS = ("generator_ema", "generator", "model")

CONFIG_KEY = "causvid_config"  # in the metadata of safetensors files we write: what tensor shapes do not show

LARGE = 10**9  # values in a network from which on reading it takes long enough to show progress

_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.", "module.", "model.", "transformer.")

# keys of config.json -> fields of VideoDiTConfig
_WAN_KEYS = {
    "dim": "width",
    "ffn_dim": "ffn_width",
    "freq_dim": "freq_width",
    "text_dim": "text_width",
    "text_len": "text_length",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
}
_DIFFUSERS_KEYS = {"num_attention_heads": "num_heads"}
_SAME_KEYS = ("num_heads", "num_layers", "in_channels", "out_channels", "eps")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under their original Wan names, and what the files say about the architecture besides."""

    state: dict[str, Tensor]
    hints: dict[str, Any]  # fields of VideoDiTConfig
    source: str
    entry: str | None  # what the network was called inside a `.pt` file


# ---- reading ---------------------------------------------------------------------------------------------------


def load_dit(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    few_steps: bool = False,
    overrides: Mapping[str, Any] | None = None,
    prefer: Iterable[str] = GENERATORS,
) -> VideoDiT:
    """The network in `path`, ready to run.

    dtype: None keeps what the file has. With `islands`, what `is_island` names stays in float32 (time path, modulation,
    norms, head).
    precision: None is what the file itself says; if it does not, `plain` for a student's `.pt` file and what is known
    to make videos in few steps (how those are trained and sampled), else `islands`.
    overrides: fields of VideoDiTConfig that neither config.json nor the shapes tell rightly.
    """
    checkpoint = read_checkpoint(path, prefer=prefer)
    hints = checkpoint.hints | dict(overrides or {})
    if precision is None and "precision" not in hints:
        precision = "plain" if few_steps or checkpoint.entry in ("generator_ema", "generator") else "islands"
    cfg = config_from_state(checkpoint.state, hints, source=checkpoint.source)
    if precision is not None:
        cfg = replace(cfg, precision=precision)
    with torch.device("meta"):
        model = VideoDiT(cfg)
    _refuse_storage_formats(checkpoint, dtype)
    load_into(model, checkpoint.state, source=checkpoint.source, dtype=dtype, device=device)
    return model


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "the checkpoint",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Give `model` the tensors of `state` (original names); every name and shape must match.

    A network on the meta device takes the tensors over, in `dtype` and on `device`; any other keeps its own dtype,
    device and parameter objects (an optimiser may hold them) and copies the values.
    """
    mismatch = describe_mismatch(model, state)
    if mismatch is not None:
        raise UserError(f"{source} does not fit: {mismatch}")
    parameters = dict(model.named_parameters())
    if not any(p.is_meta for p in parameters.values()):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])
        return
    islands = isinstance(model, VideoDiT) and model.cfg.precision == "islands"
    placed = {}
    large = sum(p.numel() for p in parameters.values()) > LARGE
    for name in track(parameters, "loading weights", console=Console(stderr=True)) if large else parameters:
        wanted = torch.float32 if dtype is not None and islands and is_island(name) else dtype
        placed[name] = state[name].to(device=device, dtype=wanted)
    model.load_state_dict(placed, strict=True, assign=True)


def read_state(path: str | Path, prefer: Iterable[str] = GENERATORS) -> dict[str, Tensor]:
    """The tensors of a network file or folder under their original Wan names."""
    return read_checkpoint(path, prefer=prefer).state


def read_checkpoint(path: str | Path, *, prefer: Iterable[str] = GENERATORS) -> Checkpoint:
    """Tensors and hints of a folder or file in any of the known layouts. `prefer`: entries of a `.pt`, best first."""
    files, config = _find_files(Path(path))
    state: dict[str, Tensor] = {}
    hints: dict[str, Any] = {}
    entry = None
    for file in files:
        tensors, metadata = read_file(file)
        tensors = add_difference(file, tensors, metadata)
        entry, tensors = _choose_entry(tensors, tuple(prefer), file)
        hints |= json.loads(metadata.get(CONFIG_KEY, "{}"))
        state |= tensors
    if not hints and config is not None:  # files of ours say it themselves, whatever lies beside them
        hints = _read_config(config)
    return Checkpoint(original_names(state, str(path)), hints, str(path), entry)


def original_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Without what training wrappers and packagers put before the names, and without diffusers' renaming."""
    bare = {to_original(bare_name(name)): tensor for name, tensor in state.items()}
    if len(bare) != len(state):
        raise UserError(f"{source} names {len(state) - len(bare)} tensors twice; give a file with one network in it.")
    return bare


def bare_name(name: str) -> str:
    """`model._fsdp_wrapped_module.blocks.0.modulation` -> `blocks.0.modulation`."""
    name = _WRAPPERS.sub("", name)
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name[len(prefix) :]
    return name


def _choose_entry(payload: dict[str, Any], prefer: tuple[str, ...], path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The network inside a `.pt` file: an entry of that name, or the file itself."""
    entry = next((key for key in prefer if isinstance(payload.get(key), dict)), None)
    tensors = payload if entry is None else payload[entry]
    odd = [str(key) for key, value in tensors.items() if not isinstance(value, Tensor)]
    if odd or not tensors:
        raise UserError(
            f"{path} has no entry {_or(prefer)} with a network in it; it holds {first_few(odd) or 'nothing'}: "
            "give the file of the weights, or name the entry."
        )
    return entry, tensors


def _refuse_storage_formats(checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    """8-bit weights are for storage. Scaled ones come with tensors of their own and fail as a mismatch."""
    small = {t.dtype for t in checkpoint.state.values() if t.is_floating_point() and t.element_size() == 1}
    if small and dtype is None:
        names = _or(sorted(str(s) for s in small))
        raise UserError(f"{checkpoint.source} stores {names}, which cannot be computed with; pass dtype=bfloat16.")


# ---- finding files ---------------------------------------------------------------------------------------------


def _find_files(path: Path) -> tuple[list[Path], Path | None]:
    """The weight files that make up one network, and the config.json beside them."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the file or folder of the weights.")
    if path.is_file():
        if path.name.endswith(".index.json"):
            return _shards(path), _config_in(path.parent)
        return [path], _config_in(path.parent)
    experts = [sub for sub in ("high_noise_model", "low_noise_model", "transformer_2") if (path / sub).is_dir()]
    if experts:
        raise UserError(
            f"{path} holds two networks (Wan2.2 A14B); give the folder of one, such as {path / experts[0]}."
        )
    if (path / "transformer").is_dir():
        return _find_files(path / "transformer")
    indices = sorted(path.glob("*.index.json"))
    if len(indices) == 1:
        return _shards(indices[0]), _config_in(path)
    for pattern in (r".*\.safetensors", r".*\.(pt|pth|bin|ckpt)"):
        found = sorted(f for f in path.iterdir() if re.fullmatch(pattern, f.name))
        if len(found) > 1:
            found = [f for f in found if f.stem == "diffusion_pytorch_model"]
            if not found:
                raise UserError(f"{path} holds several weight files and no index of them; name the file to read.")
        if found:
            return found, _config_in(path)
    raise UserError(f"{path} holds no weights (.safetensors or .pt); give the folder of a transformer.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not a readable index of shards ({one_line(error)}); download it again.") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} lacks {len(missing)} of its {len(names)} shards ({first_few(missing)}); "
            "download the missing files."
        )
    return [index.parent / name for name in names]


def _config_in(folder: Path) -> Path | None:
    config = folder / "config.json"
    return config if config.is_file() else None


def _read_config(path: Path) -> dict[str, Any]:
    """Fields of VideoDiTConfig in a config.json of diffusers or of the original Wan; any other file tells nothing."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({one_line(error)}); download it again.") from None
    if not isinstance(raw, dict) or not {"num_layers", "ffn_dim"} <= raw.keys():
        return {}
    hints = {field: raw[key] for key, field in (_WAN_KEYS | _DIFFUSERS_KEYS).items() if key in raw}
    hints |= {key: raw[key] for key in _SAME_KEYS if key in raw}
    if {"num_attention_heads", "attention_head_dim"} <= raw.keys():
        hints["width"] = raw["num_attention_heads"] * raw["attention_head_dim"]
    if raw.get("out_channels", 0) is None:  # diffusers: as many as go in
        hints["out_channels"] = raw["in_channels"]
    return hints


# ---- what a checkpoint is --------------------------------------------------------------------------------------


def config_from_state(
    state: Mapping[str, Tensor], hints: Mapping[str, Any] | None = None, *, source: str = "the checkpoint"
) -> VideoDiTConfig:
    """The architecture that tensors of these shapes have. `hints` tell what shapes do not (heads, text rows, eps,
    precision) and must agree with them on the rest."""
    hints = dict(hints or {})
    unknown = hints.keys() - {f.name for f in fields(VideoDiTConfig)}
    if unknown:
        raise UserError(f"VideoDiTConfig has no {_or(sorted(unknown))}; its fields are in causvid.models.dit.")
    try:
        patch = state["patch_embedding.weight"]
        width, in_channels, *kernel = patch.shape
        overlap = hints.get("overlap", 0)
        side = max(kernel[-1] - 2 * overlap, 1)
        seen = {
            "width": width,
            "ffn_width": state["blocks.0.ffn.0.weight"].shape[0],
            "num_layers": 1 + max(int(n.split(".")[1]) for n in state if re.match(r"blocks\.\d+\.", n)),
            "in_channels": in_channels,
            "out_channels": state["head.head.weight"].shape[0] // side**2,
            "patch": side,
            "freq_width": state["time_embedding.0.weight"].shape[1],
            "text_width": state["text_embedding.0.weight"].shape[1],
        }
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{source} is not a Wan video transformer: it {guess(state)}.") from None
    if kernel[-1] <= 2 * overlap:
        raise UserError(
            f"{source}: tokens of {kernel[-1]} latents a side cannot overlap by {overlap}; correct overlap."
        )
    wrong = [
        f"{name} {hints[name]} (weights: {seen[name]})" for name in seen if hints.get(name, seen[name]) != seen[name]
    ]
    if wrong:
        raise UserError(
            f"{source}: its config says {', '.join(wrong)}; use the config.json that belongs to the weights."
        )
    if "num_heads" not in hints:
        if width % HEAD_WIDTH:
            raise UserError(
                f"{source} has width {width}, no multiple of Wan's head width {HEAD_WIDTH}, and no config.json; "
                "pass num_heads."
            )
        hints["num_heads"] = width // HEAD_WIDTH
    if width % hints["num_heads"]:
        raise UserError(f"{source}: width {width} does not split into {hints['num_heads']} heads; correct num_heads.")
    defaults: dict[str, Any] = {"text_length": TEXT_LENGTH, "eps": EPS, "precision": "islands"}
    return VideoDiTConfig(**(defaults | seen | hints | {"parallax": tuple(hints.get("parallax", ()))}))


def describe_mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Why `state` (original names) does not fit, in one clause with a guess at what it is; None if it fits."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    shapes = [f"{n} {list(given[n])} for {list(wanted[n])}" for n in wanted if given.get(n, wanted[n]) != wanted[n]]
    parts = [
        f"{len(names)} {what} ({first_few(names)})"
        for what, names in (
            ("missing", [n for n in wanted if n not in given]),
            ("unexpected", [n for n in given if n not in wanted]),
            ("of wrong shape", shapes),
        )
        if names
    ]
    if not parts:
        return None
    return f"of {len(wanted)} tensors, {', '.join(parts)}; it {guess(state)}."


def guess(state: Mapping[str, Tensor]) -> str:
    """What a set of named tensors seems to be, to go on after the word 'it'."""
    if any("lora_" in n or ".lora." in n or n.endswith((".diff", ".diff_b")) for n in state):
        return "looks like a LoRA: load the base weights first and add the LoRA to them"
    if any("scale_weight" in n or "scaled_fp8" in n for n in state):
        return "looks like a scaled 8-bit file: take the bfloat16 version"
    extras = (
        ("vace_blocks", "VACE"),
        ("face_adapter", "Animate"),
        ("audio_injector", "speech-to-video (S2V)"),
        ("control_adapter", "camera or pose control"),
        ("ref_conv", "Fun-Control"),
        ("img_emb.emb_pos", "first-and-last-frame (FLF2V)"),
        ("img_emb", "I2V"),
    )
    if "patch_embedding.weight" in state and state["patch_embedding.weight"].ndim == 5:
        width, channels = state["patch_embedding.weight"].shape[:2]
        size = {1536: " 1.3B", 5120: " 14B", 3072: " 5B"}.get(width, f" of width {width}")
        kind = next((label for part, label in extras if any(part in n for n in state)), None)
        kind = kind or ("I2V" if channels == 36 else "Wan")
        return f"looks like an {kind}{size} checkpoint, {channels} input channels".replace("an Wan", "a Wan")
    known = (
        ("token_embedding.weight", "a umT5 text encoder"),
        ("encoder.embed_tokens.weight", "a umT5 text encoder"),
        ("encoder.conv1.weight", "a Wan autoencoder"),
        ("encoder.conv_in.weight", "an autoencoder"),
        ("x_embedder.proj.weight", "another family of transformers"),
    )
    what = next((label for name, label in known if name in state), None)
    return f"looks like {what}" if what else f"has tensors such as {first_few(list(state)) or 'none'}"


def config_metadata(cfg: VideoDiTConfig) -> dict[str, str]:
    """What our safetensors files carry, so that `load_dit` needs nothing else."""
    return {"format": "pt", CONFIG_KEY: json.dumps(asdict(cfg))}


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)
