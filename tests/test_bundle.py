import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import causvid
from causvid import config, flow, sample
from causvid.bundle import Model, Place
from causvid.errors import UserError
from causvid.loading import find, read_spec
from causvid.noise import chunk_noise
from causvid.session import frames_from_video, video_from_frames
from tiny_models import TINY, BoxCodec, HashText, random_dit, random_model


def test_sampling_the_teacher_is_the_guided_ode(model):
    latents = model.sample_latents("a red car", seconds=0.5, steps=4, guidance=3.0, seed=9)
    teacher, text, empty = random_dit(), model.text(["a red car"]), model.text([""])
    noise = chunk_noise(9, 0, 0, (1, 3, *model.latent_shape)).to(model.dtype)
    expected = sample.euler(sample.guided(teacher, text, empty, 3.0), noise, flow.sigma_grid(4, 5.0))
    assert torch.equal(latents, expected)
    frames = model.sample("a red car", seconds=0.5, steps=4, guidance=3.0, seed=9)
    assert frames.shape == (9, 24, 40, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, frames_from_video(model.codec.decode(expected)))


def test_a_teacher_whose_noise_is_renewed_draws_it_from_its_seed(model):
    how = replace(model.cfg.teacher, renewal=sample.Renewal(1.0, 0.3), guidance=1.0, steps=4)
    model.cfg = replace(model.cfg, teacher=how)
    field, grid = sample.guided(random_dit(), model.text(["a red car"]), None, 1.0), flow.sigma_grid(4, 5.0)

    def noise(number):
        return chunk_noise(9, 0, number, (1, 3, *model.latent_shape)).to(model.dtype)

    def made(**options):
        return model.sample_latents("a red car", seconds=0.5, seed=9, **options)

    ode = sample.euler(field, noise(0), grid)
    expected = sample.euler(field, noise(0), grid, renewal=how.renewal, noise=noise)
    assert torch.equal(made(), expected) and (expected - ode).abs().max() > 0.1
    assert torch.equal(made(renewal=sample.ODE), ode)


def test_a_guide_makes_the_pass_without_words(model):
    model.guide_source = lambda: random_dit(seed=5)
    latents = model.sample_latents("a red car", seconds=0.5, steps=4, guidance=3.0, seed=9)
    text, empty = model.text(["a red car"]), model.text([""])
    noise = chunk_noise(9, 0, 0, (1, 3, *model.latent_shape)).to(model.dtype)
    field = sample.guided(random_dit(), text, empty, 3.0, random_dit(seed=5))
    assert torch.equal(latents, sample.euler(field, noise, flow.sigma_grid(4, 5.0)))


def test_a_guide_is_saved_and_loaded_with_its_model(tmp_path):
    vista = causvid.load("vista")
    vista.guide_source = vista.need_student  # any network of that size
    guide = causvid.load(vista.save(tmp_path)).guide_source
    assert guide is not None
    expected = vista.need_student().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in guide().state_dict().items())


def test_velocity_is_the_plain_network_call(model):
    x, sigma, text = torch.randn(1, 2, *model.latent_shape), torch.rand(1, 2), model.text(["x"])
    assert torch.equal(model.velocity(x, sigma, text), random_dit()(x, sigma, text))


@pytest.mark.parametrize(("seconds", "latents"), [(None, 6), (0.01, 1), (1 / 12, 1), (0.5, 3), (0.76, 3), (10, 31)])
def test_lengths_are_rounded_up_to_whole_latents(model, seconds, latents):
    assert model.latents_for(seconds) == latents


def test_iterating_a_session_goes_on_for_ever_and_the_seed_decides(model):
    def first_four(seed):
        return [chunk for chunk, _ in zip(model.session("a red car", seed=seed), range(4))]

    chunks = first_four(3)
    assert [c.index for c in chunks] == [0, 1, 2, 3]
    assert [len(c.frames) for c in chunks] == [9, 12, 12, 12]
    assert chunks[0].frames.dtype == np.uint8 and chunks[0].frames.shape[1:] == (24, 40, 3)
    assert {"commit", "denoise", "decode"} <= chunks[0].timings.keys()
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(chunks, first_four(3)))
    assert not np.array_equal(chunks[0].frames, first_four(4)[0].frames)


def test_streamed_frames_are_the_decoded_clip(model):
    chunks = [chunk for chunk, _ in zip(model.session("a red car"), range(3))]
    whole = model.codec.decode(torch.cat([c.latents for c in chunks], 1))
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), frames_from_video(whole))


def test_frames_survive_the_way_to_video_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    assert np.array_equal(frames_from_video(video_from_frames(frames)), frames)


def test_what_is_missing_is_said(model):
    with pytest.raises(UserError, match="no causal student"):
        Model(model.cfg, BoxCodec(), HashText(), random_dit).session("x")
    with pytest.raises(UserError, match="no bidirectional teacher"):
        Model(model.cfg, BoxCodec(), HashText(), student_source=random_dit).sample("x")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.session(""), "prompt is empty"),
        (lambda m: m.session("x" * 100_000), "100,000 characters; shorten"),
        (lambda m: m.session("\udcff"), "not UTF-8"),
        (lambda m: m.session("x", winow=3), "no option winow"),
        (lambda m: m.session("x", window=2), "use at least 3"),
        (lambda m: m.session("x", steps=0), "at least 1 step"),
        (lambda m: m.session("x").set_prompt("y", mode="jump"), "no prompt mode 'jump'"),
        (lambda m: m.sample("x", seconds=-1), "more than 0 seconds"),
        (lambda m: m.sample("x", seconds=float("nan")), "more than 0 seconds"),
        (lambda m: m.sample("x", steps=0), "at least 1 step"),
    ],
)
def test_bad_input_gets_one_sentence(model, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_specs_are_read_strictly(tmp_path, model):
    values = config.to_json(model.cfg)
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert read_spec(tmp_path) == model.cfg
    (tmp_path / "model.json").write_text(json.dumps(values | {"fsp": 12}))
    with pytest.raises(UserError, match="did you mean fps"):
        read_spec(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_spec(tmp_path)


def test_a_recipe_runs_the_same_student_otherwise(tmp_path, model):
    finer = replace(model.cfg.rollout.with_steps(2), chunk=1)
    named = replace(model, cfg=replace(model.cfg, name="own", recipes={"finer": finer}))
    (tmp_path / "model.json").write_text(json.dumps(config.to_json(named.cfg)))
    assert read_spec(tmp_path) == named.cfg
    with pytest.raises(UserError, match="'vista' has no recipe 'coarser'; use one of framewise, or none"):
        causvid.load("vista", recipe="coarser")
    vista = causvid.load("vista", recipe="framewise")
    chunks = [session.next_chunk() for session in [vista.session("a red car in the city")] for _ in range(3)]
    assert [chunk.latents.shape[1] for chunk in chunks] == [1, 1, 1] and vista.cfg.rollout.chunk == 1
    assert [len(chunk.frames) for chunk in chunks] == [1, 4, 4]


def test_folders_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a model"):
        causvid.load(tmp_path)
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        find("nowhere")
    with pytest.raises(UserError, match="no dtype 'float13'"):
        causvid.load(tmp_path, dtype="float13")
    with pytest.raises(UserError, match="cannot use the device"):
        causvid.load(tmp_path, device="abacus")


def test_small_networks_multiply_in_bfloat16_where_the_cpu_can_unless_a_dtype_is_asked_for(monkeypatch):
    for can, products in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda can=can: can)
        place = Place.of("cpu", None, is_small=True)
        assert place.dtype == torch.float32
        assert place.settle(random_dit(TINY)).dtype == products
        assert Place.of("cpu", "float32", is_small=True).settle(random_dit(TINY)).dtype == torch.float32


def test_an_endless_stream_keeps_its_memory(model):
    """Everything a session holds after many chunks is as large as after the window first filled."""
    session = random_model(policy=causvid.CachePolicy(window=6)).session("a red car")

    def held():
        rollout = session.rollout
        cache = rollout.cache
        return (
            cache._keys.numel() + cache._values.numel(),
            sum(made.latents.numel() for made in rollout._in_sight),
        )

    sizes = []
    for _ in range(12):
        session.next_chunk()
        sizes.append(held())
    assert sizes[4:] == [sizes[4]] * 8
