"""Low-rank additions to a network's weights (LoRA): read from the layouts of the Wan world, merged and taken out again,
made from the difference of two networks.

    weight + scale * up @ down        for what is low-rank
    parameter + diff                  for what is given in full: biases, norms, modulation
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from causvid.atomic import all_or_nothing
from causvid.checkpoints import bare_name, read_state
from causvid.errors import UserError
from causvid.models.wan import to_diffusers, to_original, unflatten
from causvid.tensor_files import read_file, write_tensors

LORA_ENTRIES = ("generator_lora", "lora", "state_dict")  # what training code calls a LoRA inside a `.pt` file

_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.bias": "up_bias",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
    "diff_m": "diff_m",
}
_FULL = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}  # suffix -> parameter that it is added to
_PART = re.compile(rf"(.+)\.({'|'.join(re.escape(part) for part in _PARTS)})")
_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB]\.)(?!weight$|bias$)\w+\.")  # PEFT's in-memory names have one
_FLAT = re.compile(r"lora_[a-z0-9]+_(.+)")  # kohya: lora_unet_blocks_0_self_attn_q
_OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_w": "LoKr", "hada_w": "LoHa"}


@dataclass(frozen=True)
class LowRank:
    """`scale` is alpha / rank."""

    down: Tensor  # [r, in], with the kernel behind for a convolution
    up: Tensor  # [out, r]
    scale: float

    def delta(self) -> Tensor:
        """What is added to the weight [out, in] at strength 1, in float32."""
        return self.scale * (self.up.flatten(1).float() @ self.down.flatten(1).float())


@dataclass(frozen=True)
class Lora:
    """Additions to parameters, which are named as in the original Wan."""

    low_rank: dict[str, LowRank] = field(default_factory=dict)
    full: dict[str, Tensor] = field(default_factory=dict)

    def names(self) -> set[str]:
        return self.low_rank.keys() | self.full.keys()

    def delta(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """What it adds at strength 1 to parameter `name`, in float32."""
        parts = [self.low_rank[name].delta()] if name in self.low_rank else []
        parts += [self.full[name].float()] if name in self.full else []
        return sum((part.reshape(shape) for part in parts), start=torch.zeros(()))


# ---- files -----------------------------------------------------------------------------------------------------


def read_lora(path: str | Path, *, alpha: float | None = None) -> Lora:
    """A LoRA for a Wan transformer in the naming of diffusers / PEFT, of kohya, or of the original Wan; also a `.pt`.

    alpha: for files that do not tell theirs; without one such a file is read with alpha = rank, a scale of 1.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the file of the LoRA.")
    tensors, metadata = read_file(path)
    tensors = next((tensors[key] for key in LORA_ENTRIES if isinstance(tensors.get(key), dict)), tensors)
    told = _peft_config(path, metadata)
    if told.get("alpha_pattern") or told.get("use_dora"):
        raise UserError(f"{path} was trained with alpha_pattern or use_dora, which cannot be read; merge it with PEFT.")
    if alpha is None and "lora_alpha" in told:
        alpha = float(told["lora_alpha"])
    return parse_lora(tensors, source=str(path), alpha=alpha, root_scale=bool(told.get("use_rslora")))


def parse_lora(
    tensors: Mapping[str, Tensor], *, source: str = "the LoRA", alpha: float | None = None, root_scale: bool = False
) -> Lora:
    """`read_lora` for tensors at hand. `root_scale`: the scale is alpha / sqrt(rank) (rank-stabilised)."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        kind = next((label for mark, label in _OTHER_KINDS.items() if mark in key), None)
        if kind is not None:
            raise UserError(f"{source} is a {kind}, which cannot be read; convert it to a plain LoRA.")
        match = _PART.fullmatch(_ADAPTER_NAME.sub("", bare_name(key)))
        module = _module(match[1]) if match else None
        if match is None or module is None:
            unknown.append(key)
        else:
            modules.setdefault(module, {})[_PARTS[match[2]]] = tensor
    if unknown or not modules:
        told = f"{len(unknown)} unknown tensors ({', '.join(unknown[:3])})" if unknown else "no tensors"
        raise UserError(f"{source} is not a LoRA for a Wan transformer: {told}; check what it was made for.")
    lora = Lora()
    for module, parts in modules.items():
        scale = 1.0
        if "down" in parts or "up" in parts:
            if not {"down", "up"} <= parts.keys():
                raise UserError(f"{source} has only one half of its pair for {module}; download it again.")
            rank = parts["down"].shape[0]
            stated = float(parts["alpha"]) if "alpha" in parts else alpha
            scale = 1.0 if stated is None else stated / (rank**0.5 if root_scale else rank)
            lora.low_rank[f"{module}.weight"] = LowRank(parts["down"], parts["up"], scale)
        for part, leaf in _FULL.items():
            if part in parts:
                lora.full[f"{module}.{leaf}"] = parts[part]
        if "up_bias" in parts:
            lora.full[f"{module}.bias"] = scale * parts["up_bias"] + parts.get("diff_b", 0)
    return lora


def save_lora(lora: Lora, path: str | Path, *, layout: Literal["diffusers", "original"] = "diffusers") -> None:
    """`diffusers`: transformer.blocks.0.attn1.to_q.lora_A.weight. `original`, for Wan's own tools and ComfyUI:
    diffusion_model.blocks.0.self_attn.q.lora_down.weight. Alpha is the rank, so who ignores it reads the same; what is
    not low-rank is added as `.diff`, which tools for the original names merge and diffusers passes over."""
    down, up = {"diffusers": ("lora_A", "lora_B"), "original": ("lora_down", "lora_up")}[layout]
    rename: Callable[[str], str] = to_diffusers if layout == "diffusers" else str
    prefix = "transformer." if layout == "diffusers" else "diffusion_model."
    tensors = {}
    for name, part in lora.low_rank.items():
        module = prefix + rename(name.removesuffix(".weight"))
        tensors[f"{module}.{down}.weight"] = part.down * part.scale
        tensors[f"{module}.{up}.weight"] = part.up
        if layout == "diffusers":  # its reader of the original names stumbles over alphas outside the blocks
            tensors[f"{module}.alpha"] = torch.tensor(float(part.down.shape[0]))
    suffixes = {leaf: suffix for suffix, leaf in _FULL.items()}
    for name, diff in lora.full.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{prefix}{rename(module)}.{suffixes[leaf]}"] = diff
    path = Path(path)
    with all_or_nothing(path.parent) as temporary:
        write_tensors(temporary(path.name), tensors, {"format": "pt"})


def _module(text: str) -> str | None:
    flat = _FLAT.fullmatch(text)
    return unflatten(flat[1]) if flat else to_original(text)


def _peft_config(path: Path, metadata: dict[str, str]) -> dict:
    """What diffusers keeps in the file and PEFT beside it: the alpha above all."""
    if "lora_adapter_metadata" in metadata:
        return {key.removeprefix("transformer."): v for key, v in json.loads(metadata["lora_adapter_metadata"]).items()}
    beside = path.parent / "adapter_config.json"
    return json.loads(beside.read_text()) if path.stem == "adapter_model" and beside.is_file() else {}


# ---- merging ---------------------------------------------------------------------------------------------------


class LoraSet:
    """The LoRAs that are merged into a network. Parameters that any of them touches are kept in their first state, so
    that whatever the order of changes, weights are `first + sum of strength * delta`, and removal is exact."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self._loras: dict[str, tuple[Lora, float]] = {}
        self._first: dict[str, Tensor] = {}

    @classmethod
    def apply(cls, model: nn.Module, files: Iterable[tuple[str | Path, float]]) -> LoraSet:
        """Merge LoRA files with their strengths into `model`; they are named by their paths."""
        loras = cls(model)
        for path, strength in files:
            loras.add(str(path), read_lora(path), strength)
        return loras

    @property
    def strengths(self) -> dict[str, float]:
        return {name: strength for name, (_, strength) in self._loras.items()}

    def add(self, name: str, lora: Lora, strength: float = 1.0) -> None:
        """Merge `lora`, or put it in the place of the one that has this name."""
        self._check(name, lora)
        touched = lora.names() | (self._loras[name][0].names() if name in self._loras else set())
        self._loras[name] = (lora, strength)
        self._merge(touched)

    def set_strength(self, name: str, strength: float) -> None:
        self.add(name, self._loras[name][0], strength)

    def remove(self, name: str) -> None:
        self._merge(self._loras.pop(name)[0].names())

    def unload(self) -> None:
        """The network as it was, bit for bit."""
        self._loras.clear()
        self._merge(set(self._first))

    @torch.no_grad()
    def _merge(self, touched: set[str]) -> None:
        for name in touched:
            parameter = self._parameters[name]
            active = [(lora, strength) for lora, strength in self._loras.values() if name in lora.names()]
            if not active:
                parameter.copy_(self._first.pop(name))
                continue
            first = self._first.setdefault(name, parameter.detach().clone())
            merged = first.float()
            for lora, strength in active:
                merged = merged + strength * lora.delta(name, parameter.shape).to(parameter.device)
            parameter.copy_(merged)

    def _check(self, name: str, lora: Lora) -> None:
        absent = sorted(lora.names() - self._parameters.keys())
        misfits = [key for key, part in lora.low_rank.items() if key not in absent and not self._fits(key, part)]
        misfits += [
            k for k, diff in lora.full.items() if k not in absent and diff.numel() != self._parameters[k].numel()
        ]
        if absent or misfits:
            told = [f"{len(absent)} are not in it ({', '.join(absent[:3])})"] if absent else []
            told += [f"{len(misfits)} have another shape ({', '.join(misfits[:3])})"] if misfits else []
            raise UserError(
                f"LoRA '{name}' does not fit this network: of {len(lora.names())} parameters, {' and '.join(told)}; "
                "take one made for this size and kind of Wan."
            )

    def _fits(self, name: str, part: LowRank) -> bool:
        weight = self._parameters[name].flatten(1)
        return tuple(weight.shape) == (part.up.shape[0], part.down.flatten(1).shape[1])


# ---- extraction ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnergyKept:
    """Share of the squared difference that a LoRA holds: of each low-rank weight, and of all parameters together."""

    per_weight: dict[str, float]
    total: float


def extract_lora(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], rank: int, *, progress: bool = False
) -> tuple[Lora, EnergyKept]:
    """The best LoRA of `rank` that leads from one network's tensors to the other's (original names).

    Linear weights are truncated by SVD; everything else is kept in full, so that at full rank nothing is lost."""
    if student.keys() != teacher.keys():
        raise UserError("a LoRA can be extracted only from two networks of one architecture; these differ in tensors.")
    lora = Lora()
    per_weight: dict[str, float] = {}
    kept = everything = 0.0
    names = list(student)
    for name in track(names, "extracting", console=Console(stderr=True)) if progress else names:
        diff = student[name].detach().float() - teacher[name].detach().float()
        energy = float(diff.double().square().sum())
        everything += energy
        if energy == 0:
            continue
        if diff.ndim == 2:
            u, s, vh = torch.linalg.svd(diff, full_matrices=False)
            root = s[:rank].sqrt()  # split evenly, so that both halves train at the same pace
            lora.low_rank[name] = LowRank((root[:, None] * vh[:rank]).contiguous(), u[:, :rank] * root, 1.0)
            energy = min(energy, float(s[:rank].double().square().sum()))
            per_weight[name] = energy / max(float(s.double().square().sum()), energy)
        else:
            lora.full[name] = diff
        kept += energy
    return lora, EnergyKept(per_weight, kept / everything if everything else 1.0)


def write_lora_between(student: Path, teacher: Path, out: Path, rank: int) -> str:
    """The LoRA from one network file to another, as a file; returns a report of what the rank keeps."""
    lora, kept = extract_lora(read_state(student), read_state(teacher), rank, progress=True)
    save_lora(lora, out)
    report = f"{out}: rank {rank} keeps {kept.total:.1%} of the squared difference"
    if kept.per_weight:
        worst = min(kept.per_weight, key=lambda name: kept.per_weight[name])
        report += f"; of single weights {kept.per_weight[worst]:.1%} ({worst}) to {max(kept.per_weight.values()):.1%}"
    return report
