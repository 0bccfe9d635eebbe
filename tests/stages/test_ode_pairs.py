"""Teacher trajectories: exact states at the student's levels, in shards that interrupted processes make together."""

from dataclasses import replace

import pytest
import torch

from causvid import flow, sample
from causvid.data.pairs import Pairs, read_index, shard_file
from causvid.errors import UserError
from causvid.noise import chunk_noise
from causvid.stages import ode_pairs
from causvid.stages.ode_pairs import PRESETS, Maker
from causvid.stages.sources import read_network, read_words
from tiny_distillation import CLIP, STUDENT, pairs_config, write_weights_folder, write_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def test_kept_states_are_those_of_direct_integration(world):
    """Level by level: integrating from one kept state with the steps in between ends at the next."""
    cfg = pairs_config(world, solver="heun")
    states, prompts, history, _ = Maker(cfg, CPU).make(range(3))
    assert states.shape == (3, 5, *CLIP) and history is None
    model, words = read_network(cfg.model, cfg.teacher, "teacher", CPU), read_words(cfg.teacher, CPU)
    assert torch.equal(states[2, 0], chunk_noise(cfg.seed, 2, 0, CLIP))
    with torch.no_grad():
        field = sample.guided(model, words(prompts[2:]), words([""]), cfg.guidance)
        x, grid = states[2:, 0], flow.sigma_grid(8, 3.0)
        for level in range(4):
            x = sample.heun(field, x, grid[2 * level : 2 * level + 3])
            torch.testing.assert_close(x[0], states[2, level + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("guidance", "guided"), [(1.0, False), (2.0, False), (2.0, True)])
def test_a_causal_teacher_denoises_chunks_behind_its_own_clean_past(world, guidance, guided):
    """Pairs through caches == every step by recomputation of the whole past under the block-causal mask."""
    worse = str(write_weights_folder(world / "worse", seed=7)) if guided else None
    cfg = pairs_config(world, sight="causal", guidance=guidance, guide=worse)
    states, prompts, _, _ = Maker(cfg, CPU).make(range(1))
    model, words = read_network(cfg.model, cfg.teacher, "teacher", CPU), read_words(cfg.teacher, CPU)
    guide = read_network(cfg.model, worse or cfg.teacher, "teacher", CPU)
    readers = [(model, words(prompts)), (guide, words([""]))]
    bounds, grid = ode_pairs.bounds_of(cfg), cfg.grid
    assert bounds == [(0, 2), (2, 4), (4, 5)]
    done = torch.zeros(1, 0, *CLIP[1:])
    with torch.no_grad():
        for index, (start, stop) in enumerate(bounds):
            x = states[:, 0, start:stop]
            for sigma, sigma_next in zip(grid[:-1], grid[1:]):
                clip = torch.cat([done, x], 1)
                level = torch.tensor([[0.0] * start + [sigma] * (stop - start)])
                v, v_none = (m(clip, level, t, bounds=bounds[: index + 1])[:, start:] for m, t in readers)
                x = x + (sigma_next - sigma) * flow.guide(v, v_none, guidance, torch.tensor(sigma))
            torch.testing.assert_close(x, states[:, -1, start:stop], atol=2e-5, rtol=2e-5)
            done = torch.cat([done, states[:, -1, start:stop]], 1)


def test_a_given_past_is_the_true_clip(world):
    """With true clips as the past, a chunk does not depend on what was made before it."""
    cfg = pairs_config(world, sight="causal", past="data", data=str(world / "latents"))
    maker = Maker(cfg, CPU)
    states, prompts, history, _ = maker.make(range(2))
    assert set(prompts) <= {"red car", "blue car"} and history.shape == (2, *CLIP)
    eps = states[:, 0].clone()
    eps[:, :2] = 0
    again = ode_pairs.chunk_by_chunk(cfg, maker.teacher, eps, maker.words(prompts), maker.words.none(2), history)
    torch.testing.assert_close(again[:, :, 2:], states[:, :, 2:], atol=1e-6, rtol=1e-6)
    assert (again[:, -1, :2] - states[:, -1, :2]).abs().max() > 1e-3


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_interrupted_shared_and_straight_runs_leave_the_same_bytes(world, tmp_path, monkeypatch):
    cfg = pairs_config(world)
    straight = bytes_of(ode_pairs.train(cfg, tmp_path / "straight"))
    assert len(straight) == 3

    monkeypatch.setattr(Maker, "make", killed_after(1, Maker.make))
    with pytest.raises(KeyboardInterrupt):
        ode_pairs.train(cfg, tmp_path / "killed")
    monkeypatch.undo()
    assert len(bytes_of(tmp_path / "killed")) == 1
    assert bytes_of(ode_pairs.train(cfg, tmp_path / "killed")) == straight

    monkeypatch.setattr("causvid.training.parallel.num_ranks", lambda: 2)
    for rank, num_made in ((1, 1), (0, 3)):
        monkeypatch.setattr("causvid.training.parallel.rank", lambda rank=rank: rank)
        monkeypatch.setattr("causvid.training.parallel.is_first", lambda: True)
        ode_pairs.train(cfg, tmp_path / "shared")
        assert len(bytes_of(tmp_path / "shared")) == num_made
    assert bytes_of(tmp_path / "shared") == straight


def killed_after(num_shards, make):
    calls = []

    def stopping(self, numbers):
        calls.append(numbers)
        if len(calls) > num_shards:
            raise KeyboardInterrupt
        return make(self, numbers)

    return stopping


def test_reading_them_back(world, tmp_path):
    cfg = pairs_config(world)
    pairs = Pairs(ode_pairs.train(cfg, tmp_path))
    assert len(pairs) == 5 and pairs.sigmas == STUDENT.sigmas and pairs.clip_shape == CLIP
    states, prompts, _, _ = Maker(cfg, CPU).make(range(4))
    by_prompt_and_noise = {(p, s[0].half().float().sum().item()) for p, s in zip(prompts, states)}
    epoch = pairs.batch(0, 5, seed=3)
    read = {(p, s[0].sum().item()) for p, s in zip(epoch.prompts, epoch.states)}
    assert by_prompt_and_noise < read and len(read) == 5  # every pair once, with its own prompt
    assert torch.equal(pairs.batch(3, 2, seed=3).states, epoch.states[3:])
    assert not torch.equal(pairs.batch(5, 5, seed=3).states, epoch.states)


def test_growing_keeps_what_is_there(world, tmp_path):
    cfg = pairs_config(world)
    before = bytes_of(ode_pairs.train(cfg, tmp_path))
    after = bytes_of(ode_pairs.train(replace(cfg, num_pairs=8), tmp_path))
    assert len(after) == 4
    assert all(after[name] == before[name] for name in sorted(before)[:2])  # the third was not full
    assert len(Pairs(tmp_path)) == 8 and read_index(tmp_path)["spec"]["num_pairs"] == 8


def test_mistakes_are_told(world, tmp_path):
    cfg = pairs_config(world)
    with pytest.raises(UserError, match=r"6 steps do not pass through .* 0\.9000, 0\.5000"):
        ode_pairs.train(replace(cfg, steps=6), tmp_path)
    with pytest.raises(UserError, match="set sight=causal and data"):
        ode_pairs.train(replace(cfg, past="data"), tmp_path)
    with pytest.raises(UserError, match="has no teacher"):
        ode_pairs.train(replace(cfg, teacher=str(tmp_path)), tmp_path)
    ode_pairs.train(cfg, tmp_path, steps=2)
    with pytest.raises(UserError, match=r"made another way \(guidance differ"):
        ode_pairs.train(replace(cfg, guidance=3.0), tmp_path)
    damaged = shard_file(tmp_path, 0)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"shard-00000.safetensors is damaged .* delete it and run the same command"):
        ode_pairs.train(cfg, tmp_path)
    with pytest.raises(UserError, match="damaged"):
        Pairs(tmp_path)
    damaged.unlink()
    assert len(Pairs(ode_pairs.train(cfg, tmp_path))) == 5
    with pytest.raises(UserError, match="make them first"):
        Pairs(tmp_path / "nothing")


def test_a_full_disk_loses_nothing(world, tmp_path, monkeypatch):
    cfg = pairs_config(world)
    ode_pairs.train(cfg, tmp_path, steps=1)
    before = bytes_of(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("causvid.data.pairs.write_tensors", full)
    with pytest.raises(UserError, match="No space left on device"):
        ode_pairs.train(cfg, tmp_path)
    assert bytes_of(tmp_path) == before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_through_their_students_levels(name):
    PRESETS[name].check()
