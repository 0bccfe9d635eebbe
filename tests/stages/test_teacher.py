"""The teacher stage at a size of milliseconds: exact resume, a falling loss, causal sight, two processes as one."""

import json
import math
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from causvid import flow
from causvid.chunks import chunk_bounds
from causvid.data.clips import Clip, PoolSpec, write_shard
from causvid.errors import UserError
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.stages import teacher
from causvid.stages.teacher import (
    NUM_MOTIONS,
    SETTLED,
    AlignmentHead,
    LengthConfig,
    Phase,
    Sitting,
    TeacherConfig,
    World,
    draw_levels,
    flow_loss,
    weigh_figures,
)
from causvid.tensor_files import read_file, read_tensors, write_tensors
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.training import parallel
from causvid.training.optim import OptimConfig
from causvid.view_noise import ViewNoise
from tiny_models import BoxCodec

WORDS = ("red", "blue", "car")
WORLD = World(WORDS, ["red car", "blue car"], lambda latents: latents[:, :, :3].repeat_interleave(4, dim=1))


class Squares(BoxCodec):
    """Clips of random squares whose colour is named: 8 x 8 'pixels' that the identity codec takes as latents."""

    def __call__(self, seeds: range, num_latents: int) -> list[Clip]:
        return [self.clip(seed, num_latents) for seed in seeds]

    def clip(self, seed: int, num_latents: int) -> Clip:
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (num_latents, 4, 4, 3), dtype=np.uint8)
        truth = rng.integers(0, 5, (num_latents, 2, 2), dtype=np.uint8)
        motion = rng.integers(-9, 9, (num_latents, 2, 2, 2), dtype=np.int8)
        return Clip(frames, ["red car", "blue car"], truth, motion, np.linspace(0, 9, num_latents, dtype=np.float32))

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([video, video[:, :, :1]], dim=2)


def config(data: Path, **changes) -> TeacherConfig:
    base = TeacherConfig(
        model=VideoDiTConfig(24, 48, 2, 2, 4, 4, 2, 16, 16, 6, 1e-6, "islands"),
        text=VistaTextConfig(16, 32, 1, 2, 6),
        data=str(data),
        lengths=(LengthConfig("images", 1, 4, (1.0,)), LengthConfig("clips", 5, 2, (2.0,))),
        phases=(Phase(0.5, (1.0, 0.0)), Phase(1.0, (0.3, 0.7))),
        optim=OptimConfig(lr=3e-3, warmup=2, decay_from=0.5),
        align_layer=0,
        num_classes=5,
        dtype="float32",
        sample_steps=2,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    for spec in (PoolSpec("images", 1, 12), PoolSpec("clips", 5, 6)):
        write_shard(folder / spec.name / "shard-00000.safetensors", spec, spec.seeds(0), Squares(), Squares())
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.stem}.{k}": v for file in folder.glob("*.safetensors") for k, v in read_tensors(file).items()}


def assert_equal(a: Path, b: Path, **tolerance) -> None:
    one, two = weights_of(a), weights_of(b)
    assert one.keys() == two.keys() and len(one) > 50
    for name in one:
        torch.testing.assert_close(one[name], two[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_noise_and_places_go_along_where_clips_tell_how_the_view_moves(data, tmp_path):
    def loss_of(name, free, **changes):
        cfg = config(data, free_noise=free, **changes)
        sitting = teacher.Sitting(cfg, tmp_path / name, torch.device("cpu"), WORLD)
        batch = sitting.pools[1].batch(0, 2, 5, 0)
        with torch.no_grad():
            sitting.teacher.model.head.head.weight.normal_(generator=torch.Generator().manual_seed(0))
            return float(sitting.loss(batch, cfg.lengths[1], torch.Generator().manual_seed(1))[0])

    places = replace(config(data).model, parallax=(0.0, 1.0))
    resting = loss_of("resting", 1.0, view_noise=ViewNoise(0.8))
    assert loss_of("unknown", 1.0, view_noise=ViewNoise(0.8), model=places) == pytest.approx(resting, rel=1e-5)
    assert loss_of("noise", 0.0, view_noise=ViewNoise(0.8)) != pytest.approx(resting, rel=1e-3)
    still = loss_of("still", 0.0, view_noise=ViewNoise(0.0))
    assert still == pytest.approx(resting, rel=1e-5)
    assert loss_of("places", 0.0, view_noise=ViewNoise(0.0), model=places) != pytest.approx(still, rel=1e-4)


def test_clips_that_do_not_tell_are_taken_as_views_that_rest(data, tmp_path, capsys):
    silent = shutil.copytree(data, tmp_path / "latents")  # the module's own stay as they are
    for file in silent.glob("*/shard-*.safetensors"):
        tensors, metadata = read_file(file)
        write_tensors(file, {name: value for name, value in tensors.items() if name != "travel"}, metadata)
    cfg = config(silent, phases=(Phase(1.0, (0.0, 1.0)),), view_noise=ViewNoise(0.8))
    teacher.Sitting(cfg, tmp_path / "run", torch.device("cpu"), WORLD).take_step(0.0)
    assert "clips of clips do not tell how the view moves" in capsys.readouterr().err


def test_resumed_equals_uninterrupted(data, tmp_path):
    cfg = config(data)
    straight = teacher.train(cfg, tmp_path / "straight", steps=8, world=WORLD)

    # a sitting that is killed after step 5, with a checkpoint after step 4
    sitting = Sitting(cfg, tmp_path / "halved", torch.device("cpu"), WORLD)
    for step in range(5):
        sitting.take_step(step / 8)
        if step == 3:
            sitting.save()
    resumed = teacher.train(cfg, tmp_path / "halved", steps=8, world=WORLD)
    assert_equal(straight, resumed, rtol=0, atol=0)
    assert_equal(  # raw weights, averages and the head alike
        tmp_path / "straight/checkpoints/step-00000008", tmp_path / "halved/checkpoints/step-00000008", rtol=0, atol=0
    )


class Rememberer(nn.Module):
    """Knows a few clips and nothing else: what it is shown, it takes for the nearest of them."""

    def __init__(self, clips: torch.Tensor) -> None:
        super().__init__()
        self.clips = clips

    def forward(self, x_t, sigma, text, **_):
        level = sigma[:, :, None, None, None]
        rest = x_t[:, None] - (1 - level[:, None]) * self.clips  # [B, clips, T, C, h, w]
        nearest = self.clips[rest.flatten(2).norm(dim=2).argmin(dim=1)]
        return flow.velocity(nearest, (x_t - (1 - level) * nearest) / level)


def test_what_is_remembered_shows_beside_clips_that_are_not_learnt_from(data, tmp_path):
    with_others = shutil.copytree(data, tmp_path / "latents")
    spec = PoolSpec("others", 5, 6, first_seed=100)
    write_shard(with_others / "others/shard-00000.safetensors", spec, spec.seeds(0), Squares(), Squares())
    low = (LengthConfig("images", 1, 4, (1.0,)), LengthConfig("clips", 5, 2, (0.1,)))  # levels at which clips are told

    def checked(unseen: str, run: str) -> dict[str, float]:
        sitting = Sitting(
            config(with_others, lengths=low, unseen=unseen, align_weight=0.0),
            tmp_path / run,
            torch.device("cpu"),
            WORLD,
        )
        (clips,) = sitting.pools[1].latents
        sitting.teacher.model = Rememberer(clips.float())
        sitting.look(1.0)
        return json.loads((tmp_path / run / "metrics.jsonl").read_text())

    told = checked("others", "run")
    assert told["seen"] < 1e-6 and told["unseen"] > 0.1
    same = checked("clips", "same")
    assert same["seen"] == same["unseen"] == told["seen"]


def test_a_pool_that_is_not_learnt_from_may_be_missing_but_not_of_another_length(data, tmp_path, capsys):
    Sitting(config(data, unseen="unseen"), tmp_path / "run", torch.device("cpu"), WORLD).look(0.0)
    assert "no 'unseen'" in capsys.readouterr().err
    lengths = (LengthConfig("clips", 5, 2, (2.0,)),)
    with pytest.raises(UserError, match="1 latent frames, those learnt from have 5"):
        Sitting(config(data, lengths=lengths, unseen="images"), tmp_path / "other", torch.device("cpu"), WORLD)


def test_a_run_folder_tells_everything(data, tmp_path):
    cfg = config(data)
    teacher.train(cfg, tmp_path, steps=10, world=WORLD)
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 3e-3
    assert {"torch", "commit", "threads"} <= json.loads((tmp_path / "env.json").read_text()).keys()
    (line,) = (json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 10 and line["loss"] > 0 and line["alignment"] > 0
    assert (tmp_path / "samples/step-00000010.png").stat().st_size > 1000
    manifest = json.loads((tmp_path / "checkpoints/step-00000010/manifest.json").read_text())
    assert manifest["about"]["config"] == json.loads((tmp_path / "config.json").read_text())
    assert manifest["state"]["drawn"][0] + manifest["state"]["drawn"][1] == line["drawn"]
    with pytest.raises(UserError, match=r"optim\.lr was 0\.003, is 0\.1"):
        teacher.train(
            replace(cfg, optim=OptimConfig(lr=0.1, warmup=2, decay_from=0.5)), tmp_path, steps=11, world=WORLD
        )


@pytest.mark.parametrize("sight", ["both ways", "causal"])
def test_the_loss_falls_on_one_batch(data, tmp_path, sight):
    cfg = config(data, sight=sight, phases=(Phase(1.0, (0.0, 1.0)),), optim=OptimConfig(lr=1e-2, warmup=1))
    sitting = Sitting(cfg, tmp_path, torch.device("cpu"), WORLD)
    batch = sitting.pools[1].batch(0, 2, 5, 0)

    def losses() -> tuple[float, float]:
        parts = []
        for seed in range(8):  # levels and noise
            loss, per_frame, _ = sitting.loss(batch, cfg.lengths[1], torch.Generator().manual_seed(seed))
            parts.append((float(per_frame.detach().mean()), float(loss.detach())))
        flow_part, whole = (sum(values) / len(values) for values in zip(*parts))
        return flow_part, (whole - flow_part) / cfg.align_weight

    before, alignment_before = losses()
    sitting.pools[1].batch = lambda *args: batch  # type: ignore[method-assign]
    for _ in range(60):
        sitting.take_step(0.9)
    after, alignment_after = losses()
    assert after < 0.6 * before and alignment_after < 0.95 * alignment_before


def test_the_loss_of_a_perfect_model_is_zero_and_of_silence_is_two():
    """The velocity is eps - x0 and both have unit variance; at the true velocity nothing is left."""
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 8, 4, 32, 32, generator=rng), torch.randn(2, 8, 4, 32, 32, generator=rng)
    sigma = torch.rand(2, 8, generator=rng)
    exact = flow_loss(lambda x_t, sigma, text: flow.velocity_from_x0(x_t, x0, sigma), x0, None, sigma, eps)
    assert exact.max() < 1e-6
    silent = flow_loss(lambda x_t, sigma, text: torch.zeros_like(x_t), x0, None, sigma, eps)
    torch.testing.assert_close(silent.mean(), torch.tensor(2.0), atol=0.02, rtol=0)


def test_motions_are_told_apart_in_steps_of_two_pixels():
    """A head that is sure of one motion loses nothing where it is right, and its certainty elsewhere; the first frame
    of a clip, which has come from nowhere, does not count."""
    head = AlignmentHead(nn.Identity(), 4, 3)
    head._features = torch.zeros(1, 3, 4, 4)
    truth = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        right, down = head.mlp[-1].bias[3:].view(2, NUM_MOTIONS)
        right[NUM_MOTIONS // 2 - 3] = down[-1] = 50.0  # six pixels to the left, as far down as is told apart
    motion = torch.tensor([-6, 16], dtype=torch.int8).expand(1, 3, 2, 2, 2).clone()
    motion[:, 0] = 1
    shows = math.log(3)
    assert math.isclose(head(truth, motion, 1.0).item(), shows, abs_tol=1e-5)
    motion[:, 1, ..., 0], motion[:, 2, ..., 1] = -7, 100  # seven is told as eight, being even; far is far
    assert math.isclose(head(truth, motion, 1.0).item(), shows + 50 / 4, abs_tol=1e-4)
    assert math.isclose(head(truth, motion, 0.5).item(), shows + 50 / 8, abs_tol=1e-4)
    assert math.isclose(head(truth, None, 1.0).item(), shows, abs_tol=1e-5)
    head._features = torch.zeros(1, 1, 4, 4)
    assert math.isclose(head(truth[:, :1], motion[:, :1], 1.0).item(), shows, abs_tol=1e-5)


def test_places_that_show_a_figure_count_more_once_it_is_settled_where_they_are(data, rng):
    """A model that is off by 0.5 everywhere has an error of 0.25 times the mean weight of a frame."""
    cfg = config(data, figure_weight=3.0, first_figure=4)
    truth = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    truth[0, :, 0, :3], truth[0, :, 1] = 4, 3  # three of 16 patches are figures; what comes before 4 is none
    truth[1, 1] = 5
    sigma = torch.tensor([[0.1, SETTLED, SETTLED + 1e-4], [1.0, 0.5, 0.0]])
    x0, eps = torch.randn(2, 3, 4, 8, 8, generator=rng), torch.randn(2, 3, 4, 8, 8, generator=rng)
    weight = weigh_figures(truth, sigma, cfg)
    assert weight.shape == (2, 3, 8, 8) and (weight[0, 0, :2, :6] == 3).all() and weight[0, 0].sum() == 64 + 2 * 12
    off = flow_loss(lambda x_t, sigma, text: flow.velocity(x0, eps) + 0.5, x0, None, sigma, eps, weight)
    few = 1 + 2 * 3 / 16
    torch.testing.assert_close(off, 0.25 * torch.tensor([[few, few, 1.0], [1.0, 3.0, 1.0]]))


def test_figures_of_weight_1_are_places_like_all_others(data, tmp_path, rng):
    """To the last bit: a plain run, one that weighs figures by 1, and one whose clips show none."""
    x0, eps = torch.randn(2, 3, 4, 8, 8, generator=rng), torch.randn(2, 3, 4, 8, 8, generator=rng)
    sigma = torch.rand(2, 3, generator=rng)
    weight = weigh_figures(torch.full((2, 3, 4, 4), 4), sigma, config(data, first_figure=4))
    plain, weighed = (flow_loss(lambda x, s, t: x, x0, None, sigma, eps, w) for w in (None, weight))
    assert torch.equal(plain, weighed)

    losses = []
    for number, (factor, first) in enumerate([(1.0, 0), (3.0, 5), (3.0, 0)]):
        changes = {"figure_weight": factor, "first_figure": first}
        sitting = Sitting(config(data, **changes), tmp_path / str(number), torch.device("cpu"), WORLD)
        batch = sitting.pools[0].batch(0, 4, 1, 0)
        losses.append(sitting.loss(batch, sitting.cfg.lengths[0], torch.Generator().manual_seed(0))[1].detach())
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_a_causal_teacher_has_a_level_per_chunk_and_never_sees_ahead(data, tmp_path):
    rng = torch.Generator().manual_seed(0)
    levels = draw_levels(4, chunk_bounds(5, 3), rng, (2.0,))
    assert (levels[:, :3] == levels[:, :1]).all() and (levels[:, 3:] == levels[:, 3:4]).all()
    assert (levels[:, 0] != levels[:, 3]).all()
    assert (draw_levels(4, [(0, 5)], rng, (2.0,)).std(dim=1) == 0).all()

    sitting = Sitting(config(data, sight="causal"), tmp_path, torch.device("cpu"), WORLD)
    with torch.no_grad():
        for p in sitting.teacher.parameters():
            p.normal_(std=0.2, generator=rng)
    batch = sitting.pools[1].batch(0, 2, 5, 0)
    changed = replace(batch, latents=torch.cat([batch.latents[:, :3], -batch.latents[:, 3:]], dim=1))
    seen = [
        sitting.loss(b, sitting.cfg.lengths[1], torch.Generator().manual_seed(3))[1].detach() for b in (batch, changed)
    ]
    torch.testing.assert_close(seen[0][:, :3], seen[1][:, :3])
    assert (seen[0][:, 3:] - seen[1][:, 3:]).abs().min() > 1e-4


def test_every_clip_draws_one_of_the_shifts():
    levels = draw_levels(4000, [(0, 1)], torch.Generator().manual_seed(0), (1.0, 40.0))[:, 0]
    # the median of a shifted logit-normal is shift / (1 + shift): half of the clips are about it, on either side
    assert (levels > 40 / 41).float().mean() == pytest.approx(0.25, abs=0.03)
    assert (levels < 0.5).float().mean() == pytest.approx(0.25, abs=0.03)


def test_dropped_captions_are_the_empty_prompt(data, tmp_path):
    sitting = Sitting(config(data, caption_dropout=1.0), tmp_path, torch.device("cpu"), WORLD)
    told = []
    sitting.teacher.text.register_forward_hook(lambda module, args, out: told.extend(args[0]))
    sitting.take_step(0.0)
    assert told == ["", "", "", ""]


def test_starting_from_another_run(data, tmp_path):
    teacher.train(config(data), tmp_path / "first", steps=3, world=WORLD)
    init = tmp_path / "first/checkpoints/step-00000003"
    again = Sitting(config(data, init=str(init)), tmp_path / "second", torch.device("cpu"), WORLD)
    averages = read_tensors(init / "ema.safetensors")
    for module in (again.teacher, again.ema.averages):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, averages[name], rtol=0, atol=0)


def test_starting_from_finished_weights(data, tmp_path):
    """What a run hands on, or a package holds, in whatever precision: another run goes on from it in float32."""
    weights = teacher.train(config(data), tmp_path / "first", steps=3, world=WORLD)
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    for name in ("teacher", "text"):
        state, about = read_file(weights / f"{name}.safetensors")
        write_tensors(shipped / f"{name}.safetensors", state, about, torch.bfloat16)
    again = Sitting(config(data, init=str(shipped)), tmp_path / "second", torch.device("cpu"), WORLD)
    for network, name in ((again.teacher.model, "teacher"), (again.teacher.text, "text")):
        given = read_tensors(shipped / f"{name}.safetensors")
        for key, value in network.named_parameters():
            assert value.dtype == torch.float32 and value.requires_grad
            assert torch.equal(value, given[key].float())
    again.take_step(0.5)
    with pytest.raises(UserError, match="not a checkpoint"):
        Sitting(config(data, init=str(tmp_path)), tmp_path / "third", torch.device("cpu"), WORLD)


def test_a_wider_network_begins_as_the_finished_one(data, tmp_path):
    weights = teacher.train(config(data), tmp_path / "first", steps=3, world=WORLD)
    size = config(data).model
    finished = VideoDiT(size)
    finished.load_state_dict(read_tensors(weights / "teacher.safetensors"))

    def started(name: str, channels: int) -> Sitting:
        cfg = config(data, model=replace(size, ffn_width=size.ffn_width + channels), init=str(weights))
        return Sitting(cfg, tmp_path / name, torch.device("cpu"), WORLD)

    wide = started("wide", 24)
    x, sigma = torch.randn(2, 3, size.out_channels, 4, 4), torch.full((2, 3), 0.5)
    text = wide.teacher.text(["red car", ""])
    torch.testing.assert_close(wide.teacher.model(x, sigma, text), finished(x, sigma, text))
    wide.take_step(0.5)  # and what was added learns
    assert wide.teacher.model.blocks[0].ffn[2].weight[:, -24:].abs().max() > 0
    with pytest.raises(UserError, match=r"teacher\.safetensors"):
        started("narrow", -8)


def test_a_diverging_run_stops_in_words(data, tmp_path):
    sitting = Sitting(config(data), tmp_path, torch.device("cpu"), WORLD)
    with torch.no_grad():
        sitting.teacher.model.blocks[0].ffn[0].weight.fill_(torch.inf)
    with pytest.raises(UserError, match=r"diverged at step 0; .* lower optim\.lr"):
        sitting.take_step(0.0)


def test_an_encoder_that_has_learnt_already_is_left_as_it_is(data, tmp_path):
    learnt = VistaText(config(data).text, WORDS)
    learnt.save(tmp_path / "text.safetensors", torch.float32)
    cfg = config(data, text_init=str(tmp_path / "text.safetensors"))
    weights = teacher.train(cfg, tmp_path / "run", steps=3, world=WORLD)
    kept, given = read_tensors(weights / "text.safetensors"), learnt.state_dict()
    assert all(torch.equal(kept[name], given[name]) for name in given)
    alone = teacher.train(config(data), tmp_path / "alone", steps=3, world=WORLD)
    assert any(not torch.equal(read_tensors(alone / "text.safetensors")[name], given[name]) for name in given)


def test_a_foreign_encoder_for_finished_weights_is_told(data, tmp_path, capsys):
    begun = teacher.train(config(data), tmp_path / "begun", steps=1, world=WORLD)
    torch.manual_seed(5)
    VistaText(config(data).text, WORDS).save(tmp_path / "text.safetensors", torch.float32)
    warnings = []
    for text in (begun / "text.safetensors", tmp_path / "text.safetensors"):
        cfg = config(data, init=str(begun), text_init=str(text))
        teacher.train(cfg, tmp_path / f"on-{text.parent.name}", steps=1, world=WORLD)
        warnings.append("not the one that came with" in " ".join(capsys.readouterr().err.split()))
    assert warnings == [False, True]


def test_a_batch_that_does_not_split_is_told_before_anything_is_begun(data, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "num_ranks", lambda: 4)
    with pytest.raises(UserError, match=r"a batch of 2 does not split over 4 processes"):
        teacher.train(config(data), tmp_path / "run", steps=1, world=WORLD)
    assert not (tmp_path / "run").exists()


def worker(rank: int, port: int, cfg: TeacherConfig, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    parallel.start()
    teacher.train(cfg, folder, steps=3, world=WORLD)
    parallel.leave()


def test_two_processes_equal_one_on_the_union_batch(data, tmp_path):
    """With an encoder that is not trained and a sheet after every step: passes that no backward pass follows."""
    VistaText(config(data).text, WORDS).save(tmp_path / "text.safetensors", torch.float32)
    optim = OptimConfig(lr=1e-3, muon=False, warmup=1)
    cfg = config(data, text_init=str(tmp_path / "text.safetensors"), optim=optim, sample_minutes=0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, cfg, tmp_path / "two"), nprocs=2)
    one = teacher.train(cfg, tmp_path / "one", steps=3, world=WORLD)
    assert_equal(one, tmp_path / "two/weights", atol=2e-4, rtol=1e-3)
