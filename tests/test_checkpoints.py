"""Weights in and out: every layout gives the same network bit for bit, and every broken one a sentence."""

import errno
import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from causvid import tensor_files
from causvid.checkpoints import (
    config_from_state,
    config_metadata,
    load_dit,
    load_into,
    read_checkpoint,
    read_state,
)
from causvid.differences import write_difference
from causvid.errors import UserError
from causvid.export import save_diffusers, save_original
from causvid.models.dit import VideoDiT, VideoDiTConfig, is_island, num_parameters
from causvid.models.wan import WAN_1_3B, WAN_5B, WAN_14B, to_diffusers, to_original
from tiny_models import TINY, random_dit

HEADS = {"num_heads": TINY.num_heads, "text_length": TINY.text_length}


@pytest.fixture
def state(dit):
    return {name: p.detach().clone() for name, p in dit.named_parameters()}


def assert_same(model: VideoDiT, state: dict) -> None:
    parameters = dict(model.named_parameters())
    assert parameters.keys() == state.keys()
    assert all(torch.equal(parameters[name], state[name]) for name in state)


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    assert text.rstrip()[-1] in ".)"
    return text


# ---- architectures and names -----------------------------------------------------------------------------------


def test_published_sizes():
    assert num_parameters(WAN_1_3B) == (1_418_996_800, 825)
    assert num_parameters(WAN_14B) == (14_288_491_584, 40 * 27 + 15)
    assert num_parameters(WAN_5B) == (4_999_787_712, 825)


@pytest.mark.parametrize("cfg", [WAN_1_3B, WAN_14B, WAN_5B])
def test_architecture_is_read_from_shapes_alone(cfg):
    with torch.device("meta"):
        state = dict(VideoDiT(cfg).named_parameters())
    assert config_from_state(state) == cfg


def test_names_convert_one_to_one(dit):
    names = [name for name, _ in dit.named_parameters()]
    there = [to_diffusers(name) for name in names]
    assert len(set(there)) == len(names)
    assert [to_original(name) for name in there] == names
    assert [to_original(name) for name in names] == names
    assert to_diffusers("blocks.7.norm3.bias") == "blocks.7.norm2.bias"
    assert to_diffusers("head.modulation") == "scale_shift_table"
    assert to_diffusers("blocks.0.cross_attn.norm_k_img.weight") == "blocks.0.attn2.norm_added_k.weight"


# ---- round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000, 1])
def test_diffusers_folder(dit, state, tmp_path, shard_bytes):
    save_diffusers(dit, tmp_path, shard_bytes=10**5)  # what a later, different save must leave nothing of
    save_diffusers(dit, tmp_path, shard_bytes=shard_bytes)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == {10**9: 1, 1: len(state)}.get(shard_bytes, len(files))
    largest = max(t.numel() * 4 for t in state.values())
    for file in files:
        assert sum(t.numel() * 4 for t in load_file(file).values()) <= max(shard_bytes, largest)
    model = load_dit(tmp_path)
    assert model.cfg == TINY
    assert_same(model, state)


def test_diffusers_pipeline_folder_and_one_without_our_metadata(dit, state, tmp_path):
    save_diffusers(dit, tmp_path / "transformer")
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    (tmp_path / "model_index.json").write_text("{}")
    assert_same(load_dit(tmp_path), state)
    assert load_dit(tmp_path, overrides={"text_length": 5}).cfg == TINY
    assert load_dit(tmp_path).cfg.text_length == 512  # which diffusers does not tell, and Wan has


def test_original_folder_file_and_shards(dit, state, tmp_path):
    save_original(dit, tmp_path / "wan" / "any_name.safetensors")
    assert json.loads((tmp_path / "wan" / "config.json").read_text())["dim"] == TINY.width
    for path in (tmp_path / "wan", tmp_path / "wan" / "any_name.safetensors"):
        assert load_dit(path).cfg == TINY
        assert_same(load_dit(path), state)

    shards = tmp_path / "shards"
    shards.mkdir()
    names = list(state)
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: state[n] for n in names if weight_map[n] == file}, shards / file)
    (shards / "w.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (shards / "config.json").write_text((tmp_path / "wan" / "config.json").read_text())
    assert load_dit(shards).cfg == TINY
    assert_same(load_dit(shards), state)


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model."])
def test_single_file_with_prefixes(state, tmp_path, prefix):
    save_file({prefix + name: t for name, t in state.items()}, tmp_path / "m.safetensors")
    assert_same(load_dit(tmp_path / "m.safetensors", overrides=HEADS), state)


@pytest.mark.parametrize("entry", ["generator_ema", "generator", "model", None])
def test_pt_layouts(state, tmp_path, entry):
    wrapped = {
        "model._fsdp_wrapped_module." + name.replace("self_attn.", "self_attn._checkpoint_wrapped_module."): t
        for name, t in state.items()
    }
    payload = wrapped if entry is None else {entry: wrapped, "critic": {"x": torch.zeros(1)}, "step": 3}
    torch.save(payload, tmp_path / "m.pt")
    model = load_dit(tmp_path / "m.pt", overrides=HEADS)
    assert_same(model, state)
    assert model.cfg.precision == ("plain" if entry in ("generator_ema", "generator") else "islands")
    assert load_dit(tmp_path / "m.pt", overrides=HEADS, precision="islands").cfg == TINY


def test_pt_entries_are_taken_in_order_of_preference(state, tmp_path):
    other = {name: t + 1 for name, t in state.items()}
    torch.save(
        {"generator": other, "generator_ema": {f"_orig_mod.{n}": t for n, t in state.items()}}, tmp_path / "m.pt"
    )
    assert torch.equal(read_state(tmp_path / "m.pt")["head.modulation"], state["head.modulation"])
    raw = read_checkpoint(tmp_path / "m.pt", prefer=["generator"])
    assert raw.entry == "generator"
    assert torch.equal(raw.state["head.modulation"], other["head.modulation"])


def test_old_pickle_format_is_read_too(state, tmp_path):
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert_same(load_dit(tmp_path / "m.pt", overrides=HEADS), state)


def test_averaged_weights_can_be_written_in_place_of_the_models(dit, state, tmp_path):
    average = {name: t * 2 for name, t in state.items()}
    save_original(dit, tmp_path / "a.safetensors", state=average)
    assert_same(load_dit(tmp_path / "a.safetensors"), average)


def test_a_file_can_be_replaced_by_weights_that_are_mapped_from_it(dit, state, tmp_path):
    save_original(dit, tmp_path / "a.safetensors")
    model = load_dit(tmp_path / "a.safetensors")
    save_original(model, tmp_path / "a.safetensors")
    assert_same(load_dit(tmp_path / "a.safetensors"), state)
    assert_same(model, state)


# ---- dtypes ----------------------------------------------------------------------------------------------------


def test_islands_stay_in_float32_and_plain_has_none(dit, state, tmp_path):
    save_original(dit, tmp_path / "a.safetensors")
    model = load_dit(tmp_path / "a.safetensors", dtype=torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if is_island(name) else torch.bfloat16)
        assert torch.equal(p, state[name].to(p.dtype))
    plain = load_dit(tmp_path / "a.safetensors", dtype=torch.bfloat16, precision="plain")
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    says_islands = load_dit(tmp_path / "a.safetensors", few_steps=True)
    save_file(state, tmp_path / "silent.safetensors")  # a student of others', which says nothing
    silent = load_dit(tmp_path / "silent.safetensors", few_steps=True, overrides={"num_heads": dit.cfg.num_heads})
    assert (says_islands.cfg.precision, silent.cfg.precision) == ("islands", "plain")


def test_loading_into_a_live_network_keeps_its_parameters(state):
    model = random_dit(seed=5).double()
    before = list(model.parameters())
    load_into(model, state)
    assert all(a is b for a, b in zip(before, model.parameters()))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert_same(model.float(), state)


def test_eight_bit_storage_needs_a_dtype(dit, state, tmp_path):
    small = {name: t.to(torch.float8_e4m3fn) for name, t in state.items()}
    save_file(small, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="pass dtype"):
        load_dit(tmp_path / "a.safetensors", overrides=HEADS)
    model = load_dit(tmp_path / "a.safetensors", overrides=HEADS, dtype=torch.float32)
    assert_same(model, {name: t.float() for name, t in small.items()})


# ---- mistakes --------------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("module", [pickle, None])
def test_code_in_a_pickle_is_refused(tmp_path, capsys, module):
    path = tmp_path / "m.pt"
    if module is None:
        torch.save({"generator": Malicious()}, path)
    else:
        path.write_bytes(pickle.dumps({"generator": Malicious()}, protocol=2))
    with pytest.raises(UserError, match="could run code") as error:
        load_dit(path)
    one_sentence(error)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6])
def test_truncated_file(dit, state, tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save({"generator": state}, path)
    else:
        save_original(dit, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"again|damaged") as error:
        load_dit(path)
    assert str(path) in one_sentence(error)


def test_missing_shard_and_broken_index(dit, tmp_path):
    save_diffusers(dit, tmp_path, shard_bytes=60_000)
    victim = sorted(tmp_path.glob("*-00002-of-*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(UserError, match=re.escape(victim.name)) as error:
        load_dit(tmp_path)
    assert "lacks 1 of" in one_sentence(error)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="index"):
        load_dit(tmp_path)


def test_what_a_folder_may_lack_or_have_too_much_of(dit, state, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_dit(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no weights"):
        load_dit(tmp_path)
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="name the file"):
        load_dit(tmp_path)
    (tmp_path / "low_noise_model").mkdir()
    with pytest.raises(UserError, match="two networks"):
        load_dit(tmp_path)
    with pytest.raises(UserError, match="gguf"):
        load_dit_of(tmp_path / "a.gguf", b"GGUF")


def load_dit_of(path, content: bytes):
    path.write_bytes(content)
    return load_dit(path)


def test_config_that_contradicts_the_weights(dit, state, tmp_path):
    save_original(dit, tmp_path / "a.safetensors")
    config = tmp_path / "config.json"
    right = config.read_text()
    config.write_text(json.dumps(json.loads(right) | {"ffn_dim": 8960}))
    assert load_dit(tmp_path).cfg == TINY  # our files know their own architecture: several may share a folder
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"ffn_width 8960 \(weights: 96\)") as error:
        load_dit(tmp_path)
    one_sentence(error)
    config.write_text('{"unrelated": true}')
    with pytest.raises(UserError, match="pass num_heads"):
        load_dit(tmp_path)
    config.write_text(right)
    assert load_dit(tmp_path).cfg == TINY
    with pytest.raises(UserError, match="has no heads"):
        load_dit(tmp_path, overrides={"heads": 2})
    with pytest.raises(UserError, match="does not split"):
        load_dit(tmp_path, overrides={"num_heads": 5})
    config.write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        load_dit(tmp_path)


def test_heads_that_nothing_tells(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="pass num_heads"):
        load_dit(tmp_path / "a.safetensors")


def meta_state(cfg: VideoDiTConfig) -> dict:
    with torch.device("meta"):
        return dict(VideoDiT(cfg).named_parameters())


def test_mismatch_is_told_in_numbers_with_a_guess():
    model = VideoDiT(TINY)
    i2v = meta_state(replace(WAN_14B, num_layers=1, in_channels=36))
    i2v |= {f"img_emb.proj.{i}.weight": torch.zeros(1) for i in (0, 1, 3, 4)}
    with pytest.raises(UserError, match="I2V 14B checkpoint, 36 input channels") as error:
        load_into(model, i2v, source="x.safetensors")
    text = one_sentence(error)
    assert "of 96 tensors, 54 missing (blocks.1." in text and "4 unexpected (img_emb.proj.0.weight" in text
    assert "42 of wrong shape (patch_embedding.weight [5120, 36, 1, 2, 2] for [48, 4, 1, 2, 2]" in text


def test_wrong_kinds_of_file(tmp_path):
    cases = {
        "LoRA": {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.zeros(1)},
        "umT5": {"token_embedding.weight": torch.zeros(1)},
        "autoencoder": {"encoder.conv1.weight": torch.zeros(1)},
        "tensors such as weird.a": {"weird.a": torch.zeros(1)},
        "another family": {"x_embedder.proj.weight": torch.zeros(1)},
    }
    for told, tensors in cases.items():
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=told) as error:
            load_dit(tmp_path / "x.safetensors")
        one_sentence(error)
    torch.save({"critic": {"a": torch.zeros(1)}, "step": 1}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no entry generator_ema or generator or model") as error:
        load_dit(tmp_path / "x.pt")
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds a list"):
        load_dit(tmp_path / "x.pt")


def test_the_same_tensor_under_two_names(state, tmp_path):
    save_file(state | {"model.head.modulation": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="1 tensors twice"):
        load_dit(tmp_path / "x.safetensors", overrides=HEADS)


# ---- failing writes leave nothing ------------------------------------------------------------------------------


def contents(folder):
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("ours", [{"in_channels": 4 + 3, "landmarks": 4}, {"overlap": 1}])
def test_landmarks_and_overlap_are_read_back_and_diffusers_has_none(tmp_path, ours):
    marked = random_dit(replace(TINY, **ours))
    save_original(marked, tmp_path / "marked.safetensors")
    again = load_dit(tmp_path / "marked.safetensors")
    assert again.cfg == marked.cfg and torch.equal(again.patch_embedding.weight, marked.patch_embedding.weight)
    with pytest.raises(UserError, match="diffusers does not make"):
        save_diffusers(marked, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_overlap_that_the_weights_do_not_have_is_told(dit, tmp_path):
    save_original(dit, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="of 2 latents a side cannot overlap by 1"):
        load_dit(tmp_path / "plain.safetensors", overrides={"overlap": 1})


@pytest.mark.parametrize("save", [save_diffusers, save_original])
@pytest.mark.parametrize("before", [False, True])
def test_full_disk_leaves_everything_as_it_was(dit, tmp_path, monkeypatch, save, before):
    target = tmp_path / "new" / "deep" / ("m.safetensors" if save is save_original else "m")
    if before:
        save(dit, target)
    old = contents(tmp_path)

    def full(tensors, path, metadata):
        path.write_bytes(b"the part that still fitted")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(UserError, match="No space left") as error:
        save(random_dit(seed=3), target)
    one_sentence(error)
    assert contents(tmp_path) == old
    assert before or list(tmp_path.iterdir()) == []


def test_a_real_write_error_of_the_file_system(dit, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write") as error:
            save_original(dit, tmp_path / "m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be(dit, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "m.safetensors", tmp_path / "file" / "deeper" / "m.safetensors"):
        with pytest.raises(UserError, match="cannot write") as error:
            save_original(dit, path)
        one_sentence(error)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_original(dit, tmp_path / "m.pt")


def test_written_files_are_readable_by_others(dit, tmp_path):
    save_original(dit, tmp_path / "m.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_weights_may_be_what_differs_from_others_beside_them(tmp_path):
    teacher, guide = random_dit(seed=1), random_dit(seed=1)
    with torch.no_grad():
        for number, parameter in enumerate(guide.parameters()):
            torch.manual_seed(number)
            parameter += 0.02 * (number % 3) * parameter.abs().mean() * torch.randn_like(parameter)
    base, file = tmp_path / "teacher.safetensors", tmp_path / "guide.safetensors"
    save_original(teacher, base)
    write_difference(file, guide.state_dict(), base, config_metadata(guide.cfg))
    assert file.stat().st_size < 0.3 * base.stat().st_size  # a byte instead of four
    read = load_dit(file)
    for (name, exact), near, other in zip(guide.named_parameters(), read.parameters(), teacher.parameters()):
        gap = (exact - other).abs().max()
        assert (near - exact).abs().max() <= gap / 16, name  # of half the last of three bits
    save_original(guide, base)
    with pytest.raises(UserError, match="keep them together"):
        load_dit(file)
    base.unlink()
    with pytest.raises(UserError, match="keep them together"):
        load_dit(file)
