"""Weight files: read without running code from them, loaded strictly, refused in words; and written."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from causvid.errors import UserError


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What one weight file holds, and its metadata. The values of a `.pt` file may be dictionaries of tensors."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of the weight file.")
    if path.suffix == ".gguf":
        raise UserError(
            f"{path} is a quantised gguf file, which cannot be read here; take the safetensors of this model."
        )
    try:
        if path.suffix in (".safetensors", ".sft"):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        # only the zip format can be mapped; older files are read whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; what matters is refused below, in words
            payload = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a Python object ({named[1].rstrip('.,')})" if named else "something other than tensors"
        raise UserError(
            f"{path} cannot be read: it holds {what}, which could run code, or is damaged; "
            "take a safetensors version of it, or save its tensors alone."
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({one_line(error)}); it may be incomplete: download or copy it again."
        ) from None
    if not isinstance(payload, dict):
        raise UserError(f"{path} holds a {type(payload).__name__}, not named tensors; give the file of the weights.")
    return payload, {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file (.pth, .pt, .bin) that holds nothing else."""
    state, _ = read_file(path)
    if not all(isinstance(value, Tensor) for value in state.values()):
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
        told = "; ".join(f"{len(names)} {what} ({first_few(names)})" for what, names in differences if names)
        raise UserError(
            f"{source} does not fit {type(module).__name__}: of {len(wanted)} tensors, {told}; "
            "check that it is the file of this model."
        )
    module.load_state_dict(dict(state), strict=True, assign=True)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Copies: the file must not share storage between names, and the source may be a file that this one replaces."""
    plain = {name: t.detach().to("cpu", dtype or t.dtype, copy=True).contiguous() for name, t in tensors.items()}
    save_file(plain, path, metadata=metadata)


def first_few(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def one_line(error: Exception) -> str:
    return (str(error).split("\n")[0] or type(error).__name__)[:120]
