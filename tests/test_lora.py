"""LoRAs: one content in every naming, exact sums, exact removal, extraction up to exactness."""

import json
import re
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from causvid.errors import UserError
from causvid.export import save_diffusers, save_original
from causvid.lora import Lora, LoraSet, LowRank, extract_lora, parse_lora, read_lora, save_lora, write_lora_between
from causvid.models.wan import to_diffusers
from tiny_models import TINY, random_dit

RANK, ALPHA = 3, 6.0


@pytest.fixture
def pairs(dit, rng):
    """module -> (down, up) for every linear layer of the blocks."""
    return {
        name.removesuffix(".weight"): (
            torch.randn(RANK, p.shape[1], generator=rng),
            torch.randn(p.shape[0], RANK, generator=rng),
        )
        for name, p in dit.named_parameters()
        if p.ndim == 2 and name.startswith("blocks.") and name.endswith("weight")
    }


@pytest.fixture
def lora(pairs):
    return Lora({f"{module}.weight": LowRank(down, up, ALPHA / RANK) for module, (down, up) in pairs.items()})


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def merged(model, lora, strength=1.0):
    LoraSet(model).add("it", lora, strength)
    return weights(model)


def written(layout, pairs, path):
    """The same LoRA as others write it."""
    tensors = {}
    for module, (down, up) in pairs.items():
        alpha = torch.tensor(ALPHA)
        theirs, flat = to_diffusers(module), module.replace(".", "_")
        tensors |= {
            "kohya": {
                f"lora_unet_{flat}.lora_down.weight": down,
                f"lora_unet_{flat}.lora_up.weight": up,
                f"lora_unet_{flat}.alpha": alpha,
            },
            "kohya with diffusers names": {
                f"lora_transformer_{theirs.replace('.', '_')}.lora_down.weight": down,
                f"lora_transformer_{theirs.replace('.', '_')}.lora_up.weight": up,
                f"lora_transformer_{theirs.replace('.', '_')}.alpha": alpha,
            },
            "original": {
                f"diffusion_model.{module}.lora_down.weight": down,
                f"diffusion_model.{module}.lora_up.weight": up,
                f"diffusion_model.{module}.alpha": alpha,
            },
            "original A and B": {
                f"diffusion_model.{module}.lora_A.weight": down * 2,
                f"diffusion_model.{module}.lora_B.weight": up,
            },
            "diffusers": {
                f"transformer.{theirs}.lora_A.weight": down,
                f"transformer.{theirs}.lora_B.weight": up,
                f"transformer.{theirs}.alpha": alpha,
            },
            "peft in memory": {
                f"base_model.model.{module}.lora_A.default.weight": down * 2,
                f"base_model.model.{module}.lora_B.default.weight": up,
            },
        }[layout]
    save_file(tensors, path)


LAYOUTS = ["kohya", "kohya with diffusers names", "original", "original A and B", "diffusers", "peft in memory"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_naming_gives_the_same_weights(pairs, lora, layout, tmp_path):
    written(layout, pairs, tmp_path / "l.safetensors")
    assert equal(merged(random_dit(), read_lora(tmp_path / "l.safetensors")), merged(random_dit(), lora))
    by_hand = weights(random_dit())
    for module, (down, up) in pairs.items():
        by_hand[f"{module}.weight"] += ALPHA / RANK * up @ down
    assert all(torch.allclose(by_hand[n], w, atol=1e-5) for n, w in merged(random_dit(), lora).items())


@pytest.mark.parametrize("layout", ["kohya", "original"])
def test_diffusers_reads_the_namings_as_we_do(pairs, lora, layout, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    written(layout, pairs, tmp_path / "l.safetensors")
    convert = {
        "kohya": conversion._convert_musubi_wan_lora_to_diffusers,
        "original": conversion._convert_non_diffusers_wan_lora_to_diffusers,
    }[layout]
    theirs = parse_lora(convert(load_file(tmp_path / "l.safetensors")))
    assert theirs.names() == lora.names()
    for name in lora.names():
        shape = (lora.low_rank[name].up.shape[0], lora.low_rank[name].down.shape[1])
        assert torch.allclose(theirs.delta(name, shape), lora.delta(name, shape), atol=1e-5)


def test_full_differences_of_biases_norms_and_modulation(dit, tmp_path):
    before = weights(dit)
    tensors = {
        "diffusion_model.blocks.1.self_attn.norm_q.diff": torch.full((48,), 0.5),
        "diffusion_model.blocks.1.norm3.diff_b": torch.full((48,), -0.25),
        "diffusion_model.blocks.2.ffn.0.diff_b": torch.full((96,), 2.0),
        "diffusion_model.blocks.2.diff_m": torch.full((1, 6, 48), 3.0),
        "diffusion_model.head.diff_m": torch.full((1, 2, 48), 4.0),
        "diffusion_model.patch_embedding.diff": torch.full((48, 4, 1, 2, 2), 1.0),
    }
    touched = {
        "blocks.1.self_attn.norm_q.weight": 0.5,
        "blocks.1.norm3.bias": -0.25,
        "blocks.2.ffn.0.bias": 2.0,
        "blocks.2.modulation": 3.0,
        "head.modulation": 4.0,
        "patch_embedding.weight": 1.0,
    }
    save_file(tensors, tmp_path / "l.safetensors")
    after = merged(dit, read_lora(tmp_path / "l.safetensors"), strength=2.0)
    for name in before:
        assert torch.equal(after[name], before[name] + 2 * touched.get(name, 0.0))


def test_low_rank_convolution_and_bias_of_the_upper_half(dit, rng):
    before = weights(dit)
    down, up = torch.randn(2, 4, 1, 2, 2, generator=rng), torch.randn(48, 2, 1, 1, 1, generator=rng)
    lora = parse_lora(
        {
            "transformer.patch_embedding.lora_A.weight": down,
            "transformer.patch_embedding.lora_B.weight": up,
            "transformer.patch_embedding.lora_B.bias": torch.ones(48),
            "transformer.patch_embedding.alpha": torch.tensor(1.0),
        }
    )
    after = merged(dit, lora)
    delta = torch.einsum("or,rcthw->octhw", up.flatten(1), down) / 2
    assert torch.allclose(after["patch_embedding.weight"], before["patch_embedding.weight"] + delta, atol=1e-6)
    assert torch.equal(after["patch_embedding.bias"], before["patch_embedding.bias"] + 0.5)


def test_where_alpha_comes_from(pairs, tmp_path):
    bare = {}
    for module, (down, up) in pairs.items():
        bare |= {f"transformer.{module}.lora_A.weight": down, f"transformer.{module}.lora_B.weight": up}

    def scale(path, **settings):
        return {part.scale for part in read_lora(path, **settings).low_rank.values()}

    path = tmp_path / "adapter_model.safetensors"
    save_file(bare, path)
    assert scale(path) == {1.0}
    assert scale(path, alpha=9.0) == {3.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 12}))
    assert scale(path) == {4.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 12, "use_rslora": True}))
    assert scale(path) == {12 / RANK**0.5}
    save_file(bare, path, metadata={"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6})})
    assert scale(path) == {2.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha_pattern": {"q": 1}}))
    save_file(bare, path)
    with pytest.raises(UserError, match="alpha_pattern"):
        read_lora(path)


def test_lora_inside_a_pt_file(pairs, lora, tmp_path):
    tensors = {}
    for module, (down, up) in pairs.items():
        name = f"base_model.model.model._fsdp_wrapped_module.{module}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    torch.save({"generator_lora": tensors, "critic_lora": {}, "step": 7}, tmp_path / "l.pt")
    assert equal(merged(random_dit(), read_lora(tmp_path / "l.pt", alpha=ALPHA)), merged(random_dit(), lora))


# ---- merging ---------------------------------------------------------------------------------------------------


def test_several_add_up_whatever_the_order(dit, lora, rng):
    before = weights(dit)
    other = Lora(
        {
            n: LowRank(torch.randn(2, p.down.shape[1], generator=rng), p.up[:, :2], 1.0)
            for n, p in lora.low_rank.items()
        },
        {"head.modulation": torch.ones(1, 2, 48)},
    )
    loras = LoraSet(dit)
    loras.add("a", lora, 0.7)
    loras.add("b", other, -0.2)
    for name in lora.names() | other.names():
        wanted = before[name].double() - 0.2 * other.delta(name, before[name].shape)
        if name in lora.names():
            wanted += 0.7 * lora.delta(name, before[name].shape)
        assert torch.allclose(weights(dit)[name].double(), wanted, atol=1e-5)
    both = weights(dit)

    loras.set_strength("a", 5.0)
    loras.remove("b")
    loras.add("b", other, -0.2)
    loras.set_strength("a", 0.7)
    assert all(torch.allclose(both[n], w, atol=1e-5) for n, w in weights(dit).items())
    assert loras.strengths == {"a": 0.7, "b": -0.2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_removal_is_exact(lora, dtype):
    model = random_dit().cast(dtype)
    before, parameters = weights(model), list(model.parameters())
    loras = LoraSet(model)
    loras.add("a", lora, 0.3)
    with_a = weights(model)
    assert not equal(with_a, before)
    loras.add("b", Lora({}, {"blocks.0.self_attn.q.weight": torch.ones(48, 48), "head.head.bias": torch.ones(16)}), 7.0)
    loras.remove("b")
    assert equal(weights(model), with_a)
    loras.add("a", Lora({}, {"head.head.bias": torch.ones(16)}))  # another in its place
    assert [n for n, w in weights(model).items() if not torch.equal(w, before[n])] == ["head.head.bias"]
    loras.add("b", lora)
    loras.unload()
    assert equal(weights(model), before)
    assert all(a is b for a, b in zip(parameters, model.parameters()))


def test_only_touched_weights_are_kept(dit, lora):
    loras = LoraSet(dit)
    one = dict(list(lora.low_rank.items())[:1])
    loras.add("a", Lora(one))
    assert loras._first.keys() == one.keys()
    loras.remove("a")
    assert not loras._first


def test_loras_that_do_not_fit_change_nothing(dit, lora):
    before = weights(dit)
    loras = LoraSet(dit)
    name, part = next(iter(lora.low_rank.items()))
    cases = {
        "1 are not in it": Lora({"blocks.0.cross_attn.k_img.weight": part}),
        "1 have another shape": Lora({name: LowRank(part.down[:, 1:], part.up, 1.0)}),
        "1 have another shape (head": Lora({}, {"head.modulation": torch.ones(1, 2, 64)}),
    }
    for told, bad in cases.items():
        with pytest.raises(UserError, match=re.escape(told)):
            loras.add("bad", bad)
    assert equal(weights(dit), before)
    assert loras.strengths == {}


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "not a LoRA for a Wan"),
        ("lora_unet_down_blocks_0_attentions_0.lora_down.weight", "not a LoRA for a Wan"),
        ("diffusion_model.blocks.0.self_attn.q.lora_down.weight", "only one half"),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "DoRA"),
        ("lora_unet_blocks_0_self_attn_q.lokr_w1", "LoKr"),
        ("blocks.0.self_attn.q.weight", "not a LoRA for a Wan"),
    ],
)
def test_what_is_no_lora_for_wan(tmp_path, key, told):
    save_file({key: torch.zeros(2, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=told):
        read_lora(tmp_path / "l.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        read_lora(tmp_path / "nowhere.safetensors")


# ---- extraction ------------------------------------------------------------------------------------------------


def test_extraction_is_exact_at_full_rank_and_better_with_every_rank(tmp_path):
    teacher, student = weights(random_dit()), weights(random_dit(seed=1))
    kept, errors = [], []
    for rank in (1, 4, 16, 48):
        lora, energy = extract_lora(student, teacher, rank)
        assert all(part.down.shape[0] <= rank for part in lora.low_rank.values())
        reached = merged(random_dit(), lora)
        kept.append(energy.total)
        errors.append(sum(float((reached[n] - student[n]).square().sum()) for n in student))
        # the energy that is missing is the error that remains
        squared = sum(float((teacher[n] - student[n]).square().sum()) for n in student)
        assert errors[-1] == pytest.approx((1 - energy.total) * squared, rel=1e-3, abs=1e-3)
        assert 0 < min(energy.per_weight.values()) <= max(energy.per_weight.values()) <= 1
    assert kept == sorted(kept) and kept[-1] == pytest.approx(1.0, abs=1e-6)
    assert errors == sorted(errors, reverse=True)
    assert all((reached[n] - student[n]).abs().max() <= 1e-5 for n in student)

    for layout in ("diffusers", "original"):
        save_lora(lora, tmp_path / "l.safetensors", layout=layout)
        assert equal(merged(random_dit(), read_lora(tmp_path / "l.safetensors")), reached)


def test_extraction_between_files(tmp_path):
    teacher, student = random_dit(), random_dit(seed=1)
    save_original(teacher, tmp_path / "teacher.safetensors")
    save_diffusers(student, tmp_path / "student")
    report = write_lora_between(tmp_path / "student", tmp_path / "teacher.safetensors", tmp_path / "l.safetensors", 4)
    _, kept = extract_lora(weights(student), weights(teacher), 4)
    assert f"rank 4 keeps {kept.total:.1%}" in report and "\n" not in report
    loras = LoraSet.apply(teacher, [(tmp_path / "l.safetensors", 0.5), (tmp_path / "l.safetensors", 1.0)])
    assert loras.strengths == {str(tmp_path / "l.safetensors"): 1.0}
    lora, before = read_lora(tmp_path / "l.safetensors"), weights(random_dit())
    assert lora.names() == before.keys()
    for name, weight in weights(teacher).items():
        assert torch.allclose(weight, before[name] + lora.delta(name, weight.shape), atol=1e-6)


def test_extraction_finds_a_low_rank_difference(dit, lora):
    teacher = weights(dit)
    student = merged(dit, lora)
    found, energy = extract_lora(student, teacher, RANK)
    assert found.names() == lora.names()
    assert energy.total == pytest.approx(1.0, abs=1e-6)
    for name in lora.names():
        assert torch.allclose(found.delta(name, student[name].shape), lora.delta(name, student[name].shape), atol=1e-4)


def test_extraction_from_equal_or_unlike_networks():
    state = weights(random_dit())
    lora, energy = extract_lora(state, state, 4)
    assert lora.names() == set() and energy.total == 1.0
    with pytest.raises(UserError, match="one architecture"):
        extract_lora(state, {}, 4)


def test_saved_names_are_those_of_diffusers(lora, tmp_path):
    save_lora(lora, tmp_path / "l.safetensors")
    tensors = load_file(tmp_path / "l.safetensors")
    assert tensors["transformer.blocks.0.attn1.to_out.0.lora_A.weight"].shape == (RANK, TINY.width)
    assert tensors["transformer.blocks.0.ffn.net.0.proj.lora_B.weight"].shape == (TINY.ffn_width, RANK)
    assert tensors["transformer.blocks.0.attn2.to_k.alpha"] == RANK
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
