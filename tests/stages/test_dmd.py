"""Distillation at a size of milliseconds: where gradients go, what a resumed run is, and a student that learns."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file

from causvid import wan_world
from causvid.adapters import AdapterConfig, num_values
from causvid.cache import CachePolicy, KVCache
from causvid.checkpoints import config_metadata, load_dit
from causvid.chunks import chunk_bounds
from causvid.data.prompts import Script, one_prompt, vista_caption
from causvid.errors import UserError
from causvid.lora import LoraSet, read_lora
from causvid.noise import chunk_noise
from causvid.rollout import Rollout, commit_chunk, denoise_chunk
from causvid.stages import dmd, ode_init, ode_pairs, self_rollout
from causvid.stages.dmd import PRESETS, Inputs, Sitting
from causvid.stages.dmd_losses import student_loss
from causvid.stages.memory import bytes_saved, memory_need
from causvid.stages.self_rollout import roll_out, write_student_sheet
from causvid.stages.sources import Draws, Gallery, Network, Words
from causvid.tensor_files import read_file, read_tensors
from causvid.text.vista import VistaText
from causvid.training import parallel
from causvid.view_noise import unknown_ways
from tiny_distillation import (
    CLIP,
    GALLERY,
    MODEL,
    MOVING,
    OPTIM,
    STUDENT,
    assert_same_weights,
    dmd_config,
    gaussian,
    init_config,
    pairs_config,
    weights_of,
    write_weights_folder,
    write_world,
)
from tiny_models import HashText, random_dit

CPU = torch.device("cpu")
SHARED = {"adapter": AdapterConfig(rank=2), "student_optim": replace(OPTIM, lr=1e-2)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


# ---- the student on its own past -----------------------------------------------------------------------------------


def seeded_noise(chunk, draw, frames):
    return torch.stack([chunk_noise(seed, chunk, draw, (frames, *CLIP[1:])) for seed in (5, 6)])


@pytest.fixture
def student():
    return Network(random_dit(MODEL).requires_grad_(True), "float32")


@pytest.fixture
def text(rng):
    return torch.randn(2, 6, 16, generator=rng)


def test_a_roll_out_is_what_a_viewer_sees(student, text):
    """Without exits it equals the stream, with the same noise."""
    stream = Rollout(student.model, STUDENT, CLIP[1:], seeds=(5, 6))
    streamed = torch.cat([stream.step(text) for _ in range(3)], dim=1)[:, : CLIP[0]]
    made = roll_out(student, STUDENT, (6, *CLIP[1:]), text, seeded_noise)[:, : CLIP[0]]
    assert torch.equal(made, streamed)


def test_a_prompt_that_changes_on_the_way_is_what_a_viewer_sees(student, text, rng):
    other = torch.randn(2, 6, 16, generator=rng)
    texts = [text, other, other]
    stream = Rollout(student.model, STUDENT, CLIP[1:], seeds=(5, 6))
    streamed = torch.cat([stream.step(words) for words in texts], dim=1)[:, : CLIP[0]]
    made = roll_out(student, STUDENT, (6, *CLIP[1:]), texts, seeded_noise)[:, : CLIP[0]]
    assert torch.equal(made, streamed)
    kept = roll_out(student, STUDENT, CLIP, text, seeded_noise)
    assert torch.equal(kept[:, :2], made[:, :2]) and not torch.equal(kept[:, 2:], made[:, 2:])
    # with gradients too: every chunk has those of its own words
    exits = [1, 0, 1]
    made = roll_out(student, STUDENT, CLIP, texts, seeded_noise, exits, grad=True)
    torch.testing.assert_close(made, roll_out(student, STUDENT, CLIP, texts, seeded_noise, exits), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("exits", [[0, 0, 0], [2, 2, 2], [3, 0, 2]], ids=str)
def test_gradients_are_kept_at_the_exit_step_alone(student, text, exits):
    passes = []
    student.model.register_forward_pre_hook(
        lambda module, args: passes.append((args[1].max().item(), torch.is_grad_enabled()))
    )
    made = roll_out(student, STUDENT, CLIP, text, seeded_noise, exits, grad=True)
    expected = []
    for chunk, last in enumerate(exits):
        expected += [(pytest.approx(STUDENT.sigmas[step]), step == last) for step in range(last + 1)]
        expected += [(0.0, False)] if chunk < 2 else []  # the clean pass, which the last chunk has no use for
    assert passes == expected
    without = roll_out(student, STUDENT, CLIP, text, seeded_noise, exits)
    assert not without.requires_grad
    torch.testing.assert_close(made, without, atol=1e-6, rtol=1e-6)


def test_the_past_is_a_constant(student, text):
    """The gradient of the last chunk is that of one plain step behind committed chunks that have no history."""
    exits = [1, 1, 1]
    made = roll_out(student, STUDENT, CLIP, text, seeded_noise, exits, grad=True)
    weights = list(student.model.parameters())
    through = torch.autograd.grad(made[:, 4:].square().sum(), weights, retain_graph=True)

    cache = KVCache(student.model.cache_shape(*CLIP[2:]), STUDENT.policy, batch=2, max_frames=CLIP[0])
    for start, stop in chunk_bounds(CLIP[0], 2)[:2]:
        commit_chunk(student, made[:, start:stop].detach(), text, cache.at_hand(stop - start))
    alone = denoise_chunk(
        student,
        seeded_noise(2, 0, 1),
        STUDENT.sigmas,
        text,
        lambda step: seeded_noise(2, step, 1),
        past=cache.at_hand(1),
        grad_step=1,
    )
    torch.testing.assert_close(alone, made[:, 4:])
    for a, b in zip(through, torch.autograd.grad(alone.square().sum(), weights)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    # and an earlier chunk has a gradient of its own
    assert torch.autograd.grad(made[:, :2].sum(), student.model.head.head.weight)[0].abs().max() > 0


@pytest.mark.parametrize(
    "policy", [CachePolicy(3), CachePolicy(3, sink=1, relative=True), CachePolicy(4, sink=1)], ids=str
)
def test_layers_that_are_computed_again_see_the_same_past(student, text, policy):
    """Later chunks have been made by then, and what the window left is out of sight."""
    gradients = []
    for recompute in (False, True):
        student.model.checkpoint_blocks = recompute
        cfg = replace(STUDENT, chunk=1, policy=policy)
        made = roll_out(student, cfg, CLIP, text, seeded_noise, [1] * CLIP[0], grad=True)
        gradients.append(torch.autograd.grad(made.square().sum(), list(student.model.parameters())))
    for kept, computed_again in zip(*gradients):
        assert torch.equal(kept, computed_again)


# ---- one update ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"input": "data"}, {"input": "self"}, SHARED], ids=["data", "self", "adapters"])
def test_the_student_learns_from_its_update_and_the_critic_from_its_own(world, tmp_path, changes):
    sitting = Sitting(dmd_config(world, **changes), tmp_path, CPU, GALLERY)

    def state():
        return {n: [p.detach().clone() for p in m.parameters()] for n, m in sitting.actors.trained.items()}

    def moved(before, after):
        return {n for n in before if any(not torch.equal(a, b) for a, b in zip(before[n], after[n]))}

    def teacher():
        named = sitting.actors.teacher.model.named_parameters()
        return [p.detach().clone() for name, p in named if ".down." not in name and ".up." not in name]

    frozen = teacher()
    start = state()
    sitting.update_critic(0.0, 1)
    critic = state()
    assert moved(start, critic) == {"critic"}
    sitting.update_student(0.0)
    assert moved(critic, state()) == {"student"}
    left = [p for module in sitting.actors.trained.values() for p in module.parameters() if p.grad is not None]
    assert not left
    assert len(frozen) > 10 and all(torch.equal(a, b) for a, b in zip(frozen, teacher()))


def test_what_was_made_before_the_last_prompt_is_not_judged_by_it(world, tmp_path, monkeypatch):
    sitting = Sitting(dmd_config(world, input="self", batch=2), tmp_path, CPU, GALLERY)
    scripts = [Script(((0, "red car"), (1, "blue car"), (9, "car"))), one_prompt("red")]
    sitting.scripts = lambda number: scripts[number % 2]
    texts = sitting.text_of_chunks(scripts)
    told = [["red car", "red"], ["blue car", "red"], ["blue car", "red"]]  # in the chunks from frames 0, 2 and 4 on
    assert all(torch.equal(text, sitting.student_words(prompts)) for text, prompts in zip(texts, told, strict=True))
    gradients = []
    monkeypatch.setattr(dmd, "student_loss", lambda x0, g: gradients.append(g) or student_loss(x0, g))
    (_, text, _), _ = sitting.update_student(0.0)
    assert torch.equal(text, sitting.words(["blue car", "red"]))
    (gradient,) = gradients
    assert gradient[0, :2].abs().max() == 0 and gradient[0, 2:].abs().amin(dim=(1, 2, 3)).max() > 0
    assert (gradient[1].abs().amax(dim=(1, 2, 3)) > 0).all()
    sizes = gradient.square().mean(dim=(2, 3, 4)).sqrt()
    monitor = sitting.by_sigma
    counts, sums = monitor._counts.sum(), monitor._sums.sum()
    assert counts == 8, "frames that are not judged do not count as frames without a gradient"
    torch.testing.assert_close(sums, sizes.sum())


def test_a_run_goes_on_with_the_critic_of_an_earlier_one(world, tmp_path):
    """Teacher and student of the new run, and the critic that a checkpoint of the old one holds."""
    before = Sitting(dmd_config(world), tmp_path / "before", CPU, GALLERY)
    before.take_step(0.0)
    before.save()
    (checkpoint,) = (tmp_path / "before/checkpoints").iterdir()
    after = Sitting(dmd_config(world, critic=str(checkpoint)), tmp_path / "after", CPU, GALLERY)
    learnt, start = before.actors.trained["critic"].state_dict(), after.actors.teacher.model.state_dict()
    taken = after.actors.trained["critic"].state_dict()
    assert all(torch.equal(taken[name], value) for name, value in learnt.items())
    assert any(not torch.equal(taken[name], value) for name, value in start.items())
    with pytest.raises(UserError, match="leave out critic"):
        dmd_config(world, critic=str(checkpoint), adapter=AdapterConfig(rank=2)).check()


def test_a_guide_is_another_network_that_never_learns(world, tmp_path):
    """A guide with the teacher's own weights changes nothing; another one changes what the student learns."""
    worse = write_weights_folder(tmp_path / "worse", seed=7)
    gradients = {}
    for name, guide in (("none", None), ("same", str(world / "weights")), ("worse", str(worse))):
        sitting = Sitting(dmd_config(world, guidance=3.0, guide=guide), tmp_path / name, CPU, GALLERY)
        sitting.update_student(0.0)
        gradients[name] = sitting.actors.trained["student"].patch_embedding.weight.detach().clone()
        if sitting.guide is not None:
            assert not any(parameter.requires_grad for parameter in sitting.guide.model.parameters())
    assert torch.equal(gradients["none"], gradients["same"])
    assert not torch.equal(gradients["none"], gradients["worse"])


def test_noised_data_has_a_level_per_chunk_and_the_video_is_the_students_guess(world, tmp_path):
    """Every level of the student, 0 included: there the guess is the clip itself, whatever the network says."""
    sitting = Sitting(dmd_config(world, input="data", batch=8), tmp_path, CPU, GALLERY)
    inputs = sitting.read(8)
    seen = []

    def perfect(x_t, sigma, text, travel):
        seen.append(sigma)
        per_frame = sigma[:, :, None, None, None]
        return torch.where(per_frame > 0, (x_t - inputs.latents) / per_frame, 7.0)

    sitting.actors.student = perfect
    x0 = sitting.make_video(inputs, sitting.draws(0, slice(0, 8)), grad=True)
    torch.testing.assert_close(x0, inputs.latents, atol=1e-5, rtol=1e-5)
    (sigma,) = seen
    assert torch.equal(sigma[:, 0], sigma[:, 1]) and torch.equal(sigma[:, 2], sigma[:, 3])
    assert len({tuple(row.tolist()) for row in sigma}) > 1
    assert {round(value, 5) for value in sigma.flatten().tolist()} == {round(s, 5) for s in STUDENT.sigmas}
    assert torch.equal(x0[sigma == 0], inputs.latents[sigma == 0])


def test_a_clean_chunk_of_noised_data_learns_to_be_looked_back_at(world, tmp_path, monkeypatch):
    """Its frames have no gradient of their own; how they are read has one, from the chunks after them."""
    monkeypatch.setattr(Draws, "integers", lambda draws, high, *_: torch.tensor([[high - 1, 1, 2]]))
    sitting = Sitting(dmd_config(world, input="data", batch=1), tmp_path, CPU, GALLERY)
    inputs, read = sitting.read(1), []
    sitting.actors.student.model.patch_embedding.register_forward_hook(lambda module, args, out: read.append(out))
    x0 = sitting.make_video(inputs, sitting.draws(0, slice(0, 1)), grad=True)
    assert torch.equal(x0[:, :2], inputs.latents[:, :2])
    (own,) = torch.autograd.grad(x0[:, :2].sum(), read, retain_graph=True)
    assert own.abs().max() == 0
    (later,) = torch.autograd.grad(x0[:, 2:].square().sum(), read)
    assert (later[0, :2].abs().amax(dim=(1, 2)) > 0).all()


def test_a_critic_that_is_the_teacher_gives_no_gradient(world, tmp_path):
    """At the start all three are one network: without guidance there is nothing to learn yet."""
    sitting = Sitting(dmd_config(world, guidance=1.0), tmp_path, CPU, GALLERY)
    _, norm = sitting.update_student(0.0)
    assert norm == 0


def test_a_student_on_its_own_past_learns_the_teachers_mean(world, tmp_path):
    """A real network against a teacher that is N(-1, 1), with the exact critic of what the student makes."""
    cfg = dmd_config(world, student_optim=replace(OPTIM, lr=3e-2), batch=4, guidance=1.0, score_range=(0.3, 0.98))
    sitting = Sitting(cfg, tmp_path, CPU, GALLERY)

    def mean_of_videos():
        inputs = Inputs([one_prompt("red car")] * 4, None, unknown_ways(4, cfg.clip[0]), sitting.bounds)
        return float(sitting.make_video(inputs, sitting.draws(9, slice(0, 4)), grad=False).mean())

    first = mean_of_videos()
    sitting.actors.teacher = gaussian(-1.0)
    for _ in range(20):
        sitting.actors.critic = gaussian(mean_of_videos())
        sitting.update_student(0.0)
        sitting.step += 1
    assert abs(mean_of_videos() + 1) < 0.5 * abs(first + 1)


def test_parts_of_a_batch_add_up(world, tmp_path):
    """In what is learnt and in what is reported, and no pass is of more than a part."""
    states, reports = [], []
    for accumulate in (1, 2):
        cfg = dmd_config(world, batch=4, accumulate=accumulate, exit="per chunk")
        sitting, passes = Sitting(cfg, tmp_path / str(accumulate), CPU, GALLERY), []
        for network in (sitting.actors.teacher, sitting.actors.critic, sitting.actors.student):
            network.model.register_forward_pre_hook(lambda module, args, passes=passes: passes.append(len(args[0])))
        sitting.take_step(0.0)
        assert set(passes) == {4 // accumulate}
        states.append({n: p.clone() for n, p in sitting.actors.trained["student"].state_dict().items()})
        reports.append(json.loads((tmp_path / str(accumulate) / "metrics.jsonl").read_text()))
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], atol=2e-4, rtol=0)
    for name in ("critic_lead", "newest", "critic_loss"):
        assert reports[0][name] == pytest.approx(reports[1][name], abs=1e-3)


def test_a_part_draws_no_more_noise_than_it_uses(monkeypatch):
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: drawn.append(randn(*args, **kwargs)) or drawn[-1])
    whole, *parts = (Draws((1, 2), 6, slice(*rows), CPU).normal(CLIP, 3) for rows in ((0, 6), (0, 2), (2, 3), (3, 6)))
    assert torch.equal(whole, torch.cat(parts)) and not torch.equal(whole[0], whole[1])
    assert sum(noise.numel() for noise in drawn) == 2 * whole.numel()


def test_a_rank_reads_its_own_clips(world, tmp_path, monkeypatch):
    sitting = Sitting(dmd_config(world, input="data", batch=4, **MOVING), tmp_path, CPU, GALLERY)
    all_inputs = sitting.read(4)
    monkeypatch.setattr(parallel, "my_rows", lambda batch: slice(batch // 2, batch))
    sitting.drawn = 0
    inputs = sitting.read(4)
    assert torch.equal(inputs.latents, all_inputs.latents[2:]) and torch.equal(inputs.ways, all_inputs.ways)
    assert inputs.prompts == all_inputs.prompts
    made = [sitting.make_video(inputs, sitting.draws(0, slice(row, row + 1)), grad=False) for row in (2, 3)]
    monkeypatch.undo()
    whole = sitting.make_video(all_inputs, sitting.draws(0, slice(0, 4)), grad=False)
    torch.testing.assert_close(torch.cat(made), whole[2:])


@pytest.mark.parametrize("changes", [{"input": "data"}, {"prompts": "vista"}])
def test_views_that_move_count(world, tmp_path, changes):
    """In what the student makes and in what teacher and critic see; of views that are unknown nothing changes."""
    made = []
    for name, more in (("resting", {}), ("moving", MOVING), ("unknown", MOVING | {"free_noise": 1.0})):
        sitting = Sitting(dmd_config(world, **changes | more), tmp_path / name, CPU, GALLERY)
        (videos, *_), _ = sitting.update_student(0.0)
        sitting.update_critic(0.0, 1, fresh=True)
        made.append((videos, float(sitting.critic_losses[-1])))
    torch.testing.assert_close(made[0][0], made[2][0])
    assert made[0][1] == pytest.approx(made[2][1])
    assert (made[0][0] - made[1][0]).abs().max() > 1e-3 and made[0][1] != pytest.approx(made[1][1], rel=1e-3)


def test_only_vistas_prompts_tell_how_views_move(world, tmp_path):
    with pytest.raises(UserError, match="only Vista's own prompts tell how the view moves"):
        dmd_config(world, **MOVING).check()


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "data"},
        {"replay": 4, "critic_warmup": 1, "critic_batch": 3},
        {**SHARED, "replay": 3},
        {"sight": "causal"},
        {"input": "data", **MOVING},
        {"prompts": "vista", "changing": 0.5, "replay": 4, "critic_batch": 3, "free_noise": 0.3, **MOVING},
    ],
    ids=["data", "replay", "adapters", "causal teacher", "data, moving", "replay, moving"],
)
def test_resumed_equals_uninterrupted(world, tmp_path, changes):
    cfg = dmd_config(world, **changes)
    straight = dmd.train(cfg, tmp_path / "straight", steps=3, gallery=GALLERY)
    sitting = Sitting(cfg, tmp_path / "halved", CPU, GALLERY)
    for step in range(2):  # killed after the second, with a checkpoint after the first
        sitting.take_step(step / 3)
        if step == 0:
            sitting.save()
    resumed = dmd.train(cfg, tmp_path / "halved", steps=3, gallery=GALLERY)
    assert_same_weights(straight, resumed)
    assert_same_weights(*(tmp_path / run / "checkpoints/step-00000003" for run in ("straight", "halved")))


def test_a_run_folder_tells_everything(world, tmp_path):
    weights = dmd.train(dmd_config(world, replay=2, candidates=1), tmp_path, steps=2, gallery=GALLERY)
    text = (tmp_path / "metrics.jsonl").read_text()
    for name in ("critic_lead", "critic_loss", "gradient", "std", "motion", "seams", "dmd_sigma_", "sample_spread"):
        assert f'"{name}' in text
    assert (tmp_path / "samples/step-00000002.png").stat().st_size > 1000
    (candidate,) = (weights / "candidates").iterdir()
    assert_same_weights(candidate, weights)  # the newest one is the student that is handed on
    assert load_dit(weights / "student.safetensors").cfg == MODEL and (weights / "text.safetensors").is_file()


def test_a_sheet_that_fails_costs_no_weights(world, tmp_path):
    """At scale it is the sheet that memory is too small for, after days."""

    def fail(latents):
        raise MemoryError

    gallery = replace(GALLERY, decode=fail)
    with pytest.raises(MemoryError):
        dmd.train(dmd_config(world), tmp_path, steps=1, gallery=gallery)
    weights = tmp_path / "weights"
    assert_same_weights(weights, weights / "candidates/step-00000001")


@pytest.mark.parametrize("moving", [False, True])
def test_a_sheet_is_the_same_in_groups_as_in_one_batch(tmp_path, monkeypatch, moving):
    prompts = [vista_caption(0), vista_caption(1)]
    gallery, words = Gallery(prompts, GALLERY.decode), Words(HashText(), "", CPU)
    model = random_dit(replace(MODEL, text_width=8, text_length=5, parallax=(0.0, 1.0) if moving else ()))
    view_noise = MOVING["view_noise"] if moving else None
    sheets, batches = {}, []
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    for tokens in (1, 2**14):
        monkeypatch.setattr(self_rollout, "SHEET_TOKENS", tokens)
        sheets[tokens] = write_student_sheet(
            tmp_path / "sheet.png", Network(model, "float32"), STUDENT, CLIP, words, gallery, view_noise
        )
    assert (
        set(batches[: len(batches) * 4 // 5]) == {1} and batches[-1] == 4
    )  # clips of a pass: four times as many passes
    torch.testing.assert_close(sheets[1], sheets[2**14], atol=1e-5, rtol=0)
    assert len(sheets[1]) == 4 and (sheets[1][0] - sheets[1][1]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_roll_out_remembers_in_the_dtype_it_computes_in(student, text, monkeypatch, dtype):
    caches = []
    monkeypatch.setattr(self_rollout, "KVCache", lambda *args, **kw: caches.append(KVCache(*args, **kw)) or caches[-1])
    for grad in (False, True):
        roll_out(Network(student.model, dtype), STUDENT, CLIP, text, seeded_noise, grad=grad)
    assert [cache.dtype for cache in caches] == [getattr(torch, dtype)] * 2


@pytest.mark.parametrize("candidates", [0, 2])
def test_the_newest_candidates_stay(world, tmp_path, candidates):
    cfg = dmd_config(world, candidates=candidates, sample_minutes=0.0)
    weights = dmd.train(cfg, tmp_path, steps=3, gallery=GALLERY)
    kept = sorted(folder.name for folder in (weights / "candidates").glob("*"))
    assert kept == ["step-00000001", "step-00000002", "step-00000003"][3 - candidates :]
    # each can be loaded, and trained from, by itself
    assert all((weights / "candidates" / name / "text.safetensors").is_file() for name in kept)
    assert len(list((tmp_path / "samples").iterdir())) == 3


@pytest.mark.parametrize("num_frames", [1, 2])
def test_a_clip_may_be_one_chunk_or_one_frame(world, tmp_path, num_frames):
    """There is no seam to tell of, and nothing that is no number."""
    dmd.train(dmd_config(world, clip=(num_frames, *CLIP[1:])), tmp_path, steps=1, gallery=GALLERY)
    step, sheet = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert all(math.isfinite(value) for value in (step | sheet).values())
    assert (step["motion"] > 0) == (sheet["sample_motion"] > 0) == (num_frames > 1)
    assert "seams" not in step and "sample_seams" not in sheet
    assert (tmp_path / "samples/step-00000001.png").stat().st_size > 1000


def test_adapters_are_handed_on_merged_and_as_a_lora(world, tmp_path, rng):
    cfg = dmd_config(world, **SHARED)
    weights = dmd.train(cfg, tmp_path, steps=2, gallery=GALLERY)
    merged = load_dit(weights / "student.safetensors").eval()
    teacher = load_dit(world / "weights/teacher.safetensors", overrides=MODEL.__dict__).eval()
    x_t, sigma, text = torch.randn(1, *CLIP), torch.rand(1, CLIP[0]), torch.randn(1, 6, 16)
    with torch.no_grad():
        before = teacher(x_t, sigma, text)
        LoraSet(teacher).add("student", read_lora(weights / "student.lora.safetensors"))
        torch.testing.assert_close(teacher(x_t, sigma, text), merged(x_t, sigma, text), atol=1e-4, rtol=1e-4)
    assert (merged(x_t, sigma, text) - before).abs().max() > 1e-3


def test_adapters_start_from_a_given_student(world, tmp_path, capsys):
    """At full rank nothing but norms and biases is lost; the run tells how much a rank holds."""
    start = write_weights_folder(tmp_path / "start", "student", seed=1)
    cfg = dmd_config(world, init=str(start), adapter=AdapterConfig(rank=48, targets=("self_attn", "cross_attn", "ffn")))
    sitting = Sitting(cfg, tmp_path / "run", CPU, GALLERY)
    assert "rank 48 holds" in capsys.readouterr().err
    layer = sitting.actors.adapters.lora("student").low_rank["blocks.1.ffn.0.weight"]
    one, two = (weights_of(folder) for folder in (start, world / "weights"))
    change = one["student.blocks.1.ffn.0.weight"] - two["teacher.blocks.1.ffn.0.weight"]
    torch.testing.assert_close(layer.delta(), change, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("published", [False, True], ids=["of ode-init", "a .pt"])
def test_a_wan_student_reads_what_its_teacher_reads(world, tmp_path, monkeypatch, published):
    """Neither what ode-init writes nor a published file has the text encoder beside it: it stays in Wan's folder."""
    wan = tmp_path / "wan"
    wan.mkdir()
    (wan / "Wan2.1_VAE.pth").touch()
    teacher = read_tensors(world / "weights/teacher.safetensors")
    save_file(teacher, wan / "diffusion_pytorch_model.safetensors")
    text = VistaText.load(world / "weights/text.safetensors")
    monkeypatch.setattr(wan_world, "load_text", lambda folder, device: text)
    if published:
        init = tmp_path / "published.pt"
        torch.save({"generator": teacher}, init)
    else:
        pairs = ode_pairs.train(pairs_config(world, teacher=str(wan)), tmp_path / "pairs")
        cfg = init_config(world, teacher=str(wan), pairs=str(pairs))
        init = ode_init.train(cfg, tmp_path / "init", steps=1, gallery=GALLERY)
    cfg = dmd_config(world, teacher=str(wan), init=str(init))
    weights = dmd.train(cfg, tmp_path / "dmd", steps=1, gallery=GALLERY)
    assert load_dit(weights / "student.safetensors").cfg == MODEL and not (weights / "text.safetensors").exists()
    # who has an encoder of its own reads with that one
    other = write_weights_folder(tmp_path / "other", "student", seed=1)
    sitting = Sitting(replace(cfg, init=str(other)), tmp_path / "again", CPU, GALLERY)
    assert not torch.equal(sitting.student_words(["red car"]), sitting.words(["red car"]))


def test_a_larger_teacher_teaches_a_smaller_student(world, tmp_path):
    """The critic has the teacher's size; what is written is the student, in its own."""
    small = replace(MODEL, num_layers=1)
    start = write_weights_folder(tmp_path / "start", "student", seed=1, model=small)
    cfg = dmd_config(world, student_model=small, init=str(start))
    begun = str(start / "student.safetensors")
    for changes, expected in (({}, [2, 2, 1]), ({"critic_model": small, "critic": begun}, [2, 1, 1])):
        actors = Sitting(replace(cfg, **changes), tmp_path / str(expected), CPU, GALLERY).actors
        assert [len(actor.model.blocks) for actor in (actors.teacher, actors.critic, actors.student)] == expected
    weights = dmd.train(cfg, tmp_path / "run", steps=1, gallery=GALLERY)
    state, about = read_file(weights / "student.safetensors")
    assert about == config_metadata(small) and not any(".blocks.1." in f".{name}" for name in state)
    before = read_tensors(start / "student.safetensors")
    assert state.keys() == before.keys() and any(not torch.equal(state[name], before[name]) for name in state)
    counted = {deep: memory_need(replace(cfg, model=replace(MODEL, num_layers=deep)), 1) for deep in (1, 2, 40)}
    layer = counted[2].weights - counted[1].weights
    assert counted[40].weights - counted[1].weights == pytest.approx(39 * layer)
    assert counted[40].activations > counted[2].activations  # the critic's, which a small one's do not count beside


def test_mistakes_are_told(world, tmp_path):
    small = replace(MODEL, num_layers=1)
    for changes, message in (
        ({"student_model": small, "init": None}, "set init"),
        ({"critic_model": small}, "set critic"),
        ({"student_model": small, "adapter": AdapterConfig(rank=2)}, "leave out student_model, or adapter"),
    ):
        with pytest.raises(UserError, match=message):
            dmd_config(world, **changes).check()
    with pytest.raises(UserError, match="set data to a folder of latents, or set input=self"):
        dmd.train(dmd_config(world, input="data", data=None), tmp_path, steps=1, gallery=GALLERY)
    with pytest.raises(UserError, match="a replay of 1 videos is smaller than a batch"):
        dmd.train(dmd_config(world, replay=1), tmp_path, steps=1, gallery=GALLERY)
    cfg = dmd_config(world, teacher=str(tmp_path))
    with pytest.raises(UserError, match="has no teacher"):
        dmd.train(cfg, tmp_path / "run", steps=1, gallery=GALLERY)
    sitting = Sitting(dmd_config(world), tmp_path / "nan", CPU, GALLERY)
    with torch.no_grad():
        sitting.actors.student.model.head.head.weight.fill_(torch.inf)
    with pytest.raises(UserError, match=r"student diverged at step 0; .* lower student_optim.lr"):
        sitting.take_step(0.0)


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input", ["self", "data"])
def test_counted_activations_are_those_of_a_real_pass(world, input):
    cfg = dmd_config(world, input=input, model=replace(MODEL, num_layers=4))
    bounds = chunk_bounds(CLIP[0], 2)
    text = torch.randn(2, 6, 16)

    def graph(model):
        network = Network(model, "float32", {"bounds": bounds} if input == "data" else {})
        if input == "data":
            return network(torch.randn(2, *CLIP), torch.rand(2, CLIP[0]), text)
        return roll_out(network, STUDENT, CLIP, text, seeded_noise, [0, 0, 0], grad=True)

    real = bytes_saved(lambda: graph(random_dit(cfg.model).requires_grad_(True)))
    counted = memory_need(cfg, 1).activations
    assert counted == pytest.approx(real, rel=0.15)


def test_a_wan_run_is_counted_without_allocating_it():
    need = memory_need(replace(PRESETS["wan-1.3b-data"], batch=1, accumulate=1), 1)
    # 1.419 billion: two trained in float32 with gradients and moments, an average, a frozen one in bfloat16
    assert need.weights == pytest.approx((2 * 16 + 4 + 2) * 1.419e9, rel=1e-3)
    # one input of 32,760 tokens in float32 for each of 30 layers that are computed again
    assert 30 * 32_760 * 1536 * 4 < need.activations < 60 * 32_760 * 1536 * 4
    assert str(need).startswith("about 6")


def test_what_a_run_holds_besides_networks_is_counted():
    need = memory_need(PRESETS["wan-1.3b-lora"], 8)
    # keys and values of 30 layers for one clip, in bfloat16; Wan's text encoder, while it reads
    assert need.cache == 2 * 30 * 32_760 * 1536 * 2
    assert need.text == pytest.approx(11.36e9, rel=1e-3)
    # two adapters with gradients and moments, and an average, of eight layers of the width and two feed-forward ones
    values = 128 * 30 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    assert need.weights == pytest.approx((4 * 1.419e9 + (2 * 16 + 4) * values) / 8, rel=1e-3)
    assert need.total == need.weights + need.activations + need.cache
    assert "6.0 for the student's past; 11.4 more while the text encoder reads new prompts" in str(need)
    data = memory_need(replace(PRESETS["wan-1.3b-data"], batch=8, accumulate=1), 8)
    assert data.cache == 0 and "past" not in str(data)


def test_counted_adapters_are_those_that_are_made(world, tmp_path):
    cfg = dmd_config(world, **SHARED)
    made = Sitting(cfg, tmp_path, CPU, GALLERY).actors.trained["student"]
    assert num_values(random_dit(cfg.model), cfg.adapter) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("changes", [{}, {"replay": 2}, {"critic_warmup": 2, "critic_batch": 3}], ids=str)
def test_prompts_of_a_run_are_known_ahead(world, tmp_path, changes):
    sitting = Sitting(dmd_config(world, **changes), tmp_path, CPU, GALLERY)
    read, words = set(), sitting.words
    sitting.words = sitting.student_words = lambda prompts: read.update(prompts) or words(prompts)
    sitting.words.none, sitting.words.encoder = words.none, words.encoder
    for _ in range(2):
        sitting.take_step(0.0)
    assert sitting.drawn == sitting.drawn_after(2)
    assert read <= set(sitting.all_prompts(2)) and set(GALLERY.prompts) <= set(sitting.all_prompts(0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name):
    PRESETS[name].check()


@pytest.mark.parametrize(("name", "recipe"), [("wan-1.3b", "self-forcing"), ("wan-1.3b-data", "causvid-4step")])
def test_a_wan_student_streams_as_it_was_trained(name, recipe):
    trained, streamed = PRESETS[name].student, wan_world.STUDENT_RECIPES[recipe]
    assert trained.sigmas == pytest.approx(streamed.sigmas) and PRESETS[name].score_shift == streamed.shift
    assert replace(trained, sigmas=streamed.sigmas) == streamed


# ---- many processes, and none ------------------------------------------------------------------------------------


def worker(rank: int, port: int, world: Path, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    parallel.start()
    all_stages(world, folder / "two")
    parallel.leave()


def all_stages(world: Path, folder: Path) -> None:
    pairs = ode_pairs.train(pairs_config(world), folder / "pairs")
    parallel.wait_for_all()
    ode_init.train(init_config(world, pairs=str(pairs), batch=4), folder / "init", steps=2, gallery=GALLERY)
    for name, changes in (("self", {"replay": 4}), ("data", {"input": "data"}), ("adapters", SHARED)):
        dmd.train(dmd_config(world, batch=4, **changes), folder / name, steps=2, gallery=GALLERY)


@pytest.mark.slow
def test_two_processes_equal_one_on_the_union_batch(world, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, world, tmp_path), nprocs=2)
    all_stages(world, tmp_path / "one")
    for run in ("init", "self", "data", "adapters"):
        assert_same_weights(
            tmp_path / "one" / run / "weights", tmp_path / "two" / run / "weights", atol=2e-4, rtol=1e-3
        )


RUNS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_distillation import GALLERY, dmd_config
from causvid.stages import dmd
cfg = dmd_config(Path(sys.argv[2]), replay=4, checkpoint_minutes=0.0, sample_minutes=0.0)
dmd.train(cfg, Path(sys.argv[3]), steps=12, gallery=GALLERY)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(world, tmp_path, rng):
    def arguments(folder: Path) -> list[str]:
        return [sys.executable, "-c", RUNS, str(Path(__file__).parent.parent), str(world), str(folder)]

    def finish(folder: Path) -> None:
        done = subprocess.run(arguments(folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    begun = time.monotonic()
    finish(tmp_path / "straight")
    whole = time.monotonic() - begun
    kills = 0
    while kills < 20:
        process = subprocess.Popen(arguments(tmp_path / "killed"), stderr=subprocess.DEVNULL)
        try:
            process.wait(float(torch.rand((), generator=rng)) * whole)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    finish(tmp_path / "killed")
    assert kills > 0
    assert_same_weights(tmp_path / "straight/weights", tmp_path / "killed/weights")
    ends = [tmp_path / run / "checkpoints/step-00000012" for run in ("straight", "killed")]
    assert_same_weights(*ends)
