"""Tensors that are spread over processes, on disk: every process writes its own part, any number of them reads.

PyTorch's distributed checkpoints (DCP), stored as safetensors files. Their usual storage keeps its index in a pickle,
which would run whatever code a stranger put there; this one keeps all it must know in the headers of the files, and
nothing is ever unpickled. The folder holds these files alone, and must be seen by all processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from causvid.errors import UserError


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Collective. What is the same on all processes is written by one of them."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, planner=DefaultSavePlanner(flatten_state_dict=False))
    except CheckpointException as error:  # no Exception to Python: nobody else would catch it
        raise OSError(_reason(error)) from None


def num_files(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*.safetensors"))


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of what is there."""
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"a file in {folder} is damaged ({error}); delete it, and the run resumes from the one before."
        ) from None
    return {name: tuple(about.size) for name, about in stored.items()}  # type: ignore[union-attr]  # tensors only


def read_shards(folder: Path, places: Mapping[str, Tensor]) -> None:
    """Fill tensors in place, whichever way they are laid out over however many processes. Collective."""
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read what many wrote
            dcp.load(dict(places), storage_reader=reader, planner=DefaultLoadPlanner(flatten_state_dict=False))
    except CheckpointException as error:
        raise UserError(
            f"{folder} cannot be read ({_reason(error)}); delete it, and the run resumes from the one before."
        ) from None


def _reason(error: CheckpointException) -> str:
    """What the first process that failed met with."""
    first = next(iter(error.failures.values()))
    return str(first[0]).split("\n")[0][:200]
