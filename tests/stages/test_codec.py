"""The codec stage at a size of milliseconds: exact resume, a falling error, losses with known answers."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from causvid.codecs.vista import VistaAutoencoder, VistaCodec, VistaCodecConfig
from causvid.errors import UserError
from causvid.stages import codec
from causvid.stages.codec import ClipPool, CodecConfig, ConvMuon
from causvid.tensor_files import read_tensors
from causvid.training.optim import Muon, OptimConfig

TINY = CodecConfig(
    model=VistaCodecConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1)),
    optim=OptimConfig(lr=1e-2, warmup=2, decay_from=0.0),
    batch=2,
    num_latents=2,
    pool=6,
    dtype="float32",
)


def stripes(index: int, num_frames: int) -> np.ndarray:
    """Moving stripes of some colour, 16 x 16: more than four components, so that there is something to learn."""
    rng = np.random.default_rng(index)
    speed, width, colour = rng.integers(1, 4), rng.integers(3, 6), rng.uniform(50, 250, 3)
    place = np.arange(16)[None, :] + speed * np.arange(num_frames)[:, None]
    wave = 0.5 + 0.5 * np.sin(place / width)
    return np.broadcast_to(wave[:, None, :, None] * colour, (num_frames, 16, 16, 3)).astype(np.uint8)


def train(folder: Path, cfg: CodecConfig = TINY, steps: int = 6) -> dict[str, torch.Tensor]:
    return read_tensors(codec.train(cfg, folder, steps=steps, clips=stripes, held_out=stripes))


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    # a constant rate: the cosine follows the budget, and the two sittings have different ones
    cfg = replace(TINY, optim=replace(TINY.optim, decay_from=1.0))
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=3)
    parts = train(tmp_path / "parts", cfg)
    assert whole.keys() == parts.keys() and len(whole) > 20
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_an_interrupted_run_is_saved_and_not_calibrated(tmp_path):
    def interrupting(index: int, num_frames: int) -> np.ndarray:
        if index == TINY.pool + 2:  # the clip that comes in at the end of the third step
            os.kill(os.getpid(), signal.SIGINT)
        return stripes(index, num_frames)

    assert codec.train(TINY, tmp_path, steps=6, clips=interrupting, held_out=stripes) == tmp_path
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "weights").exists() and not list((tmp_path / "samples").iterdir())
    train(tmp_path)  # and it goes on


def test_training_beats_the_linear_start(tmp_path):
    cfg = replace(TINY, ema_decay=0.9, size_weight=0.0, max_noise=0.0)
    train(tmp_path / "start", cfg, steps=1)
    train(tmp_path / "end", cfg, steps=60)

    def held_out(folder: Path) -> float:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return next(line["held_out_psnr"] for line in reversed(lines) if "held_out_psnr" in line)

    assert held_out(tmp_path / "end") > held_out(tmp_path / "start") + 1
    assert list((tmp_path / "end" / "samples").glob("*.png"))


def test_a_pool_depends_on_the_step_alone():
    walked = ClipPool(stripes, 4, 0)
    for _ in range(7):
        walked.advance()
    fresh = ClipPool(stripes, 4, 7)
    for a, b in zip(walked.frames, fresh.frames):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(walked.frames[0], ClipPool(stripes, 4, 0).frames[0])


def test_loss_of_a_constant_error_is_known():
    video = torch.zeros(1, 5, 3, 8, 8)
    error = 0.1
    expected = (error**2 + 1e-4) ** 0.5 + 5 * error**2  # no differences
    assert codec.reconstruction_loss(video + error, video).item() == pytest.approx(expected, rel=1e-5)


def test_loss_counts_differences_in_every_direction():
    ramp = torch.arange(4.0) * 0.1
    flat = torch.zeros(1, 4, 3, 4, 4)
    along = {3: (4, 1), 4: (4,), 1: (4, 1, 1, 1)}  # axis -> shape that puts the ramp there
    base = (ramp.square() + 1e-4).sqrt().mean() + 5 * ramp.square().mean()
    for axis, weight in ((4, 0.5), (3, 0.5), (1, 0.25)):
        loss = codec.reconstruction_loss(flat + ramp.view(along[axis]), flat)
        torch.testing.assert_close(loss, base + weight * 0.1)


def test_noise_has_one_level_per_clip_up_to_the_largest():
    noise = codec.draw_noise((400, 2, 4, 8, 8), 0.1, torch.Generator().manual_seed(0))
    levels = noise.flatten(1).std(1)
    assert levels.max() < 0.115 and levels.min() < 0.001
    assert levels.mean().item() == pytest.approx(0.1 / 3, rel=0.15)  # the mean of a squared uniform


def test_muon_of_a_one_tap_convolution_is_muon_of_its_matrix():
    rng = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    matrix, kernel = start.clone().requires_grad_(), start.clone().view(6, 4, 1, 1).requires_grad_()
    one, two = Muon([matrix], 0.1, 0.9), ConvMuon([kernel], 0.1, 0.9)
    for scale in (1.0, -0.3):
        matrix.grad, kernel.grad = gradient * scale, gradient.view(6, 4, 1, 1) * scale
        one.step()
        two.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    assert (matrix - start).abs().max() > 0.01


def test_calibration_normalises_and_leaves_the_pictures_alone():
    network = VistaAutoencoder(TINY.model)
    videos = [codec.video_from_frames([stripes(index, 9)]) for index in range(6)]
    network.start_from_principal_components(torch.cat([codec.groups_from_video(video) for video in videos]))
    before = VistaCodec(network).decode(VistaCodec(network).encode(videos[0]))
    codec.calibrate(network, videos)
    calibrated = VistaCodec(network)
    latents = torch.cat([calibrated.encode(video) for video in videos]).movedim(2, 0).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    assert latents.std(1).square().mean() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(calibrated.decode(calibrated.encode(videos[0])), before, rtol=0, atol=1e-4)


def test_channels_are_as_large_as_they_count_in_the_picture():
    network = VistaAutoencoder(TINY.model)
    videos = [0.3 * codec.video_from_frames([stripes(index, 9)]) for index in range(6)]
    network.start_from_principal_components(torch.cat([codec.groups_from_video(video) for video in videos]))
    codec.calibrate(network, videos)  # nothing is near the ends of the scale, where pixels would be cut off
    # the decoder is still linear: what a unit of a channel changes is the length of its component
    components = (network.expand.weight[:, :, 0, 0] * network.latent_std).detach()
    gains = components.norm(dim=0)
    latents = torch.cat([VistaCodec(network).encode(video) for video in videos]).movedim(2, 0).flatten(1)
    sizes = latents.std(1)
    expected = (gains * sizes) ** codec.DETAIL_POWER  # of a normalised channel
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(sizes, expected, rtol=0.05, atol=0)
    assert sizes.max() > 1.5 * sizes.min()


def decoder_of(finished: Path, **changes) -> CodecConfig:
    return replace(TINY, decoder_of=str(finished), **changes)


MORE_BLOCKS = replace(TINY.model, decoder_blocks=(2, 1, 3))


def test_a_decoder_goes_on_from_the_pictures_of_the_finished_one(tmp_path):
    train(tmp_path / "first")
    finished = VistaCodec.load(tmp_path / "first" / "weights" / "codec.safetensors", torch.float32)
    grown = VistaAutoencoder(MORE_BLOCKS)
    grown.start_from(finished.network)
    latents = torch.randn(1, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    shown = VistaCodec(grown).decode(latents)
    assert torch.equal(shown, finished.decode(latents)) and shown.std() > 0.05
    assert VistaCodec(grown).identity() == finished.identity()


def test_training_a_decoder_keeps_the_latents(tmp_path):
    before = train(tmp_path / "first", replace(TINY, ema_decay=0.9), steps=30)
    weights = tmp_path / "first" / "weights" / "codec.safetensors"
    after = train(tmp_path / "more", decoder_of(weights, model=MORE_BLOCKS, ema_decay=0.9, max_noise=0.0), steps=60)
    for name, value in before.items():
        kept = not name.startswith(("decoder.", "expand."))
        assert not kept or torch.equal(after[name], value), name
    assert not torch.equal(after["expand.weight"], before["expand.weight"])
    old, new = VistaCodec.load(weights), VistaCodec.load(tmp_path / "more" / "weights" / "codec.safetensors")
    assert new.identity() == old.identity()
    video = codec.video_from_frames([stripes(1000 + index, 9) for index in range(8)])
    latents = old.encode(video)
    assert codec.psnr(new.decode(latents), video) > codec.psnr(old.decode(latents), video) + 0.3


def test_a_resumed_decoder_equals_an_uninterrupted_one(tmp_path):
    train(tmp_path / "first")
    cfg = decoder_of(tmp_path / "first" / "weights" / "codec.safetensors", optim=replace(TINY.optim, decay_from=1.0))
    whole = train(tmp_path / "whole", cfg)
    train(tmp_path / "parts", cfg, steps=3)
    parts = train(tmp_path / "parts", cfg)
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_a_decoder_of_other_widths_or_fewer_blocks_is_refused(tmp_path):
    train(tmp_path / "first", replace(TINY, model=MORE_BLOCKS), steps=1)
    weights = tmp_path / "first" / "weights" / "codec.safetensors"
    for model in (TINY.model, replace(MORE_BLOCKS, decoder_widths=(8, 8, 16))):
        with pytest.raises(UserError, match="can only have more decoder_blocks"):
            train(tmp_path / "more", decoder_of(weights, model=model))


def test_another_encoder_or_other_statistics_are_other_latents(tmp_path):
    train(tmp_path / "first")
    weights = tmp_path / "first" / "weights" / "codec.safetensors"
    network = VistaCodec.load(weights, torch.float32).network
    identity = VistaCodec.load(weights, torch.float32).identity()
    with torch.no_grad():
        network.latent_std[0] *= 1.01
    assert VistaCodec(network).identity() != identity


class Halver(codec.Remaker):
    """A teacher under whose words latents end at half of what they began as."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], float]] = []

    def __call__(self, latents, captions, level, noise):
        assert len(latents) == len(captions) == len(noise)
        self.asked.append((captions, level))
        return latents / 2


def test_a_share_of_the_clips_is_made_anew_under_their_captions(tmp_path, monkeypatch):
    train(tmp_path / "first", steps=1)
    halver = Halver()
    monkeypatch.setattr(codec, "Remaker", lambda folder: halver)
    cfg = decoder_of(tmp_path / "first" / "weights" / "codec.safetensors", made_by="a teacher", made_share=0.5)
    world = {"clips": stripes, "held_out": stripes, "captions": lambda index: f"clip {index}"}
    seen = []
    plain = codec.codec_loss

    def watched(network, video, noise, size_weight, motion_weight, remake):
        latents = network.encode(codec.groups_from_video(video), [])[0]
        seen.append((video, latents, remake(latents.clone())))
        return plain(network, video, noise, size_weight, motion_weight)

    monkeypatch.setattr(codec, "codec_loss", watched)
    codec.train(cfg, tmp_path / "more", steps=20, **world)
    remade = 0
    for _, latents, made in seen:
        for before, after in zip(latents, made):
            halved = torch.equal(after, before / 2)
            assert halved or torch.equal(after, before)
            if halved:
                remade += 1
    assert 10 <= remade <= 30  # of 40
    named = [caption for captions, _ in halver.asked for caption in captions]
    assert len(named) == remade and all(0 <= level < cfg.made_from for _, level in halver.asked)
    # and the captions are those of the clips: each named clip is among those that were seen
    for caption in named:
        frames = stripes(int(caption.removeprefix("clip ")), codec.POOL_FRAMES)
        whole = codec.video_from_frames([frames])[0]
        windows = [whole[start : start + 5] for start in range(codec.POOL_FRAMES - 4)]
        assert any(torch.equal(window, clip) for video, _, _ in seen for clip in video for window in windows)


def test_a_teacher_makes_latents_anew_close_to_what_they_were():
    clips, captions = codec.vista_clips("val"), codec.vista_captions("val")
    latents = VistaCodec.load_packaged().encode(codec.video_from_frames([clips(index, 13) for index in range(4)]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    remaker, said = codec.Remaker("src/causvid/weights/vista"), [captions(index) for index in range(4)]
    assert (remaker(latents, said, 1e-3, noise) - latents).abs().max() < 0.02
    error = (remaker(latents, said, 0.3, noise) - latents).square().mean()
    assert 0.01 < error < (0.3 / 0.7) ** 2 / 2  # at most half of what the noise left of it


def test_a_teacher_needs_the_codec_that_it_knows(tmp_path):
    with pytest.raises(UserError, match="made_by needs decoder_of"):
        train(tmp_path, replace(TINY, made_by="src/causvid/weights/vista"))
