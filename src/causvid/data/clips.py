"""Clips as latents on disk: worker processes render and encode, training reads. World and codec are arguments.

    cache/
        index.json                     what the cache was made from
        images/shard-00000.safetensors     latents [N, T, C, h, w] fp16, seeds [N], truth [N, T, gh, gw] uint8,
                                           motion [N, T, gh, gw, 2] int8, travel [N, T] float32; captions in the
                                           metadata, several per clip

Clip i of a pool is a function of its seed alone, so a cache can be continued after any interruption and is the same
whichever process makes which shard. A shard appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from causvid.atomic import whole_file
from causvid.codecs import Codec
from causvid.errors import UserError
from causvid.noise import mix, seeded
from causvid.shapes import Latents

INDEX = "index.json"
ENCODE_AT_ONCE = 64  # pixel frames in one pass of the codec: enough to fill a core, small enough for its cache


@dataclass(frozen=True)
class PoolSpec:
    """One length of clip. Its seeds are first_seed, first_seed + 1, ..."""

    name: str
    num_latents: int
    num_clips: int
    clips_per_shard: int = 128
    first_seed: int = 0

    @property
    def num_shards(self) -> int:
        return -(-self.num_clips // self.clips_per_shard)

    def seeds(self, shard: int) -> range:
        start = shard * self.clips_per_shard
        stop = min(start + self.clips_per_shard, self.num_clips)
        return range(self.first_seed + start, self.first_seed + stop)


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray  # uint8 [F, H, W, 3]
    captions: list[str]
    truth: np.ndarray | None = None  # uint8 [T, gh, gw]: what each patch of each latent frame shows
    motion: np.ndarray | None = None  # int8 [T, gh, gw, 2]: how far it came, in pixels right and down, since the last
    camera: np.ndarray | None = None  # float32 [T]: how far the view has come, in pixels to the right


@runtime_checkable
class Source(Protocol):
    """Makes the clips of these seeds, `num_latents` latent frames each. Sent to worker processes, so it must pickle.

    It is given many at once only so that clips may share work: each must be a function of its own seed."""

    def __call__(self, seeds: Sequence[int], num_latents: int) -> list[Clip]: ...


# ---- writing -----------------------------------------------------------------------------------------------------


def write_cache(
    folder: Path,
    pools: Sequence[PoolSpec],
    source: Source,
    load_codec: Callable[[], Codec],
    *,
    made_from: dict[str, str],
    num_workers: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> None:
    """Make what is missing. `made_from` names world and codec; a cache of another origin is refused, not mixed.

    `num_workers` processes share the work; 0 does it in this one. `on_shard(done, total)` is told of every shard."""
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, pools, made_from)
    jobs = [(spec, shard) for spec in pools for shard in range(spec.num_shards)]
    for spec in pools:
        for leftover in (folder / spec.name).glob(".shard-*"):  # of a process that was killed while writing
            leftover.unlink()
    missing = [(spec, shard) for spec, shard in jobs if not shard_file(folder, spec.name, shard).exists()]
    done = len(jobs) - len(missing)
    for _ in _make_shards(folder, missing, source, load_codec, num_workers):
        done += 1
        if on_shard:
            on_shard(done, len(jobs))


def _make_shards(
    folder: Path, jobs: list[tuple[PoolSpec, int]], source: Source, load_codec: Callable[[], Codec], num_workers: int
) -> Iterator[None]:
    """Yields once for every shard that stands on disk."""
    if num_workers == 0:
        codec = load_codec()
        for spec, shard in jobs:
            write_shard(shard_file(folder, spec.name, shard), spec, spec.seeds(shard), source, codec)
            yield
        return
    context = get_context("spawn")  # forked processes inherit locks of torch's thread pools
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(load_codec,)) as workers:
        try:
            tasks = [workers.submit(_make_shard, folder, spec, shard, source) for spec, shard in jobs]
            for task in as_completed(tasks):
                yield task.result()
        except BaseException:
            workers.shutdown(wait=True, cancel_futures=True)
            raise


def shard_file(folder: Path, pool: str, shard: int) -> Path:
    return folder / pool / f"shard-{shard:05d}.safetensors"


def write_shard(path: Path, spec: PoolSpec, seeds: Sequence[int], source: Source, codec: Codec) -> None:
    """Render and encode these clips into one file."""
    clips = source(seeds, spec.num_latents)
    group = max(1, ENCODE_AT_ONCE // len(clips[0].frames))
    latents = []
    for start in range(0, len(clips), group):
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips[start : start + group]]))
        video = (frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1).to(codec.dtype)
        with torch.no_grad():
            latents.append(codec.encode(video).to(torch.float16))
    tensors = {"latents": torch.cat(latents), "seeds": torch.tensor(list(seeds))}
    if all(clip.camera is not None for clip in clips):
        ways = np.stack([clip.camera for clip in clips if clip.camera is not None])
        tensors["travel"] = torch.from_numpy(ways).float() / codec.space_factor
    for name in ("truth", "motion"):
        arrays = [getattr(clip, name) for clip in clips]
        if all(array is not None for array in arrays):
            tensors[name] = torch.from_numpy(np.stack(arrays))
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"captions": json.dumps([clip.captions for clip in clips])})


_codec: Codec | None = None  # of a worker process: loaded once, for all its shards


def _start_worker(load_codec: Callable[[], Codec]) -> None:
    global _codec
    torch.set_num_threads(1)
    _codec = load_codec()


def _make_shard(folder: Path, spec: PoolSpec, shard: int, source: Source) -> None:
    assert _codec is not None
    write_shard(shard_file(folder, spec.name, shard), spec, spec.seeds(shard), source, _codec)


def _claim(folder: Path, pools: Sequence[PoolSpec], made_from: dict[str, str]) -> None:
    """Write the index, or check that the cache that is there has the same origin and the same seeds."""
    index: dict[str, Any] = {"made_from": made_from, "pools": {}}
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        if index["made_from"] != made_from:
            raise UserError(f"{folder} was made from {index['made_from']}, not {made_from}; choose another folder.")
    for spec in pools:
        before = index["pools"].get(spec.name)
        # more clips may be added to a pool; everything else decides which clip is where
        if before is not None and before | {"num_clips": spec.num_clips} != asdict(spec):
            raise UserError(
                f"pool '{spec.name}' in {folder} was laid out as {before}; keep to it, or use another folder."
            )
        _drop_short_tail(folder, spec, before)
        index["pools"][spec.name] = asdict(spec)
    with whole_file(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")


def ends_of(folder: Path) -> dict[str, int]:
    """The seed after the last one of every pool of a cache."""
    try:
        pools = json.loads((folder / INDEX).read_text())["pools"]
        return {name: spec["first_seed"] + spec["num_clips"] for name, spec in pools.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder} holds no pools of latents: it has no {INDEX} of `causvid latents`.") from None


def _drop_short_tail(folder: Path, spec: PoolSpec, before: dict | None) -> None:
    """A pool that grows makes its last, partly filled shard anew."""
    if before is not None and before["num_clips"] != spec.num_clips:
        shard_file(folder, spec.name, before["num_clips"] // spec.clips_per_shard).unlink(missing_ok=True)


# ---- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    latents: Latents  # float32
    captions: list[str]
    truth: Tensor | None  # uint8 [B, T, gh, gw]
    motion: Tensor | None = None  # int8 [B, T, gh, gw, 2]
    travel: Tensor | None = None  # float32 [B, T]: how far the view has come, in latents to the right


class Pool:
    """All finished shards of a pool. They stay on disk, mapped into memory: a clip is read when a batch asks for it,
    and what is read often remains in the system's cache, so a pool may be larger than memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        files = sorted((folder / name).glob("shard-*.safetensors"))
        if not files:
            raise UserError(f"{folder} has no clips in '{name}'; make them first with `causvid latents`.")
        self.latents: list[Tensor] = []  # of each shard [N, T, C, h, w]
        self.truths: list[Tensor] = []  # of each shard, or none
        self.motions: list[Tensor] = []
        self.ways: list[Tensor] = []
        self.captions: list[list[str]] = []
        self._places: list[tuple[int, int]] = []  # of each clip: its shard, and its row there
        digest = hashlib.sha256()
        for file in files:
            tensors, captions = _open(file)
            digest.update(tensors["seeds"].numpy().tobytes())
            digest.update(tensors["latents"][0].numpy().tobytes())
            self._places += [(len(self.latents), row) for row in range(len(captions))]
            self.latents.append(tensors["latents"])
            self.captions += captions
            self.truths += [tensors["truth"]] if "truth" in tensors else []
            self.motions += [tensors["motion"]] if "motion" in tensors else []
            self.ways += [tensors["travel"]] if "travel" in tensors else []
        self.clip_shape = tuple(self.latents[0].shape[1:])  # T, C, h, w
        self.identity = digest.hexdigest()[:16]
        self._order: list[int] = []
        self._order_of: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def tells_motion(self) -> bool:
        return len(self.motions) == len(self.latents)

    @property
    def tells_travel(self) -> bool:
        return len(self.ways) == len(self.latents)

    def batch(self, position: int, size: int, num_frames: int, seed: int, read_rows: slice = slice(None)) -> Batch:
        """Clips number `position` ... of an endless sequence that visits every clip once per epoch, in an order that
        the epoch decides. Clips are cut to their first `num_frames`: the first latent frame of a clip is unlike others.
        Captions and ways are those of all, the rest is read of `read_rows` alone.
        """
        rows = [self._row(place, seed) for place in range(position, position + size)]
        told = [self.captions[row] for row in rows]
        chosen = [captions[mix(seed, place) % len(captions)] for place, captions in enumerate(told, position)]
        places = [self._places[row] for row in rows]

        def read(shards: list[Tensor], rows: slice = read_rows) -> Tensor | None:
            if len(shards) < len(self.latents):  # of before shards had these
                return None
            return torch.stack([shards[shard][row, :num_frames] for shard, row in places[rows]])

        latents = read(self.latents)
        assert latents is not None
        return Batch(latents.float(), chosen, read(self.truths), read(self.motions), read(self.ways, slice(None)))

    def _row(self, place: int, seed: int) -> int:
        epoch, rest = divmod(place, len(self))
        if self._order_of != (epoch, seed):
            self._order_of = (epoch, seed)
            self._order = torch.randperm(len(self), generator=seeded(seed, epoch)).tolist()
        return self._order[rest]


def _open(file: Path) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Tensors that are mapped, not read, and captions."""
    try:
        with safe_open(file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (no dict)
            return tensors, json.loads(shard.metadata()["captions"])
    except (SafetensorError, OSError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UserError(f"{file} is damaged ({reason}); delete it and make it again with the same command.") from None
