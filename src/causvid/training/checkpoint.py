"""Exact resume: a folder per checkpoint that appears whole or not at all, and says what it belongs to.

    checkpoints/step-00001200/
        manifest.json            step, state (data position, time used, ...), config, commit, data
        <name>.safetensors       one per network: model, ema, text, ...
        <name>.optimizer.pt      one per optimizer

Randomness needs no file: every step draws from a generator seeded with (seed, step). Gradients are never saved.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from causvid.errors import UserError
from causvid.media import whole_file
from causvid.training import parallel

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    state: dict[str, Any]
    about: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    state: dict[str, Any],
    about: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder`/step-..., then drop all but the newest `keep`. Every rank calls it; the first one writes."""
    final = folder / f"step-{step:08d}"
    # gathering is collective: all ranks take part before one of them turns to the disk
    weights = {name: parallel.gathered(module.state_dict()) for name, module in modules.items()}
    moments = {name: parallel.gathered(optimizer.state_dict()) for name, optimizer in optimizers.items()}
    if parallel.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=f".{final.name}-"))
        try:
            for name, tensors in weights.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, partial / f"{name}.safetensors")
            for name, moment in moments.items():
                torch.save(moment, partial / f"{name}.optimizer.pt")
            # last: a folder without a manifest is no checkpoint
            (partial / MANIFEST).write_text(json.dumps({"step": step, "state": state, "about": about}, indent=1))
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
        for leftover in folder.glob(".step-*"):  # of a run that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
    parallel.wait_for_all()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def read_checkpoint(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}); give a folder named step-... of a run.") from error
    return Checkpoint(path, manifest["step"], manifest["state"], manifest["about"])


def load_checkpoint(
    checkpoint: Checkpoint, *, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> None:
    """Put everything back in place, strictly."""
    for name, module in modules.items():
        parallel.load_gathered(module, load_file(_existing(checkpoint.path / f"{name}.safetensors")))
    for name, optimizer in optimizers.items():
        file = _existing(checkpoint.path / f"{name}.optimizer.pt")
        parallel.load_gathered_optimizer(optimizer, torch.load(file, map_location="cpu", weights_only=True))


def write_weights(path: Path, module: nn.Module, about: dict[str, str] | None = None, dtype: torch.dtype | None = None):
    """One network as a safetensors file, for use rather than for resuming. Every rank calls it."""
    tensors = {name: t.to(dtype or t.dtype).contiguous() for name, t in parallel.gathered(module.state_dict()).items()}
    with whole_file(path) if parallel.is_first() else contextlib.nullcontext() as temporary:
        if temporary is not None:
            save_file(tensors, temporary, metadata=about)
    parallel.wait_for_all()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file} is missing: the checkpoint belongs to another kind of run; start a new run folder.")
    return file
