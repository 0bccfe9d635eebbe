from dataclasses import replace

import pytest
import torch
from torch import nn

from causvid.cache import KVCache
from causvid.chunks import chunk_bounds
from causvid.models import dit as dit_module
from causvid.models.dit import VideoDiT, is_island, num_parameters
from tiny_models import TINY, random_dit

WAN_1_3B = dict(width=1536, ffn_width=8960, num_heads=12, num_layers=30, in_channels=16, out_channels=16, patch=2)
WAN_14B = WAN_1_3B | dict(width=5120, ffn_width=13824, num_heads=40, num_layers=40)
WAN_5B = WAN_1_3B | dict(width=3072, ffn_width=14336, num_heads=24, in_channels=48, out_channels=48)


@pytest.mark.parametrize(
    ("sizes", "values", "tensors"),
    [(WAN_1_3B, 1_418_996_800, 825), (WAN_14B, 14_288_491_584, 1095), (WAN_5B, 4_999_787_712, 825)],
)
def test_parameter_counts_without_memory(sizes, values, tensors):
    cfg = replace(TINY, freq_width=256, text_width=4096, text_length=512, **sizes)
    assert num_parameters(cfg) == (values, tensors)


def inputs(batch=2, frames=4):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(batch, frames, 4, 6, 10, generator=rng)
    return x, torch.rand(batch, frames, generator=rng), torch.randn(batch, 5, 8, generator=rng)


def test_initial_output_is_zero_as_the_head_starts_at_zero():
    x, sigma, text = inputs()
    assert VideoDiT(TINY)(x, sigma, text).abs().max() == 0


@pytest.mark.parametrize("overlap", [0, 1])
def test_patch_embedding_is_the_convolution_it_stores(overlap):
    dit = random_dit(replace(TINY, overlap=overlap))
    x, *_ = inputs()
    as_convolution = nn.Conv3d.forward(dit.patch_embedding, x.transpose(1, 2))  # [B, D, T, h, w]
    assert (dit.patch_embedding(x) - as_convolution.flatten(3).permute(0, 2, 3, 1)).abs().max() <= 1e-5


def test_rows_of_a_batch_do_not_meet(dit):
    x, sigma, text = inputs()
    swapped = dit(x.flip(0), sigma.flip(0), text.flip(0)).flip(0)
    assert (swapped - dit(x, sigma, text)).abs().max() <= 1e-6


def test_every_frame_is_modulated_by_its_own_level(dit):
    x, sigma, text = inputs()
    changed = sigma.clone()
    changed[:, 2] = 1 - changed[:, 2]
    bounds = [(0, 2), (2, 3), (3, 4)]
    a, b = dit(x, sigma, text, bounds=bounds), dit(x, changed, text, bounds=bounds)
    assert torch.equal(a[:, :2], b[:, :2])
    assert (a[:, 2] - b[:, 2]).abs().max() > 1e-3


def test_projected_text_equals_embedded_text(dit):
    x, sigma, text = inputs()
    assert torch.equal(dit(x, sigma, dit.project_text(text)), dit(x, sigma, text))


def test_checkpointing_changes_nothing(dit):
    x, sigma, text = inputs()
    dit.requires_grad_(True)
    grads = []
    for on in (False, True):
        dit.checkpoint_blocks = on
        dit.zero_grad()
        dit(x, sigma, text).square().mean().backward()
        grads.append([p.grad.clone() for p in dit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_precisions_agree_in_float32_and_islands_are_closer_in_bfloat16():
    x, sigma, text = inputs()
    exact = random_dit(TINY)(x, sigma, text)
    plain = random_dit(replace(TINY, precision="plain"))(x, sigma, text)
    assert (plain - exact).abs().max() <= 2e-5
    errors = {}
    for precision in ("islands", "plain"):
        model = random_dit(replace(TINY, precision=precision)).cast(torch.bfloat16)
        out = model(x.bfloat16(), sigma, text.bfloat16())
        assert out.dtype == torch.bfloat16
        errors[precision] = (out.float() - exact).norm() / exact.norm()
    assert errors["islands"] < errors["plain"] < 0.1


def test_products_alone_in_bfloat16_are_closer_than_everything_in_bfloat16():
    x, sigma, text = inputs()
    exact = random_dit(TINY)(x, sigma, text)
    model = random_dit(TINY).cast(torch.bfloat16)
    out = model(x, sigma, model.project_text(text))
    assert out.dtype == torch.float32 and model.project_text(text).keys[0].dtype == torch.float32
    everything = model(x.bfloat16(), sigma, text.bfloat16()).float()
    assert (out - exact).norm() < (everything - exact).norm() < 0.1 * exact.norm()


def test_cast_keeps_the_islands():
    model = random_dit(TINY).cast(torch.bfloat16)
    kinds = {is_island(name): p.dtype for name, p in model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert {p.dtype for p in random_dit(replace(TINY, precision="plain")).cast(torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_sizes_that_do_not_fit_are_named(dit):
    with pytest.raises(ValueError, match="5x10 do not split into 2x2"):
        dit(torch.zeros(1, 1, 4, 5, 10), torch.zeros(1, 1), torch.zeros(1, 5, 8))
    with pytest.raises(ValueError, match="does not split into 5 heads"):
        VideoDiT(replace(TINY, num_heads=5))


@pytest.mark.parametrize("limits", [(1, 2**25), (2**19, 2**25), (1, 40), (60, 7)])
def test_attention_by_products_is_attention(monkeypatch, limits):
    monkeypatch.setattr(dit_module, "SCORES_IN_CACHE", limits[0])
    monkeypatch.setattr(dit_module, "MAX_SCORES", limits[1])
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, generator=rng) for n in (5, 11, 11))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert (dit_module.attention_by_products(q, k, v) - expected).abs().max() <= 1e-12


# ---- landmarks -----------------------------------------------------------------------------------------------------

MARKED = replace(TINY, in_channels=4 + 3, landmarks=4)


def test_where_all_tokens_are_alike_only_landmarks_tell_them_apart(dit):
    """Rotations do not: whatever the attention, every token averages the same values."""
    x, sigma, text = torch.ones(1, 5, 4, 6, 10), torch.full((1, 5), 0.7), inputs(1)[2]
    alike = dit(x, sigma, text).unflatten(3, (3, 2)).unflatten(5, (5, 2)).movedim(2, -1)  # [1, T, gh, p, gw, p, C]
    assert (alike - alike[:, :1, :1, :, :1]).abs().max() <= 1e-5
    told = random_dit(MARKED)(x, sigma, text)
    first, second, last = told[0, 0], told[0, 1], told[0, 4]
    assert (first - second).abs().max() > 0.01 and (told[0, 3] - last).abs().max() <= 0.02 * (first - last).abs().max()
    assert (first[:, :2] - first[:, 4:]).abs().max() > 0.01 and (first[..., :2] - first[..., 8:]).abs().max() > 0.01


def test_landmarks_are_the_same_in_a_stream_as_in_a_clip():
    model, (x, sigma, text) = random_dit(MARKED), inputs(frames=6)
    bounds = chunk_bounds(6, 2)
    whole = model(x, sigma, text, bounds=bounds)
    cache = KVCache(model.cache_shape(6, 10), batch=2, max_frames=6)
    for start, stop in bounds:
        past = cache.at_hand(stop - start)
        assert (
            model(x[:, start:stop], sigma[:, start:stop], text, past=past) - whole[:, start:stop]
        ).abs().max() <= 1e-5
        past.commit()


def test_activation_is_wans_as_nearly_as_bfloat16_can_tell():
    x = torch.linspace(-6, 6, 10_001)
    activation = dit_module.TanhGELU()
    assert torch.equal(activation(x), nn.functional.gelu(x, approximate="tanh"))
    rounded = x.bfloat16()
    wanted = nn.functional.gelu(rounded.double(), approximate="tanh")
    ours, theirs = (
        (y.double() - wanted).square().mean().sqrt()
        for y in (activation(rounded), nn.functional.gelu(rounded, approximate="tanh"))
    )
    assert ours < 1.05 * theirs
