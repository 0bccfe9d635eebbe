"""Weight files named by a user: read without running code from them, loaded strictly, refused in words."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from causvid.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file (.pth, .pt, .bin) that holds only tensors."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of the weight file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; what matters is refused below, in words
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"{path} cannot be read as a weight file ({reason}); download it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a plain set of named tensors; give the file of the model's weights itself.")
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give `module` (which may live on the meta device) the tensors of `state`; every name and shape must match."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    misfits = [name for name in wanted if name in given and given[name] != wanted[name]]
    differences = [
        ("missing", sorted(wanted.keys() - given.keys())),
        ("unknown", sorted(given.keys() - wanted.keys())),
        ("of another shape", [f"{name} {list(given[name])} instead of {list(wanted[name])}" for name in misfits]),
    ]
    if any(names for _, names in differences):
        told = "; ".join(f"{len(names)} {what} ({_first_few(names)})" for what, names in differences if names)
        raise UserError(
            f"{source} does not fit {type(module).__name__}: of {len(wanted)} tensors, {told}; "
            "check that it is the file of this model."
        )
    module.load_state_dict(dict(state), strict=True, assign=True)


def _first_few(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
