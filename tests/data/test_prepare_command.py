"""`causvid prepare`: with Vista's codec, and with a Wan folder of kilobytes; what it leaves is what training reads."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from causvid import cli
from causvid.codecs.vista import VistaCodec
from causvid.data.clips import Pool
from causvid.data.prepare import VISTA, read_clip
from causvid.errors import UserError
from causvid.media import write_video
from causvid.wan_world import load_text
from test_wan_world import folder as wan  # noqa: F401  (a fixture)


@pytest.fixture
def videos(tmp_path, rng):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b", "untold"):
        frames = torch.randint(0, 256, (8, 32, 56, 3), generator=rng, dtype=torch.uint8)
        write_video(folder / f"{name}.mp4", frames.numpy(), 12)
    (folder / "a.txt").write_text("a red car\n")
    (folder / "captions.jsonl").write_text(json.dumps({"file": "b.mp4", "caption": "a car"}))
    return folder


def prepare(*arguments):
    return CliRunner().invoke(cli.app, ["prepare", *map(str, arguments)], catch_exceptions=False)


def test_ranks_of_a_launch_share_the_work(videos, tmp_path, monkeypatch):
    out, settings = tmp_path / "out", ("--set", "num_latents=2", "--set", "clips_per_shard=1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (
        prepare(videos, "-o", out, *settings).output.strip() == f"{out}: 1 clips; 1 shards to come from other processes"
    )
    monkeypatch.setenv("RANK", "0")
    told = prepare(videos, "-o", out, *settings)
    assert (
        told.stdout.strip() == f"{out}: 2 clips"
        and "1 videos have no caption and are passed over: untold.mp4" in told.stderr
    )
    pool = Pool(out, "long")
    assert pool.captions == [["a red car"], ["a car"]]
    frames = read_clip(replace(VISTA, num_latents=2), videos / "a.mp4", 4)
    video = torch.from_numpy(frames)[None].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    codec = VistaCodec.load_packaged()
    assert torch.equal(pool.latents[0][0], codec.encode(video.to(codec.dtype))[0].half())


def test_a_wan_model_embeds_captions_too(videos, tmp_path, wan):  # noqa: F811
    sizes = [word for setting in ("num_latents=2", "height=32", "width=56", "fps=12") for word in ("--set", setting)]
    told = prepare(videos, "-o", tmp_path / "out", "--model", wan, "--device", "cpu", *sizes)
    assert told.stdout.strip() == f"{tmp_path / 'out'}: 2 clips"
    assert Pool(tmp_path / "out", "long").clip_shape == (2, 16, 4, 7)
    text = load_text(wan, torch.device("cpu"))
    assert text(["a red car", "a car"]).shape == (2, 512, 16)
    assert text.encoder is None  # both were found in the store


def test_mistakes_come_before_any_work(videos, tmp_path):
    for arguments, message in [
        ((tmp_path / "none",), "is not a folder"),
        ((videos, "--model", tmp_path / "none"), "there is no model"),
        ((videos, "--model", tmp_path), "give a model folder"),
        ((videos, "--set", "hieght=64"), "did you mean height"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare(*arguments, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
