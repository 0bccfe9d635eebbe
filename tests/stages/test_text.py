"""The text stage on a language of four words: what is said is learnt, order matters, and a resumed run is the same."""

from dataclasses import replace

import torch

from causvid.data.vista import FACTS, UNSAID, told_facts
from causvid.stages import text
from causvid.stages.text import Lesson, TextConfig
from causvid.tensor_files import read_tensors
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.training.optim import OptimConfig
from causvid.worlds.vista.parsing import parse_caption

TINY = TextConfig(
    text=VistaTextConfig(width=16, ffn_width=32, num_layers=1, num_heads=2, length=6),
    optim=OptimConfig(lr=2e-2, warmup=2, muon=False),
    batch=16,
    ema_decay=0.8,
)
COLOURS = ("red", "blue")


def two_colours(number: int, split: str) -> tuple[str, tuple[int, ...]]:
    """ "red a blue b": who is of which colour is a matter of order alone; every third caption names only a."""
    a, b = number % 2, number // 2 % 2
    if number % 3 == 0:
        return f"{COLOURS[a]} a", (1 + a, 0)
    return f"{COLOURS[a]} a {COLOURS[b]} b", (1 + a, 1 + b)


LESSON = Lesson(("a", "b", *COLOURS), {"a": ("unsaid", *COLOURS), "b": ("unsaid", *COLOURS)}, two_colours)


def test_who_has_which_colour_is_learnt(tmp_path):
    file = text.train(TINY, tmp_path, steps=120, lesson=LESSON)
    sitting = text.Sitting(TINY, tmp_path, torch.device("cpu"), LESSON)
    assert min(sitting.scores("val").values()) > 0.99
    rows = VistaText.load(file)(["red a blue b", "blue a red b"])
    assert (rows[0] - rows[1]).abs().max() > 0.1


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = text.train(TINY, tmp_path / "whole", steps=6, lesson=LESSON)
    text.train(TINY, tmp_path / "parts", steps=4, lesson=LESSON)
    parts = text.train(TINY, tmp_path / "parts", steps=6, lesson=LESSON)
    one, other = read_tensors(whole), read_tensors(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_mended_encoder_reads_what_it_misread_and_keeps_its_other_rows(tmp_path):
    """It has a word that it never saw, for red. Mended, it reads that by the readers it was taught with, and what it
    read before has moved less than where nothing holds it."""

    def also_crimson(number: int, split: str) -> tuple[str, tuple[int, ...]]:
        caption, answers = two_colours(number, split)
        return caption.replace("red", "crimson") if number % 4 == 2 else caption, answers

    known = replace(LESSON, vocabulary=(*LESSON.vocabulary, "crimson"))
    lesson = replace(known, facts=also_crimson)
    text.train(TINY, tmp_path / "first", steps=60, lesson=known)
    runs = {"first": text.Sitting(TINY, tmp_path / "first", torch.device("cpu"), known)}
    for name, stay in (("mended", 30.0), ("loose", 0.0)):
        cfg = replace(TINY, mend=str(tmp_path / "first" / "checkpoints" / "step-00000060"), stay=stay)
        text.train(cfg, tmp_path / name, steps=80, lesson=lesson)
        runs[name] = text.Sitting(cfg, tmp_path / name, torch.device("cpu"), lesson)
    averages = {name: sitting.ema.averages for name, sitting in runs.items()}

    captions, answers = runs["mended"].read(range(12), "val")
    read = {name: torch.stack([x.argmax(-1) for x in pupil(captions)]) for name, pupil in averages.items()}
    right = (read["first"] == answers).all(0)
    assert right.any() and not right.all()  # there was something to mend
    assert torch.equal(read["mended"], answers)
    readers = [averages[name].readers.state_dict() for name in ("first", "mended")]
    assert all(torch.equal(readers[0][name], readers[1][name]) for name in readers[0])
    rows = {name: pupil.text(captions)[right] for name, pupil in averages.items()}
    near, far = ((rows[name] - rows["first"]).square().mean() for name in ("mended", "loose"))
    assert 0 < near < 0.5 * far


def test_told_facts_are_what_the_parser_reads():
    for number in range(150):
        caption, answers = told_facts(number, "train")
        told = {question: FACTS[question][answer] for question, answer in zip(FACTS, answers)}
        parsed = parse_caption(caption)
        read = parsed.attributes | {f"event {n}": " ".join(event) for n, event in enumerate(parsed.events, 1)}
        assert read == {question: answer for question, answer in told.items() if answer != UNSAID}, caption
