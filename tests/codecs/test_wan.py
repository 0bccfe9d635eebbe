"""The Wan autoencoders: streams against diffusers' own whole-clip calls, the original file names, the real sizes."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from causvid.codecs import Codec
from causvid.codecs.wan import WAN21_CONFIG, WAN22_CONFIG, WanCodec, diffusers_from_original
from causvid.errors import UserError

pytest.importorskip("diffusers")

SMALL = {"base_dim": 4, "num_res_blocks": 2, "dim_mult": [1, 2, 4, 4], "z_dim": 4}
SMALL |= {"latents_mean": [0.5, -0.5, 0.1, 0.0], "latents_std": [2.0, 0.5, 1.0, 1.5]}
RESIDUAL = SMALL | {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "num_res_blocks": 1}
RESIDUAL |= {"scale_factor_spatial": 16, "decoder_base_dim": 8}


@pytest.fixture(scope="module", params=["wan21", "wan22"])
def codec(request):
    return WanCodec.random(SMALL if request.param == "wan21" else RESIDUAL)


def example_video(codec, num_frames, seed=0):
    height, width = codec.space_factor, 2 * codec.space_factor
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(1, num_frames, 3, height, width, generator=rng) * 2 - 1


def example_latents(codec, num_frames, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_frames, codec.latent_channels, 1, 2, generator=rng)


def in_pieces(stream, clip, sizes):
    return torch.cat([stream(piece) for piece in clip.split(sizes, dim=1)], dim=1)


@torch.no_grad()
def test_whole_clips_equal_diffusers_own_calls(codec):
    video, latents = example_video(codec, 9), example_latents(codec, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (SMALL["latents_mean"], SMALL["latents_std"]))

    mode = codec.vae.encode(video.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    torch.testing.assert_close(codec.encode(video), (mode - mean) / std, rtol=1e-5, atol=1e-6)

    sample = codec.vae.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)
    decoded = codec.decode(latents)
    torch.testing.assert_close(decoded, sample, rtol=1e-5, atol=1e-5)
    assert decoded.shape == (1, 9, 3, codec.space_factor, 2 * codec.space_factor)
    assert decoded.std() > 1e-3  # a constant picture would make every comparison here empty


def test_decoding_in_pieces_equals_the_whole(codec):
    latents = example_latents(codec, 5)
    whole = codec.decode(latents)
    for sizes in ([1, 3, 1], [3, 2], [1] * 5):
        assert torch.equal(in_pieces(codec.decode_stream(), latents, sizes), whole)


def test_encoding_in_pieces_equals_the_whole(codec):
    video = example_video(codec, 13)
    whole = codec.encode(video)
    assert whole.shape[1] == 4
    for sizes in ([9, 4], [1, 4, 8]):
        assert torch.equal(in_pieces(codec.encode_stream(), video, sizes), whole)


def test_streams_interleave_on_one_set_of_weights(codec):
    clips = [example_latents(codec, 3, seed) for seed in (1, 2)]
    streams = [codec.decode_stream() for _ in clips]
    turns = [[stream(clip[:, t : t + 1]) for stream, clip in zip(streams, clips, strict=True)] for t in range(3)]
    for pieces, clip in zip(zip(*turns, strict=True), clips, strict=True):
        assert torch.equal(torch.cat(pieces, dim=1), codec.decode(clip))


def test_a_snapshot_goes_back_in_time_and_to_other_streams(codec):
    latents = example_latents(codec, 4)
    stream, other = codec.decode_stream(), codec.decode_stream()
    stream(latents[:, :1])
    snapshot = stream.save()
    following = stream(latents[:, 1:3])
    stream(latents[:, 3:])
    stream.load(snapshot)
    other.load(snapshot)
    assert torch.equal(stream(latents[:, 1:3]), following)
    assert torch.equal(other(latents[:, 1:3]), following)
    assert not torch.equal(codec.decode_stream()(latents[:, 1:3])[:, -4:], following[:, -4:])


def test_a_failed_call_leaves_the_stream_as_it_was(codec):
    latents = example_latents(codec, 3)
    stream = codec.decode_stream()
    stream(latents[:, :1])
    wrong = torch.cat([latents[:, 1:2], latents[:, 1:2]], dim=3)  # another height in mid-clip
    with pytest.raises(RuntimeError):
        stream(wrong)
    assert torch.equal(stream(latents[:, 1:]), codec.decode(latents)[:, 1:])


def test_pieces_that_do_not_fill_latent_frames_are_refused(codec):
    stream = codec.encode_stream()
    with pytest.raises(ValueError, match=r"4 frames does not fill .* 1 \+ 4k"):
        stream(example_video(codec, 4))
    stream(example_video(codec, 1))
    with pytest.raises(ValueError, match=r"5 frames does not fill .* multiples of 4"):
        stream(example_video(codec, 5))
    with pytest.raises(ValueError, match=f"use {codec.space_factor}x{codec.space_factor}"):
        codec.encode(torch.zeros(1, 1, 3, codec.space_factor + 1, codec.space_factor + 2))


def test_bfloat16_comes_out_as_float32_close_to_float32(codec):
    half = WanCodec.random(SMALL if codec.patch_size == 1 else RESIDUAL, dtype=torch.bfloat16)
    video, latents = example_video(codec, 5), example_latents(codec, 2)
    for exact, rounded in ((codec.encode(video), half.encode(video)), (codec.decode(latents), half.decode(latents))):
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).norm() < 0.15 * exact.norm()


def original_names(state, is_residual):
    """diffusers' names turned back into the Wan project's: the inverse of the map under test, written separately."""
    parts = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    parts |= {"conv_shortcut": "shortcut"}
    num_res_blocks = 1 if is_residual else 2
    result = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head in ("quant_conv", "post_quant_conv"):
            result[".".join([{"quant_conv": "conv1", "post_quant_conv": "conv2"}[head], *rest])] = tensor
            continue
        rest = [parts.get(part, part) for part in rest]
        if rest[0] == "mid_block":
            rest[:3] = ["middle", "1" if rest[1] == "attentions" else str(2 * int(rest[2]))]
        elif rest[0] in ("conv_in", "norm_out", "conv_out"):
            rest[0] = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[rest[0]]
        elif rest[0] == "down_blocks" and not is_residual:
            rest[0] = "downsamples"
        else:
            level, position = int(rest[1]), int(rest[3]) if rest[2] == "resnets" else None
            nested = {"down_blocks": "downsamples", "up_blocks": "upsamples"}[rest[0]]
            last = num_res_blocks if nested == "downsamples" else num_res_blocks + 1
            after = rest[4:] if position is not None or not is_residual else rest[3:]
            position = last if position is None else position
            if is_residual:
                rest = [nested, str(level), nested, str(position), *after]
            else:
                rest = [nested, str(level * (num_res_blocks + 2) + position), *after]
        result[".".join([head, *rest])] = tensor
    return result


def test_original_names_map_back_exactly(codec):
    state = codec.vae.state_dict()
    original = original_names(state, is_residual=codec.patch_size == 2)
    assert original.keys().isdisjoint(state)
    back = diffusers_from_original(original)
    assert back.keys() == state.keys()
    assert all(back[name] is original_tensor for name, original_tensor in zip(state, original.values(), strict=True))


def test_the_original_names_are_those_of_the_published_file():
    """A few names and shapes of `Wan2.1_VAE.pth`, one per kind, through the map onto the real autoencoder."""
    with torch.device("meta"):
        vae = WanCodec.random(WAN21_CONFIG).vae
    shapes = {name: list(tensor.shape) for name, tensor in vae.state_dict().items()}
    published = {
        "encoder.conv1.weight": [96, 3, 3, 3, 3],
        "encoder.downsamples.2.resample.1.weight": [96, 96, 3, 3],
        "encoder.downsamples.5.time_conv.weight": [192, 192, 3, 1, 1],
        "encoder.downsamples.6.shortcut.weight": [384, 192, 1, 1, 1],
        "encoder.middle.0.residual.0.gamma": [384, 1, 1, 1],
        "encoder.middle.1.to_qkv.weight": [1152, 384, 1, 1],
        "encoder.head.2.weight": [32, 384, 3, 3, 3],
        "conv1.weight": [32, 32, 1, 1, 1],
        "conv2.weight": [16, 16, 1, 1, 1],
        "decoder.conv1.weight": [384, 16, 3, 3, 3],
        "decoder.middle.1.norm.gamma": [384, 1, 1],
        "decoder.upsamples.3.time_conv.weight": [768, 384, 3, 1, 1],
        "decoder.upsamples.4.shortcut.weight": [384, 192, 1, 1, 1],
        "decoder.upsamples.7.resample.1.weight": [192, 384, 3, 3],
        "decoder.upsamples.11.resample.1.weight": [96, 192, 3, 3],
        "decoder.upsamples.14.residual.6.weight": [96, 96, 3, 3, 3],
        "decoder.head.0.gamma": [96, 1, 1, 1],
        "decoder.head.2.weight": [3, 96, 3, 3, 3],
    }
    for name, shape in published.items():
        (renamed,) = diffusers_from_original({name: torch.empty(0)})
        assert shapes[renamed] == shape, (name, renamed)


def test_the_real_sizes_on_the_meta_device():
    with torch.device("meta"):
        wan21, wan22 = WanCodec.random(WAN21_CONFIG), WanCodec.random(WAN22_CONFIG)
    parameters = list(wan21.vae.parameters())
    assert (sum(parameter.numel() for parameter in parameters), len(parameters)) == (126_892_531, 194)
    assert (wan21.latent_channels, wan21.space_factor, wan21.time_factor) == (16, 8, 4)
    assert (wan22.latent_channels, wan22.space_factor, wan22.time_factor) == (48, 16, 4)
    assert len(wan22.mean) == len(wan22.std) == 48


def test_original_file_gives_the_same_codec(tmp_path, monkeypatch, codec):
    is_residual = codec.patch_size == 2
    monkeypatch.setattr(f"causvid.codecs.wan.{'WAN22' if is_residual else 'WAN21'}_CONFIG", dict(codec.vae.config))
    torch.save(original_names(codec.vae.state_dict(), is_residual), tmp_path / "Wan_VAE.pth")
    loaded = WanCodec.from_original(tmp_path / "Wan_VAE.pth", dtype=torch.float32)
    latents = example_latents(codec, 2)
    assert torch.equal(loaded.decode(latents), codec.decode(latents))
    assert isinstance(loaded, Codec)


def test_folder_gives_the_same_codec_and_differences_are_told(tmp_path, codec):
    folder = tmp_path / "model"
    codec.vae.save_pretrained(folder / "vae")
    loaded = WanCodec.from_folder(folder, dtype=torch.float32)
    video = example_video(codec, 5)
    assert torch.equal(loaded.encode(video), codec.encode(video))

    state = dict(codec.vae.state_dict())
    state["surplus"] = state.pop("quant_conv.bias")
    state["post_quant_conv.bias"] = torch.zeros(3)
    (weights,) = (folder / "vae").glob("*.safetensors")
    save_file(state, weights)
    with pytest.raises(UserError) as told:
        WanCodec.from_folder(folder / "vae")
    assert "1 missing (quant_conv.bias); 1 unknown (surplus)" in str(told.value)
    assert "post_quant_conv.bias [3] instead of [4]" in str(told.value)


def test_unreadable_files_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(UserError, match=re.escape(".safetensors")):
        WanCodec.from_folder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        WanCodec.from_original(tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a weight file")
    with pytest.raises(UserError, match="cannot be read"):
        WanCodec.from_original(tmp_path / "broken.pth")
    torch.save({"step": 3}, tmp_path / "training.pth")
    with pytest.raises(UserError, match="named tensors"):
        WanCodec.from_original(tmp_path / "training.pth")


def test_without_diffusers_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match=re.escape("pip install 'causvid[wan]'")):
        WanCodec.random(SMALL)
