"""The folder of pairs without any network: shards by number, slices by row, prompts without end."""

import pytest
import torch
from safetensors import safe_open

from causvid.data.pairs import Pairs, PairsSpec, claim, missing_shards, shard_file, write_shard
from causvid.data.prompts import read_prompts, vista_caption
from causvid.errors import UserError

SPEC = PairsSpec((1.0, 0.5, 0.0), num_pairs=7, pairs_per_shard=3)


def fill(folder, spec=SPEC, history=None):
    claim(folder, spec, {"teacher": "a"})
    for shard in missing_shards(folder, spec):
        numbers = spec.numbers(shard)
        states = torch.stack([torch.full((3, 2, 1, 1, 1), float(number)) for number in numbers])
        write_shard(folder, shard, states, [f"clip {number}" for number in numbers], history and states[:, 0])


def test_every_rank_has_its_own_shards_and_together_all():
    spec = PairsSpec((1.0, 0.0), num_pairs=95, pairs_per_shard=10)
    for num_ranks in (1, 3, 16):
        shards = [shard for rank in range(num_ranks) for shard in range(rank, spec.num_shards, num_ranks)]
        assert sorted(shards) == list(range(10))
    numbers = [number for shard in range(spec.num_shards) for number in spec.numbers(shard)]
    assert numbers == list(range(95))


def test_missing_shards_are_partitioned(tmp_path):
    claim(tmp_path, SPEC, {})
    parts = [missing_shards(tmp_path, SPEC, rank, 2) for rank in (0, 1)]
    assert parts == [[0, 2], [1]]
    write_shard(tmp_path, 2, torch.zeros(1, 3, 2, 1, 1, 1), ["x"], None)
    assert missing_shards(tmp_path, SPEC, 0, 2) == [0]


def test_rows_keep_their_prompts_and_epochs_visit_all(tmp_path):
    fill(tmp_path)
    pairs = Pairs(tmp_path)
    for epoch in range(3):
        batch = pairs.batch(7 * epoch, 7, seed=1)
        numbers = batch.states[:, 0, 0, 0, 0, 0].int().tolist()
        assert sorted(numbers) == list(range(7))
        assert batch.prompts == [f"clip {number}" for number in numbers] and batch.history is None
    assert pairs.identity == Pairs(tmp_path).identity


def test_shards_hold_half_precision_and_the_given_past(tmp_path):
    fill(tmp_path, history=True)
    with safe_open(shard_file(tmp_path, 0), framework="pt") as file:
        assert file.get_slice("states").get_dtype() == "F16" and set(file.keys()) == {"states", "history"}
    assert Pairs(tmp_path).batch(0, 4, 0).history.shape == (4, 2, 1, 1, 1)


def test_lines_of_a_file_come_once_per_epoch(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\n  three \n")
    prompt = read_prompts(str(file), seed=5)
    for epoch in range(4):
        assert sorted(prompt(3 * epoch + place) for place in range(3)) == ["one", "three", "two"]
    assert [prompt(i) for i in range(6)] == [read_prompts(str(file), seed=5)(i) for i in range(6)]
    with pytest.raises(UserError, match="one prompt a line"):
        read_prompts(str(tmp_path / "absent.txt"), 0)
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(str(file), 0)


def test_captions_of_vista_do_not_run_out():
    captions = [read_prompts("vista", 0)(number) for number in range(20)]
    assert len(set(captions)) > 15 and captions[3] == vista_caption(3)
    assert vista_caption(100_000_000)
