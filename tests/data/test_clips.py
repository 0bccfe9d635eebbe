"""Latent caches: continued, deterministic, never half a shard."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from causvid.data import clips
from causvid.data.clips import Clip, Pool, PoolSpec, shard_file, write_cache, write_shard
from causvid.errors import UserError
from tiny_models import BoxCodec

MADE_FROM = {"world": "noise 1", "codec": "mean"}
SPEC = PoolSpec("long", 3, 10, clips_per_shard=4, first_seed=100)


@dataclass(frozen=True)
class Noise:
    """Frames of one colour: the seed itself, so that a latent tells which clip it is."""

    def __call__(self, seeds: Sequence[int], num_latents: int) -> list[Clip]:
        return [self.clip(seed, num_latents) for seed in seeds]

    def clip(self, seed: int, num_latents: int) -> Clip:
        frames = np.full((1 + 4 * (num_latents - 1), 8, 8, 3), seed, dtype=np.uint8)
        truth = np.full((num_latents, 2, 2), seed % 7, dtype=np.uint8)
        motion = np.full((num_latents, 2, 2, 2), -(seed % 5), dtype=np.int8)
        return Clip(frames, [f"clip {seed}", f"{seed} again"], truth, motion)


class MeanCodec(BoxCodec):
    latent_channels = 3

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video[:, ::4, :, ::4, ::4] * 127.5 + 127.5


def write(folder: Path, spec: PoolSpec = SPEC, **changes) -> None:
    write_cache(folder, [spec], Noise(), MeanCodec, **{"made_from": MADE_FROM, "num_workers": 0, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_made_by_processes_and_continued(tmp_path, monkeypatch):
    told = []
    write(tmp_path, num_workers=2, on_shard=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    before = files(tmp_path)
    assert sorted(before) == ["index.json"] + [f"long/shard-0000{i}.safetensors" for i in range(3)]

    shard_file(tmp_path, "long", 1).unlink()
    stamps = [shard_file(tmp_path, "long", i).stat().st_mtime_ns for i in (0, 2)]
    write(tmp_path, on_shard=lambda done, total: told.append((done, total)))
    assert told[3:] == [(3, 3)]  # only the missing one is made, and it is the same to the byte
    assert files(tmp_path) == before
    assert [shard_file(tmp_path, "long", i).stat().st_mtime_ns for i in (0, 2)] == stamps

    write(tmp_path, replace(SPEC, num_clips=14))  # a pool may grow
    assert torch.cat(Pool(tmp_path, "long").latents)[:, 0, 0, 0, 0].tolist() == list(range(100, 114))
    with pytest.raises(UserError, match="choose another folder"):
        write(tmp_path, made_from=MADE_FROM | {"codec": "other"})
    with pytest.raises(UserError, match="laid out"):
        write(tmp_path, replace(SPEC, first_seed=7))


def slow_writer(folder: Path, started) -> None:
    def save_slowly(tensors, file, metadata=None):
        Path(file).write_bytes(b"half a shard")
        started.set()
        time.sleep(60)

    clips.save_file = save_slowly
    write_shard(shard_file(folder, "long", 0), SPEC, SPEC.seeds(0), Noise(), MeanCodec())


def test_a_killed_writer_leaves_no_shard(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=slow_writer, args=(tmp_path, started))
    process.start()
    assert started.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list((tmp_path / "long").iterdir())) == 1  # what it was writing, under a name nobody reads
    with pytest.raises(UserError, match="no clips in 'long'"):
        Pool(tmp_path, "long")
    write(tmp_path)
    assert len(Pool(tmp_path, "long")) == 10
    assert len(list((tmp_path / "long").iterdir())) == 3  # and swept up


def test_a_failing_source_is_heard(tmp_path):
    with pytest.raises(OverflowError):
        write(tmp_path, replace(SPEC, first_seed=2**31))  # no uint8
    assert not list(tmp_path.glob("long/*.safetensors"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Pool:
    folder = tmp_path_factory.mktemp("cache")
    for shard in range(SPEC.num_shards):
        write_shard(shard_file(folder, "long", shard), SPEC, SPEC.seeds(shard), Noise(), MeanCodec())
    return Pool(folder, "long")


def test_an_epoch_is_every_clip_once_in_an_order_of_its_own(pool):
    seen = [int(pool.batch(place, 1, 1, seed=0).latents[0, 0, 0, 0, 0]) for place in range(20)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(100, 110)) and seen[:10] != seen[10:]
    whole = pool.batch(5, 10, 2, seed=0)  # across the border of two epochs
    assert whole.latents[:, 0, 0, 0, 0].int().tolist() == seen[5:15]
    assert whole.latents.shape == (10, 2, 3, 2, 2) and whole.latents.dtype == torch.float32
    other = pool.batch(0, 10, 1, seed=1).latents[:, 0, 0, 0, 0].int().tolist()
    assert other != seen[:10]


def test_latents_captions_truth_and_motion_stay_together(pool):
    batch = pool.batch(3, 7, 2, seed=0)
    seeds = batch.latents[:, 0, 0, 0, 0].int().tolist()
    assert all(caption in (f"clip {seed}", f"{seed} again") for caption, seed in zip(batch.captions, seeds))
    assert batch.truth is not None and batch.truth[:, 0, 0, 0].tolist() == [seed % 7 for seed in seeds]
    assert batch.motion is not None and batch.motion[:, 1, 1, 1, 0].tolist() == [-(seed % 5) for seed in seeds]
    part = pool.batch(3, 7, 2, seed=0, read_rows=slice(2, 4))  # of this part alone all is read
    assert part.captions == batch.captions and torch.equal(part.latents, batch.latents[2:4])
    assert torch.equal(part.truth, batch.truth[2:4]) and torch.equal(part.motion, batch.motion[2:4])
    captions = {pool.batch(place, 1, 1, seed=0).captions[0] for place in range(60)}
    assert len(captions) == 20  # every wording of every clip comes up


def test_a_pool_that_knows_the_motion_of_some_clips_only_tells_none(tmp_path):
    for shard in range(2):
        write_shard(shard_file(tmp_path, "long", shard), SPEC, SPEC.seeds(shard), Noise(), MeanCodec())
    older = shard_file(tmp_path, "long", 1)
    with safe_open(older, "pt") as file:
        kept = {name: file.get_tensor(name) for name in ("latents", "seeds", "truth")}
        captions = file.metadata()
    save_file(kept, older, metadata=captions)
    batch = Pool(tmp_path, "long").batch(0, 8, 3, seed=0)
    assert batch.motion is None and batch.truth is not None and len(batch.truth) == 8


def test_clips_are_read_when_they_are_asked_for(tmp_path):
    """A pool of 150 MB costs no memory until its clips are used, and then theirs."""
    for shard in range(3):
        latents = torch.zeros(16, 1, 3, 512, 1024, dtype=torch.float16)
        latents[:, 0, 0, 0, 0] = torch.arange(16) + 16 * shard
        file = shard_file(tmp_path, "large", shard)
        file.parent.mkdir(exist_ok=True)
        seeds = torch.arange(16 * shard, 16 * shard + 16)
        captions = json.dumps([[str(int(seed))] for seed in seeds])
        save_file({"latents": latents, "seeds": seeds}, file, metadata={"captions": captions})
    del latents
    before = resident_megabytes()
    pool = Pool(tmp_path, "large")
    batch = pool.batch(5, 1, 1, seed=0)
    assert resident_megabytes() - before < 75
    assert int(batch.latents[0, 0, 0, 0, 0]) == int(batch.captions[0])
    shard_file(tmp_path, "large", 1).write_bytes(b"half")
    with pytest.raises(UserError, match=r"shard-00001.safetensors is damaged"):
        Pool(tmp_path, "large")


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_the_index_says_what_the_cache_is(tmp_path):
    write(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["made_from"] == MADE_FROM and index["pools"]["long"]["first_seed"] == 100
