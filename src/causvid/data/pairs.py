"""ODE pairs on disk: what a teacher's trajectories were at the student's levels. Written by many, read by slice.

    pairs/
        index.json                 levels, sizes, what they were made from
        shard-00000.safetensors    states [N, Q+1, T, C, H, W] fp16, ordered from noise to clean; the prompts in the
                                   metadata; travel [N, T], how views move; history [N, T, C, H, W] where the past was
                                   given, not the teacher's own

Pair i is a function of its number alone, so any process may make any shard, and a shard appears whole or not at all.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from causvid.atomic import all_or_nothing, whole_file
from causvid.errors import UserError
from causvid.noise import seeded
from causvid.shapes import Latents
from causvid.tensor_files import write_tensors

INDEX = "index.json"


@dataclass(frozen=True)
class PairsSpec:
    """How a folder of pairs is laid out."""

    sigmas: tuple[float, ...]  # the levels of the states, from 1 to 0
    num_pairs: int
    pairs_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_pairs // self.pairs_per_shard)

    def numbers(self, shard: int) -> range:
        start = shard * self.pairs_per_shard
        return range(start, min(start + self.pairs_per_shard, self.num_pairs))


# ---- writing -----------------------------------------------------------------------------------------------------


def claim(folder: Path, spec: PairsSpec, made_from: dict[str, Any]) -> None:
    """Write the index, or check that what lies there was made the same way. Every process may do it: all write the
    same. More pairs may be asked for later; nothing else may change."""
    index = {"made_from": made_from, "spec": json.loads(json.dumps(asdict(spec)))}
    file = folder / INDEX
    if file.exists():
        before = read_index(folder)
        same = before | {"spec": before["spec"] | {"num_pairs": spec.num_pairs}}
        if same != index:
            differing = [key for key in made_from if before["made_from"].get(key) != made_from[key]]
            raise UserError(
                f"{folder} holds pairs made another way ({', '.join(differing) or 'levels or sizes'} differ); "
                "choose another folder, or keep to the settings in its index.json."
            )
        if before["spec"]["num_pairs"] > spec.num_pairs:
            return
        _drop_short_tail(folder, spec, before["spec"]["num_pairs"])
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")


def missing_shards(folder: Path, spec: PairsSpec, rank: int = 0, num_ranks: int = 1) -> list[int]:
    """The shards this process still has to make. One that is there but damaged is told, not silently made again."""
    mine = range(rank, spec.num_shards, num_ranks)
    for shard in mine:
        if shard_file(folder, shard).exists():
            _open(shard_file(folder, shard))
    return [shard for shard in mine if not shard_file(folder, shard).exists()]


def write_shard(
    folder: Path,
    shard: int,
    states: Tensor,
    prompts: Sequence[str],
    history: Latents | None = None,
    travel: Tensor | None = None,
) -> None:
    """`states` [N, Q+1, T, C, H, W]."""
    tensors = {"states": states.to(torch.float16)}
    if history is not None:
        tensors["history"] = history.to(torch.float16)
    if travel is not None:
        tensors["travel"] = travel
    with all_or_nothing(folder) as temporary:
        write_tensors(temporary(shard_file(folder, shard).name), tensors, {"prompts": json.dumps(list(prompts))})


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _drop_short_tail(folder: Path, spec: PairsSpec, num_before: int) -> None:
    """A folder that grows makes its last, partly filled shard anew."""
    if num_before < spec.num_pairs and num_before % spec.pairs_per_shard:
        shard_file(folder, num_before // spec.pairs_per_shard).unlink(missing_ok=True)


# ---- reading -----------------------------------------------------------------------------------------------------


def read_index(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / INDEX).read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{folder} holds no ODE pairs; make them first with `causvid train ode-pairs`.") from None


@dataclass(frozen=True)
class PairBatch:
    states: Tensor  # [B, Q+1, T, C, H, W] float32, from noise to clean
    prompts: list[str]
    history: Latents | None  # the clean past, where it was not the teacher's own
    travel: Tensor | None = None  # [B, T] how views move; None: of before pairs told that


class Pairs:
    """All finished shards of a folder. Rows are read when they are asked for, and only they."""

    def __init__(self, folder: Path) -> None:
        index = read_index(folder)
        self.sigmas = tuple(index["spec"]["sigmas"])
        self.folder = folder
        self._files: list[Any] = []  # open safetensors files
        self._rows: list[tuple[int, int]] = []
        self.prompts: list[str] = []
        digest = hashlib.sha256(json.dumps(index["made_from"], sort_keys=True).encode())
        for path in sorted(folder.glob("shard-*.safetensors")):
            file = _open(path)
            prompts = json.loads(file.metadata()["prompts"])
            self._rows += [(len(self._files), row) for row in range(len(prompts))]
            self.prompts += prompts
            self._files.append(file)
            digest.update(json.dumps([path.name, prompts]).encode())
        if not self._files:
            raise UserError(f"{folder} holds no finished shard; run `causvid train ode-pairs` until one is written.")
        self.clip_shape = tuple(self._files[0].get_slice("states").get_shape()[2:])  # T, C, H, W
        self.identity = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, position: int, size: int, seed: int) -> PairBatch:
        """Pairs number `position` ... of an endless sequence that visits every pair once per epoch."""
        numbers = [self._number(place, seed) for place in range(position, position + size)]

        def read(name: str) -> Tensor | None:
            if name not in self._files[0].keys():  # noqa: SIM118 (a safetensors file, not a dict)
                return None
            return torch.stack([self._read(name, number) for number in numbers]).float()

        states = read("states")
        assert states is not None
        return PairBatch(states, [self.prompts[number] for number in numbers], read("history"), read("travel"))

    def _read(self, name: str, number: int) -> Tensor:
        file, row = self._rows[number]
        return self._files[file].get_slice(name)[row]

    def _number(self, place: int, seed: int) -> int:
        epoch, rest = divmod(place, len(self))
        return int(torch.randperm(len(self), generator=seeded(seed, epoch))[rest])


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except (SafetensorError, OSError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UserError(f"{path} is damaged ({reason}); delete it and run the same command again.") from None
