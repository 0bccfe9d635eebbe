"""Weights as what differs from other weights, in 8 bits: averages of one run differ by little, and take half as much.

The file that they differ from lies beside them, and no other will do: its hash is kept.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causvid.errors import UserError
from causvid.tensor_files import read_tensors, write_tensors

KEY = "difference_from"  # in the metadata of a file
STORED = torch.float8_e4m3fn


def write_difference(path: Path, tensors: Mapping[str, Tensor], base: Path, metadata: dict[str, str]) -> None:
    """`base` names the same tensors."""
    small, scales = {}, {}
    for name, other in read_tensors(base).items():
        gap = tensors[name].float() - other.float()
        scales[name] = float(gap.abs().max() / torch.finfo(STORED).max) or 1.0
        small[name] = (gap / scales[name]).to(STORED)
    about = {"file": base.name, "sha256": _hash(base), "scales": scales}
    write_tensors(path, small, metadata | {KEY: json.dumps(about)})


def add_difference(path: Path, tensors: dict[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `path` stands for, if it holds a difference; else what it holds."""
    if KEY not in metadata:
        return tensors
    about = json.loads(metadata[KEY])
    base = path.parent / about["file"]
    if not base.is_file() or _hash(base) != about["sha256"]:
        raise UserError(f"{path} holds what differs from another {base.name} than lies beside it; keep them together.")
    return {
        name: (other.float() + about["scales"][name] * tensors[name].float()).to(other.dtype)
        for name, other in read_tensors(base).items()
    }


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
