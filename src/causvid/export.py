"""Writing weights so that others can read them: diffusers folders and safetensors files with original Wan names.

All files of a save appear together once they are complete, or none does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causvid.atomic import all_or_nothing
from causvid.checkpoints import config_metadata, describe_mismatch
from causvid.errors import UserError
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.models.wan import to_diffusers
from causvid.tensor_files import write_tensors

SHARD_BYTES = 5 * 10**9  # diffusers' own limit is 10 GB; smaller shards are kinder to memory and downloads
WEIGHTS = "diffusion_pytorch_model"
DIFFUSERS_VERSION = "0.36.0"  # the oldest whose WanTransformer3DModel has been checked against ours


def save_diffusers(
    model: VideoDiT,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """A folder that diffusers' WanTransformer3DModel.from_pretrained and `load_dit` read.

    state: weights to write in place of the model's own, such as their moving average (original names).
    dtype: None keeps each tensor's.
    """
    if model.cfg.landmarks or model.cfg.overlap:
        raise UserError(
            "this network is told rows, columns and frames by channels that diffusers does not make, or its tokens see "
            "beyond their patches; write it in the original layout, which causvid reads."
        )
    folder = Path(folder)
    named = {to_diffusers(name): tensor for name, tensor in _weights(model, state).items()}
    shards = _split(named, shard_bytes, dtype)
    names = [f"{WEIGHTS}.safetensors"]
    if len(shards) > 1:
        names = [f"{WEIGHTS}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    with all_or_nothing(folder) as temporary:
        for name, shard in zip(names, shards):
            write_tensors(temporary(name), shard, config_metadata(model.cfg), dtype)
        if len(shards) > 1:
            total = sum(_bytes(tensor, dtype) for tensor in named.values())
            weight_map = {key: name for name, shard in zip(names, shards) for key in shard}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(temporary(f"{WEIGHTS}.safetensors.index.json"), index)
        _write_json(temporary("config.json"), diffusers_config(model.cfg))
    _remove_stale(folder, names, sharded=len(shards) > 1)


def save_original(
    model: VideoDiT, path: str | Path, *, state: Mapping[str, Tensor] | None = None, dtype: torch.dtype | None = None
) -> None:
    """One safetensors file with the original Wan names, and the original's config.json next to it."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors: that is the format written.")
    with all_or_nothing(path.parent) as temporary:
        write_tensors(temporary(path.name), _weights(model, state), config_metadata(model.cfg), dtype)
        _write_json(temporary("config.json"), wan_config(model.cfg))


def diffusers_config(cfg: VideoDiTConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "added_kv_proj_dim": None,
        "attention_head_dim": cfg.head_width,
        "cross_attn_norm": True,
        "eps": cfg.eps,
        "ffn_dim": cfg.ffn_width,
        "freq_dim": cfg.freq_width,
        "image_dim": None,
        "in_channels": cfg.in_channels,
        "num_attention_heads": cfg.num_heads,
        "num_layers": cfg.num_layers,
        "out_channels": cfg.out_channels,
        "patch_size": [1, cfg.patch, cfg.patch],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": cfg.text_width,
    }


def wan_config(cfg: VideoDiTConfig) -> dict[str, Any]:
    """As the original stores it: patch and text width are left to the reader."""
    return {
        "_class_name": "WanModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "dim": cfg.width,
        "eps": cfg.eps,
        "ffn_dim": cfg.ffn_width,
        "freq_dim": cfg.freq_width,
        "in_dim": cfg.in_channels,
        "model_type": "t2v",
        "num_heads": cfg.num_heads,
        "num_layers": cfg.num_layers,
        "out_dim": cfg.out_channels,
        "text_len": cfg.text_length,
    }


def _weights(model: VideoDiT, state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    state = dict(model.named_parameters()) if state is None else state
    with torch.device("meta"):
        mismatch = describe_mismatch(VideoDiT(model.cfg), state)
    if mismatch is not None:
        raise ValueError(f"these are not the weights of a plain VideoDiT (merge adapters first): {mismatch}")
    return state


def _split(named: Mapping[str, Tensor], limit: int, dtype: torch.dtype | None) -> list[dict[str, Tensor]]:
    """In order, each shard within `limit` bytes; a tensor larger than that has a shard to itself."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if shards[-1] and size + _bytes(tensor, dtype) > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _bytes(tensor, dtype)
    return shards


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _remove_stale(folder: Path, names: list[str], *, sharded: bool) -> None:
    """Weights of an earlier, differently sharded save would be read in place of these."""
    keep = {*names, *([f"{WEIGHTS}.safetensors.index.json"] if sharded else [])}
    for file in folder.glob(f"{WEIGHTS}*.safetensors*"):
        if file.name not in keep:
            file.unlink()
