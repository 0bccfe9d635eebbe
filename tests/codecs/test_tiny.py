"""The small codec: published layout, streams against a whole-clip reading of the same tensors, loading."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from causvid.codecs import Codec
from causvid.codecs.tiny import TinyCodec
from causvid.errors import UserError

VARIANTS = {"taew2_1": (16, 1), "taew2_2": (48, 2)}  # latent channels, patch size


@pytest.fixture(scope="module", params=VARIANTS)
def codec(request):
    return TinyCodec.random(*VARIANTS[request.param])


def example_video(codec, num_frames, seed=0, batch=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(batch, num_frames, 3, codec.space_factor, 2 * codec.space_factor, generator=rng) * 2 - 1


def example_latents(codec, num_frames, seed=0, batch=1):
    return torch.randn(batch, num_frames, codec.latent_channels, 1, 2, generator=torch.Generator().manual_seed(seed))


def in_pieces(stream, clip, sizes):
    return torch.cat([stream(piece) for piece in clip.split(sizes, dim=1)], dim=1)


def conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def memory_block(state, name, x):
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    y = F.relu(conv(state, f"{name}.conv.0", torch.cat([x, before], dim=1)))
    y = F.relu(conv(state, f"{name}.conv.2", y))
    return F.relu(conv(state, f"{name}.conv.4", y) + x)


def whole_clip_decode(state, latents, patch_size):
    """All frames [T, C, h, w] of one clip at once, by the published names."""
    x = F.relu(conv(state, "decoder.1", torch.tanh(latents / 3) * 3))
    for start, growth in ((3, 1), (9, 2), (15, 2)):
        for position in range(start, start + 3):
            x = memory_block(state, f"decoder.{position}", x)
        x = conv(state, f"decoder.{start + 4}.conv", F.interpolate(x, scale_factor=2))
        x = torch.stack(x.chunk(growth, dim=1), dim=1).flatten(0, 1)
        x = conv(state, f"decoder.{start + 5}", x)
    x = F.pixel_shuffle(conv(state, "decoder.22", F.relu(x)), patch_size)
    return x[3:].clamp(0, 1) * 2 - 1


def whole_clip_encode(state, video, patch_size):
    frames = torch.cat([video[:1]] * 3 + [video])
    x = F.relu(conv(state, "encoder.0", F.pixel_unshuffle((frames + 1) / 2, patch_size)))
    for start, pool in ((2, 2), (7, 2), (12, 1)):
        x = conv(state, f"encoder.{start}.conv", torch.cat([x[i::pool] for i in range(pool)], dim=1))
        x = conv(state, f"encoder.{start + 1}", x, stride=2)
        for position in range(start + 2, start + 5):
            x = memory_block(state, f"encoder.{position}", x)
    return conv(state, "encoder.17", x)


def test_whole_clips_equal_a_whole_clip_reading_of_the_layout(codec):
    state = codec.network.state_dict()
    latents, video = example_latents(codec, 4), example_video(codec, 9)
    decoded, encoded = codec.decode(latents), codec.encode(video)
    assert decoded.shape == (1, 13, 3, codec.space_factor, 2 * codec.space_factor)
    assert encoded.shape == (1, 3, codec.latent_channels, 1, 2)
    torch.testing.assert_close(decoded[0], whole_clip_decode(state, latents[0], codec.patch_size), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded[0], whole_clip_encode(state, video[0], codec.patch_size), rtol=0, atol=1e-5)
    assert decoded.std() > 1e-3
    assert encoded.std() > 1e-3


def test_pieces_equal_the_whole(codec):
    latents, video = example_latents(codec, 5), example_video(codec, 13)
    decoded, encoded = codec.decode(latents), codec.encode(video)
    for sizes in ([3, 2], [1, 3, 1], [1] * 5):
        assert torch.equal(in_pieces(codec.decode_stream(), latents, sizes), decoded)
    for sizes in ([9, 4], [1, 4, 8]):
        assert torch.equal(in_pieces(codec.encode_stream(), video, sizes), encoded)


def test_streams_interleave_on_one_set_of_weights(codec):
    clips = [example_latents(codec, 3, seed) for seed in (1, 2)]
    streams = [codec.decode_stream() for _ in clips]
    turns = [[stream(clip[:, t : t + 1]) for stream, clip in zip(streams, clips, strict=True)] for t in range(3)]
    for pieces, clip in zip(zip(*turns, strict=True), clips, strict=True):
        assert torch.equal(torch.cat(pieces, dim=1), codec.decode(clip))


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_snapshot_goes_back_in_time(codec, direction):
    if direction == "encode":
        stream, clip, cut = codec.encode_stream(), example_video(codec, 9), 5
    else:
        stream, clip, cut = codec.decode_stream(), example_latents(codec, 3), 1
    stream(clip[:, :cut])
    snapshot = stream.save()
    following = stream(clip[:, cut:])
    stream.load(snapshot)
    assert torch.equal(stream(clip[:, cut:]), following)


def test_members_of_a_batch_do_not_mix(codec):
    latents, video = example_latents(codec, 3, batch=2), example_video(codec, 5, batch=2)
    for member in range(2):
        alone = slice(member, member + 1)
        torch.testing.assert_close(codec.decode(latents)[alone], codec.decode(latents[alone]), rtol=0, atol=1e-5)
        torch.testing.assert_close(codec.encode(video)[alone], codec.encode(video[alone]), rtol=0, atol=1e-5)


def test_no_pixel_sees_a_later_latent_and_no_latent_a_later_pixel(codec):
    latents, video = example_latents(codec, 3), example_video(codec, 9)
    changed_latents, changed_video = latents.clone(), video.clone()
    changed_latents[:, 2] += 1
    changed_video[:, 5:] *= -1
    decoded, encoded = codec.decode(changed_latents), codec.encode(changed_video)
    assert torch.equal(decoded[:, :5], codec.decode(latents)[:, :5])
    assert torch.equal(encoded[:, :2], codec.encode(video)[:, :2])
    assert not torch.equal(decoded[:, 5:], codec.decode(latents)[:, 5:])
    assert not torch.equal(encoded[:, 2:], codec.encode(video)[:, 2:])


def test_names_and_shapes_are_the_published_ones():
    shapes = {name: list(tensor.shape) for name, tensor in TinyCodec.random().network.state_dict().items()}
    published = {
        "encoder.0.weight": [64, 3, 3, 3],
        "encoder.2.conv.weight": [64, 128, 1, 1],
        "encoder.3.weight": [64, 64, 3, 3],
        "encoder.4.conv.0.weight": [64, 128, 3, 3],
        "encoder.12.conv.weight": [64, 64, 1, 1],
        "encoder.16.conv.4.bias": [64],
        "encoder.17.weight": [16, 64, 3, 3],
        "decoder.1.weight": [256, 16, 3, 3],
        "decoder.3.conv.0.weight": [256, 512, 3, 3],
        "decoder.7.conv.weight": [256, 256, 1, 1],
        "decoder.8.weight": [128, 256, 3, 3],
        "decoder.13.conv.weight": [256, 128, 1, 1],
        "decoder.14.weight": [64, 128, 3, 3],
        "decoder.19.conv.weight": [128, 64, 1, 1],
        "decoder.20.weight": [64, 64, 3, 3],
        "decoder.22.weight": [3, 64, 3, 3],
        "decoder.22.bias": [3],
    }
    assert published.items() <= shapes.items()
    assert not {"encoder.3.bias", "decoder.8.bias", "decoder.14.bias", "decoder.20.bias"} & shapes.keys()
    # two ends with weight and bias, 3 poolings or growings, 3 strided or narrowing convolutions, 9 blocks of 3 convs
    assert len(shapes) == 2 * (2 * 2 + 3 + 3 + 9 * 6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_load_by_their_shapes(tmp_path, codec, suffix):
    file = tmp_path / f"any_name{suffix}"
    state = {name: tensor.half() for name, tensor in codec.network.state_dict().items()}  # as they are published
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = TinyCodec.from_file(file, dtype=torch.float32)
    assert isinstance(loaded, Codec)
    assert (loaded.latent_channels, loaded.space_factor) == (codec.latent_channels, codec.space_factor)
    latents = example_latents(codec, 2)
    assert loaded.decode(latents).shape == codec.decode(latents).shape
    torch.testing.assert_close(loaded.decode(latents), codec.decode(latents), rtol=0, atol=5e-3)


def test_files_of_other_models_are_refused(tmp_path):
    state = TinyCodec.random().network.state_dict()
    state["decoder.7.conv.weight"] = torch.zeros(512, 256, 1, 1)
    del state["decoder.22.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"1 missing \(decoder.22.bias\); 1 of another shape \(decoder.7.conv.weight"):
        TinyCodec.from_file(tmp_path / "other.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="taew2_1"):
        TinyCodec.from_file(tmp_path / "foreign.pth")


def test_bfloat16_comes_out_as_float32_close_to_float32(tmp_path, codec):
    torch.save(codec.network.state_dict(), tmp_path / "tiny.pth")
    half = TinyCodec.from_file(tmp_path / "tiny.pth")
    latents = example_latents(codec, 2)
    exact, rounded = codec.decode(latents), half.decode(latents)
    assert half.dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.02
