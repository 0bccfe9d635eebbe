"""Trials go on where they stopped, and say what scoring the clips by hand says."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from causvid import cli
from causvid.errors import UserError
from causvid.evaluate import scoring, trial
from causvid.evaluate.comparison import compare_reports
from causvid.evaluate.judges import WEIGHTS
from causvid.evaluate.making import student_maker
from causvid.evaluate.protocol import REFERENCES, another_truth, prompts, truth
from causvid.evaluate.report import Anchors, Report, compare, evaluate
from causvid.evaluate.scoring import COLUMNS, from_arrays, read_clip, score, to_arrays
from causvid.evaluate.shelf import Shelf
from causvid.evaluate.trial import Settings, Trial, settings_of

NUM_FRAMES = 21
SETTINGS = Settings("tiny", {"network": "a", "codec": "c"}, "student", steps=4, num_frames=NUM_FRAMES)


@pytest.fixture
def known_floors(untrained):
    """Bad references, which take ten readings a prompt to measure."""
    names = ["shuffled captions", *(name for group in REFERENCES.values() for name in group)]
    return Anchors({}, {name: dict.fromkeys(COLUMNS, 0.1) for name in names}, untrained.ids | {"codec": "c"})


@pytest.fixture
def open_trial(model, known_floors, tmp_path):
    model.resize(64, 112)

    def opened(folder="trial", settings=SETTINGS):
        for count in (1, 2, 3):
            known_floors.save(tmp_path / folder / f"truths/c/anchors-report-{count}.json")
        return Trial(tmp_path / folder, model, settings)

    return opened


def test_a_trial_says_what_scoring_by_hand_says(open_trial, model, untrained):
    listed = prompts("val", 3)
    report = open_trial().examine(listed, untrained).report
    make = student_maker(model, NUM_FRAMES)
    by_hand = evaluate([(p, make(p.caption, p.noise_seed)) for p in listed], untrained)
    assert report.right == by_hand.right
    for a, b in zip(report.rows, by_hand.rows):
        assert a == pytest.approx(b, nan_ok=True)


def test_more_prompts_and_an_interruption_cost_only_what_is_new(open_trial, untrained, monkeypatch):
    whole = open_trial("whole").examine(prompts("val", 3), untrained).report
    trial_ = open_trial()
    trial_.examine(prompts("val", 1), untrained)
    made, reads = [], []
    stream = student_maker(trial_.model, NUM_FRAMES, steps=4)

    def make(caption, seed):
        if len(made) == 1:
            made.append(None)
            raise KeyboardInterrupt
        made.append(caption)
        return stream(caption, seed)

    monkeypatch.setattr(trial, "student_maker", lambda *_, **__: make)
    monkeypatch.setattr(trial, "read_clip", lambda *a: (reads.append(1), read_clip(*a))[1])
    listed = prompts("val", 3)
    with pytest.raises(KeyboardInterrupt):
        open_trial().examine(listed, untrained)
    again = open_trial().examine(listed, untrained).report
    assert made == [listed[1].caption, None, listed[2].caption]
    assert len(reads) == 2 * 3  # of the two new prompts: clip, truth and ceiling
    assert all(a == pytest.approx(b, nan_ok=True) for a, b in zip(again.rows, whole.rows))


def test_a_folder_belongs_to_one_model_and_its_settings(open_trial):
    open_trial()
    open_trial()
    with pytest.raises(UserError, match="steps was 4, is 2"):
        open_trial(settings=Settings("tiny", SETTINGS.parts, "student", steps=2, num_frames=NUM_FRAMES))
    with pytest.raises(UserError, match="network was"):
        open_trial(settings=Settings("tiny", {"network": "b", "codec": "c"}, "student", 4, num_frames=NUM_FRAMES))


def test_perfect_clips_under_wrong_captions_are_the_floor(open_trial, untrained):
    listed = prompts("val", 2)
    result = open_trial().examine(listed, untrained)
    swapped = [(p, result_clip) for p, result_clip in zip(listed, [_ceiling(open_trial(), p) for p in listed[::-1]])]
    by_hand = evaluate(swapped, untrained, true_frames=lambda p: truth(p, NUM_FRAMES))
    assert result.floor.columns["text"].value == pytest.approx(by_hand.columns["text"].value)
    assert result.report.anchors.floor("text") == result.floor.columns["text"].value
    assert result.report.anchors.ceiling["frame"] == result.ceiling.columns["frame"].value


def _ceiling(trial_, prompt):
    return trial_.round_trip(another_truth(prompt, NUM_FRAMES))


def test_drift_and_diversity_are_in_the_report(open_trial, untrained, tmp_path):
    result = open_trial().examine(prompts("val", 1), untrained, seeds=2, long=3.0, streams=2)
    saved = json.loads((tmp_path / "trial/report.json").read_text())
    assert len(saved["drift"]["curves"]["IQ*"]) == 3
    assert len(saved["diversity"]["prompts"]) == 1
    assert set(saved["beside"]) == {trial.CEILING, trial.FLOOR}
    told = result.told()
    assert len(told) == 6 and "of all clips" in told[-1] and "nan" not in told[-1]
    assert (tmp_path / "trial/drift.png").exists() and (tmp_path / "trial/sheet.png").exists()


def test_a_teacher_cannot_stream_and_a_student_has_no_guidance(model):
    settings = settings_of(model, "tiny", SETTINGS.parts, "teacher")
    assert settings.guidance == model.cfg.teacher.guidance and settings.steps == model.cfg.teacher.steps
    for wrong in ({"guidance": 3.0}, {"eta": 1.0}):
        with pytest.raises(UserError, match="neither guidance nor eta"):
            settings_of(model, "tiny", SETTINGS.parts, "student", **wrong)


def test_clips_of_an_ode_are_not_taken_for_those_of_renewed_noise(model, tmp_path):
    ode = settings_of(model, "tiny", SETTINGS.parts, "teacher")
    renewed = settings_of(model, "tiny", SETTINGS.parts, "teacher", eta=1.0)
    assert renewed.label == f"{ode.label}, noise renewed by 1"
    made = [Trial(tmp_path / s.label, model, s).make()("a red car", 3) for s in (ode, renewed)]
    assert not np.array_equal(*made)
    with pytest.raises(UserError, match="clips of other settings"):
        Trial(tmp_path / ode.label, model, renewed)


def test_a_reading_survives_the_disk(untrained, tmp_path):
    shelf, prompt = Shelf(tmp_path), prompts("val", 1)[0]
    read = read_clip(untrained, truth(prompt, NUM_FRAMES))
    shelf.get("a", lambda: to_arrays(read))
    again = from_arrays(shelf.get("a", lambda: pytest.fail("it is there")))
    np.testing.assert_equal(score(again, prompt.caption, read), score(read, prompt.caption, read))


def test_a_damaged_file_is_named(tmp_path):
    shelf = Shelf(tmp_path)
    shelf.frames("a", lambda: np.zeros((2, 2, 2, 3), np.uint8))
    shelf.path("a").write_bytes(b"nothing")
    with pytest.raises(UserError, match="delete it"):
        shelf.frames("a", lambda: np.zeros(1))


def test_a_report_comes_back_and_differs_from_itself_by_nothing(open_trial, untrained, tmp_path):
    report = open_trial().examine(prompts("val", 3), untrained).report
    again = Report.load(tmp_path / "trial/report.json")
    for name in (*COLUMNS, "IQ*"):
        assert compare(report, again, name) == pytest.approx((0, 0, 0), abs=1e-12)
    told = compare_reports(tmp_path / "trial/report.json", tmp_path / "trial/report.json")
    assert "everything right" in told and "*\n" not in told


def test_a_column_gains_what_its_members_gain(open_trial, untrained, tmp_path):
    open_trial().examine(prompts("val", 3), untrained)
    worse, better = (Report.load(tmp_path / "trial/report.json") for _ in range(2))
    for row in better.rows:
        row["IQ*"] += 0.2
    assert compare(better, worse, "frame") == pytest.approx((0.1, 0.1, 0.1))


def test_reports_of_other_instruments_or_prompts_are_not_compared(open_trial, untrained, tmp_path):
    report = open_trial().examine(prompts("val", 2), untrained).report
    first, second = tmp_path / "trial/report.json", tmp_path / "other/report.json"
    report.about["instruments"] = {"judge_report": "another"}
    report.save(tmp_path / "other")
    with pytest.raises(UserError, match="different instruments"):
        compare_reports(first, second)
    report.about["instruments"], report.captions = untrained.ids, ["a", "b"]
    report.save(tmp_path / "other")
    with pytest.raises(UserError, match="different prompts"):
        compare_reports(first, second)


def test_a_run_s_weights_are_a_model(tmp_path):
    model, parts = trial.load_candidate("vista", "student", "cpu")
    (tmp_path / "weights/candidates/step-1").mkdir(parents=True)
    shutil.copy(WEIGHTS / "text.safetensors", tmp_path / "weights")
    shutil.copy(WEIGHTS / "student.safetensors", tmp_path / "weights/candidates/step-1")
    candidate, same = trial.load_candidate(str(tmp_path / "weights/candidates/step-1"), "student", "cpu")
    assert same == parts
    for a, b in zip(model.need_student().parameters(), candidate.need_student().parameters()):
        assert (a == b).all() and a.dtype == b.dtype
    with pytest.raises(UserError, match=r"no student.safetensors"):
        trial.load_candidate(str(tmp_path), "student", "cpu")


def test_a_run_s_teacher_has_the_guide_of_its_run_and_no_other(tmp_path):
    _, packaged = trial.load_candidate("vista", "teacher", "cpu")
    _, student = trial.load_candidate("vista", "student", "cpu")
    assert "guide" in packaged and "guide" not in student  # clips depend on it, a student's do not
    for name in ("teacher", "text"):
        shutil.copy(WEIGHTS / f"{name}.safetensors", tmp_path)
    alone, parts = trial.load_candidate(str(tmp_path), "teacher", "cpu")
    assert alone.guide_source is None and "guide" not in parts
    shutil.copy(WEIGHTS / "guide.safetensors", tmp_path)
    guided, parts = trial.load_candidate(str(tmp_path), "teacher", "cpu")
    assert guided.guide_source is not None and parts == packaged


def test_the_command_chooses_among_guidances(model, untrained, known_floors, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "load_candidate", lambda *_: (model, SETTINGS.parts))
    monkeypatch.setattr(scoring, "load_instruments", lambda role: untrained)
    monkeypatch.setattr(trial, "measure_anchors", lambda *_: known_floors)
    common = ["evaluate", "--role", "teacher", "--steps", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, [*common, "--prompts", "2", "--guidance", "1,3"], catch_exceptions=False)
    assert "teacher, 1 steps, guidance 3" in result.stdout and "chosen: " in result.stdout
    assert json.loads((tmp_path / "guidance-3/report.json").read_text())["about"]["settings"]["guidance"] == 3
    assert len(list((tmp_path / "truths").rglob("*.npz"))) == 4  # both guidances share the ground truth
    assert len(list((tmp_path / "truths").rglob("*.json"))) == 1


def test_the_best_student_of_a_run_is_chosen(model, untrained, known_floors, tmp_path, monkeypatch):
    for name in ("step-1", "step-2"):
        (tmp_path / "run/weights/candidates" / name).mkdir(parents=True)
    monkeypatch.setattr(trial, "load_candidate", lambda *_: (model, SETTINGS.parts))
    monkeypatch.setattr(scoring, "load_instruments", lambda role: {"select": untrained}[role])
    monkeypatch.setattr(trial, "measure_anchors", lambda *_: known_floors)
    monkeypatch.setattr(trial.Result, "choice", property(lambda result: float(result.label == "step-2")))
    arguments = ["evaluate", "choose", str(tmp_path / "run"), "--prompts", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run/weights/candidates/step-2")
    assert json.loads((tmp_path / "out/step-1/report.json").read_text())["about"]["settings"]["role"] == "student"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["choose", "/nowhere"], "no weights/candidates"),
        (["curve", "report.json"], "is no point of a curve"),
        (["--guidance", "3"], "a student has no guidance"),
        (["--eta", "1"], "a student is sampled as its recipe says"),
        (["--role", "teacher", "--guidance", "1,x"], "is no guidance"),
        (["--role", "teacher", "--guidance", "1,3", "--judge", "report"], "choices are made by"),
        (["--role", "teacher", "--long", "30"], "cannot stream"),
        (["--split", "train"], "no split 'train'"),
        (["--prompts", "1"], "at least 2"),
        (["compare", "/nowhere", "/nowhere"], "no report"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    result = CliRunner().invoke(cli.app, ["evaluate", *arguments])
    assert isinstance(result.exception, UserError) and message in str(result.exception)
