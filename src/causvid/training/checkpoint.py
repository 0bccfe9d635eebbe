"""Exact resume: a folder per checkpoint that appears whole or not at all, and says what it belongs to.

    checkpoints/step-00001200/
        manifest.json            step, state (data position, time used, ...), config, commit, data
        <name>.safetensors       one per network: model, ema, text, ...
        <name>.optimizer.pt      one per optimizer
        shards/                  of a run of several processes: each one's part of networks and moments (shards.py);
                                 <name>.optimizer.pt is then what is no tensor

Either kind is resumed by any number of processes. Randomness needs no file: every step draws from a generator seeded
with (seed, step). Gradients are never saved.
"""

import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from causvid.atomic import whole_file
from causvid.errors import UserError
from causvid.training import parallel
from causvid.training.shards import num_files, read_shards, shapes_of, write_shards

MANIFEST = "manifest.json"
SHARDS = "shards"


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
    """Write `folder`/step-..., then drop all but the newest `keep`. Every rank calls it."""
    final = folder / f"step-{step:08d}"
    manifest = {"step": step, "state": state, "about": about}
    with _appearing(final) as partial:
        moments = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        if parallel.num_ranks() > 1:
            write_shards(partial / SHARDS, _named(modules) | _moments_of(moments))
            moments = {name: _without_tensors(moment) for name, moment in moments.items()}
        elif parallel.is_first():
            for name, module in modules.items():
                tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
                save_file(tensors, partial / f"{name}.safetensors")
        if parallel.is_first():  # the others may be behind: to them the folder may have its name already
            if parallel.num_ranks() > 1:
                manifest["shards"] = num_files(partial / SHARDS)  # one may get lost
            for name, moment in moments.items():
                torch.save(moment, partial / f"{name}.optimizer.pt")
            # last: a folder without a manifest is no checkpoint
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if parallel.is_first():
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    parallel.wait_for_all()
    return final


@contextlib.contextmanager
def _appearing(final: Path) -> Iterator[Path]:
    """A folder that all ranks write into, and that takes its name when all of them have."""
    partial = final.with_name(f".{final.name}-partial")
    try:
        if parallel.is_first():
            final.parent.mkdir(parents=True, exist_ok=True)
            for leftover in final.parent.glob(".step-*"):  # of a run that was killed while writing
                shutil.rmtree(leftover)
            partial.mkdir()
        parallel.wait_for_all()
        yield partial
        if parallel.is_first():
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"the checkpoint {final} could not be written ({reason}); free space, and the same command goes on from "
            "the one before."
        ) from error
    finally:
        if parallel.is_first():
            shutil.rmtree(partial, ignore_errors=True)


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
    if (checkpoint.path / SHARDS).is_dir():
        _load_shards(checkpoint.path, modules, optimizers)
        return
    for name, module in modules.items():
        file = _existing(checkpoint.path / f"{name}.safetensors")
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
        parallel.load_gathered(module, tensors)
    for name, optimizer in optimizers.items():
        parallel.load_gathered_optimizer(optimizer, _read_optimizer(checkpoint.path, name))


def _load_shards(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
    folder, written = path / SHARDS, json.loads((path / MANIFEST).read_text())["shards"]
    if num_files(folder) != written:
        raise UserError(
            f"{folder} holds {num_files(folder)} files of {written}; delete {path.name}, and the run resumes from the "
            "one before."
        )
    stored, places = shapes_of(folder), _named(modules)
    states = {name: _read_optimizer(path, name) for name in optimizers}
    for name, optimizer in optimizers.items():
        moments = _places_of_moments(f"{name}.optimizer/", optimizer, stored)
        for key, place in moments.items():
            index, moment = key.split("/")[1:]
            states[name]["state"][int(index)][moment] = place
        places |= moments
    _check_fit(folder, stored, places, modules)
    read_shards(folder, places)
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states[name])


def _places_of_moments(prefix: str, optimizer: Optimizer, stored: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """An optimizer that has taken no step has no moments yet: tensors for those stored, laid out as the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = {}
    for key, shape in stored.items():
        if key.startswith(prefix):
            like = parameters[int(key.split("/")[1])].detach()
            places[key] = torch.zeros_like(like) if shape and shape == like.shape else torch.zeros(shape)
    return places


def _check_fit(
    folder: Path, stored: Mapping[str, tuple[int, ...]], places: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> None:
    for name, place in places.items():
        if name not in stored:
            raise UserError(f"{name} is missing in {folder}: the checkpoint belongs to another kind of run.")
        if stored[name] != tuple(place.shape):
            raise UserError(f"the checkpoint has {name} of {list(stored[name])} instead of {list(place.shape)}.")
    odd = sorted(name for name in stored if name.split("/")[0] in modules and name not in places)
    if odd:
        raise UserError(f"the checkpoint does not fit: {', '.join(odd[:4])} belong to nothing here.")


def _named(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def _moments_of(states: Mapping[str, dict[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{name}.optimizer/{index}/{key}": value
        for name, state in states.items()
        for index, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def _without_tensors(state: dict[str, Any]) -> dict[str, Any]:
    entries = {
        index: {key: value for key, value in entry.items() if not isinstance(value, Tensor)}
        for index, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _read_optimizer(path: Path, name: str) -> dict[str, Any]:
    file = _existing(path / f"{name}.optimizer.pt")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    reason = str(error).split("\n")[0][:100]
    return UserError(
        f"{file} is damaged ({reason}); delete {file.parent.name}, and the run resumes from the one before."
    )


def write_weights(path: Path, module: nn.Module, about: dict[str, str] | None = None, dtype: torch.dtype | None = None):
    """One network as a safetensors file, for use rather than for resuming. Every rank calls it."""
    tensors = {}
    for name, value in module.state_dict().items():
        gathered = parallel.whole(value).detach()
        if parallel.is_first():  # the others let go of it at once
            tensors[name] = gathered.to("cpu", dtype or value.dtype).contiguous()
    with whole_file(path) if parallel.is_first() else contextlib.nullcontext() as temporary:
        if temporary is not None:
            save_file(tensors, temporary, metadata=about)
    parallel.wait_for_all()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file} is missing: the checkpoint belongs to another kind of run; start a new run folder.")
    return file
