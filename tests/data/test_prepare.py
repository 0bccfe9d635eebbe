"""Videos with captions become clips of latents: the same whoever makes them, and whatever was wrong is told."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from causvid.data import prepare as preparing
from causvid.data.clips import Pool
from causvid.data.prepare import PrepareConfig, Prepared, read_captions, read_clip, videos_without_caption
from causvid.errors import UserError
from causvid.media import write_video
from tiny_models import BoxCodec, HashText

prepare = partial(preparing.prepare, codec_name="boxes")
CFG = PrepareConfig(num_latents=3, height=16, width=24, fps=8, clips_per_shard=2)


def movie(num_frames, height=64, width=96, seed=0):
    """Smooth enough to survive a video file."""
    base = np.random.default_rng(seed).integers(40, 200, (1, 1, 1, 3))
    ramp = np.arange(num_frames).reshape(-1, 1, 1, 1) * 4
    return np.broadcast_to(base + ramp, (num_frames, height, width, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("a", "b", "c", "d")):
        write_video(folder / f"{name}.mp4", movie(12, seed=number), 8)
        (folder / f"{name}.txt").write_text(f"clip {name}\n\nagain {name}\n")
    write_video(folder / "short.mp4", movie(5), 8)
    write_video(folder / "square.mp4", movie(12, width=64), 8)
    (folder / "broken.mp4").write_bytes(b"no video")
    write_video(folder / "untold.mp4", movie(12), 8)
    told = [{"file": f"{name}.mp4", "caption": name} for name in ("short", "square", "broken", "a", "gone")]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(entry) for entry in told))
    return folder


def contents(out):
    return {path.name: path.read_bytes() for path in sorted((out / "long").iterdir())}


def test_latents_are_those_of_the_first_frames_at_the_wanted_size(videos, tmp_path):
    made = prepare(CFG, videos, tmp_path, BoxCodec)
    assert made == Prepared(4, {"too short": 1, "of another shape": 1, "cannot be read": 1, "not in the folder": 1})
    assert str(made) == "4 clips; left out: 1 cannot be read, 1 not in the folder, 1 of another shape, 1 too short"
    pool = Pool(tmp_path, "long")
    assert pool.captions == [["a", "clip a", "again a"], *(["clip " + n, "again " + n] for n in "bcd")]
    for row, name in enumerate("abcd"):
        frames = read_clip(CFG, videos / f"{name}.mp4", 4)
        assert frames.shape == (9, 16, 24, 3)
        assert np.abs(frames.astype(int) - movie(12, 16, 24, seed=row)[:9]).max() <= 6  # what a video file costs
        video = torch.from_numpy(frames)[None].permute(0, 1, 4, 2, 3) / 127.5 - 1
        assert torch.equal(torch.cat(pool.latents)[row], BoxCodec().encode(video)[0].half())


def test_any_number_of_interrupted_ranks_make_the_same(videos, tmp_path):
    prepare(CFG, videos, tmp_path / "one", BoxCodec)
    straight = contents(tmp_path / "one")
    assert sum(name.endswith(".json") for name in straight) == 4

    class Stopping(BoxCodec):
        left = 2

        def encode(self, video):
            Stopping.left -= 1
            if Stopping.left < 0:
                raise KeyboardInterrupt
            return super().encode(video)

    with pytest.raises(KeyboardInterrupt):
        prepare(CFG, videos, tmp_path / "two", Stopping)
    assert len(contents(tmp_path / "two")) < len(straight)
    for rank in (1, 0):
        prepare(CFG, videos, tmp_path / "two", BoxCodec, rank=rank, num_ranks=2)
    assert contents(tmp_path / "two") == straight

    def refuse():
        raise AssertionError("nothing is missing")

    assert prepare(CFG, videos, tmp_path / "two", refuse).num_clips == 4


def test_every_caption_is_embedded_once_for_all(videos, tmp_path):
    told = []

    class Text(HashText):
        def __call__(self, prompts):
            told.extend(prompts)
            return super().__call__(prompts)

    prepare(CFG, videos, tmp_path, BoxCodec, Text())
    assert {"clip a", "again d", "short"} <= set(told) and len(told) == len(set(told)) == 13


def test_mistakes_are_told(videos, tmp_path):
    with pytest.raises(UserError, match="no video with a caption"):
        read_captions(tmp_path)
    (tmp_path / "captions.jsonl").write_text('{"file": "x.mp4"}')
    with pytest.raises(UserError, match="line 1"):
        read_captions(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_captions(tmp_path / "captions.jsonl")
    prepare(CFG, videos, tmp_path / "out", BoxCodec)
    other = PrepareConfig(num_latents=2, height=16, width=24, fps=8, clips_per_shard=2)
    with pytest.raises(UserError, match=r"prepared from something else \(num_latents\)"):
        prepare(other, videos, tmp_path / "out", BoxCodec)
    with pytest.raises(UserError, match=r"something else \(codec\)"):
        prepare(CFG, videos, tmp_path / "out", BoxCodec, codec_name="other boxes")
    assert videos_without_caption(videos) == ["untold.mp4"]
    tall = PrepareConfig(num_latents=3, height=64, width=24, fps=8)
    with pytest.raises(UserError, match=r"none of the videos could be used: 0 clips; left out: .* 5 of another shape"):
        prepare(tall, videos, tmp_path / "tall", BoxCodec)
