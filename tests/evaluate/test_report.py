"""Plumbing with untrained instruments, arithmetic with made-up rows."""

import json
from dataclasses import replace

import numpy as np
import pytest

from causvid.errors import UserError
from causvid.evaluate import formulas
from causvid.evaluate.comparison import _named, curve_of
from causvid.evaluate.diversity import measure_diversity, open_entropy, spread
from causvid.evaluate.drift import SUMMARIES, _accuracy, _lifetime, measure_drift
from causvid.evaluate.figures import draw_curve
from causvid.evaluate.protocol import another_truth, prompts, through_codec, truth
from causvid.evaluate.report import TITLES, Anchors, Report, column, column_interval, compare, compare_seeds, evaluate
from causvid.evaluate.scoring import COLUMNS, read_clip, score
from causvid.worlds.vista.scene import Scene


def test_columns_are_the_papers_formulas():
    names = {
        "SC*": "subject consistency",
        "BC*": "background consistency",
        "MS*": "motion smoothness",
        "DD*": "dynamic degree",
        "AQ*": "aesthetic quality",
        "IQ*": "imaging quality",
        "OC*": "overall consistency",
        "CS*": "clip score",
    }
    row = {ours: 0.1 * (i + 1) for i, ours in enumerate(names)}
    for name in COLUMNS:
        assert column([row], name) == pytest.approx(formulas.column(name, {names[k]: v for k, v in row.items()}))


def test_members_that_do_not_apply_are_left_out_of_their_own_mean_only():
    rows = [{"SC*": 1.0, "BC*": 1.0, "MS*": 1.0, "DD*": 0.0}, {"SC*": 0.0, "BC*": 0.0, "MS*": 0.0, "DD*": float("nan")}]
    assert column(rows, "temporal") == pytest.approx((0.5 * 3 + 0.0) / 3.5)
    many = rows * 40
    interval = column_interval(many, "temporal")
    assert interval.low < interval.value < interval.high
    assert interval.value == pytest.approx(column(rows, "temporal"))


def test_a_member_that_applies_to_no_prompt_leaves_the_column_open():
    rows = [{"SC*": 1.0, "BC*": 1.0, "MS*": 1.0, "DD*": float("nan")}] * 4
    assert np.isnan(column_interval(rows, "temporal")).all()
    seldom = [row | {"DD*": 0.5} for row in rows[:1]] + rows[1:]  # a third of the draws have none of it
    assert column_interval(seldom, "temporal") == pytest.approx([3.25 / 3.5] * 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved["prompts"].clear(),
        lambda saved: saved["prompts"][0].pop("SC*"),
        lambda saved: saved.pop("about"),
        lambda saved: saved.pop("anchors"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path, damage):
    saved = fake_report([0.5] * 6, made_up_anchors()).to_json()
    damage(saved)
    (tmp_path / "report.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="no report that can be read"):
        Report.load(tmp_path / "report.json")


def test_what_is_chosen_by_is_not_what_is_reported():
    told, chosen = (prompts("val", 40, choosing=choosing) for choosing in (False, True))
    assert {p.scene.seed for p in told}.isdisjoint(p.scene.seed for p in chosen)
    assert prompts("val", 3, choosing=True) == chosen[:3]


def fake_report(values, anchors=None):
    rows = [
        dict.fromkeys(("SC*", "BC*", "MS*", "DD*", "AQ*", "IQ*", "CS*", "sharpness*"), 0.9)
        | {"flips": 0.9}
        | {"OC*": v}
        for v in values
    ]
    right = [{"hero": bool(v > 0.5)} for v in values]
    return Report([f"c{i}" for i in range(len(rows))], rows, right, {}, 0.2, anchors, {"instruments": {}})


def made_up_anchors():
    references = {
        name: {"temporal": 0.5, "frame": 0.4, "text": 0.1}
        for name in (
            "shuffle",
            "freeze",
            "flicker",
            "drop",
            "blur",
            "noise",
            "saturation",
            "exposure",
            "shuffled captions",
        )
    }
    return Anchors({"temporal": 1.0, "frame": 0.9, "text": 0.9}, references)


def test_calibration_puts_the_floor_at_0_and_the_ceiling_at_100():
    calibrated = fake_report([0.9] * 20, made_up_anchors()).calibrated
    assert calibrated["temporal"].value == pytest.approx(80)
    assert calibrated["frame"].value == pytest.approx(100)
    assert calibrated["text"].value == pytest.approx(100)


def test_a_curve_is_of_the_prompts_that_all_of_its_points_have(tmp_path):
    anchors, paths = made_up_anchors(), []
    for number, report in enumerate([fake_report([0.5] * 6 + [0.1] * 4, anchors), fake_report([0.8] * 6, anchors)]):
        report.about |= {"settings": {"model": "m", "role": "teacher", "steps": 4, "guidance": None}, "suite": "val"}
        paths.append(report.save(tmp_path / str(number)))
    curve = curve_of([(20.0, paths[1]), (10.0, paths[0])])
    assert [place for place, _ in curve[TITLES["text"]]] == [10, 20]
    first, second = (Report.load(path) for path in paths)
    first = replace(first, rows=first.rows[:6], captions=first.captions[:6], right=first.right[:6])
    assert [value for _, value in curve[TITLES["text"]]] == [first.calibrated["text"], second.calibrated["text"]]
    assert draw_curve(curve, tmp_path / "curve.png", "clips").stat().st_size > 5000
    with pytest.raises(UserError, match="no report"):
        curve_of([(1.0, tmp_path / "nothing.json")])


def test_a_comparison_names_what_it_compares():
    report, told = fake_report([0.5] * 6, made_up_anchors()), []
    for guidance in (None, 2.5, {"steps": [[1, 3], [0.8, 2]]}):
        report.about |= {"settings": {"model": "m", "role": "teacher", "steps": 4, "guidance": guidance}}
        told.append(_named(report))
    report.about["settings"]["renewal"] = {"eta": 1.0, "until": 0.4}
    told.append(_named(report))
    of = [
        "",
        ", guidance 2.5",
        *(", guidance 3, 2 from 0.8 down" + more for more in ("", ", noise renewed by 1 down to 0.4")),
    ]
    assert told == [f"m (teacher, 4 steps{how})" for how in of]


def test_anchors_of_other_instruments_are_refused(untrained):
    anchors = Anchors({}, {}, {"judge_report": "another"})
    with pytest.raises(ValueError, match="measure them again"):
        evaluate([], untrained, anchors=anchors)


def test_warnings_are_about_what_misleads():
    assert fake_report([0.9] * 30).warnings() == ["the hero changes kind or colour 0.90 times a second"]
    assert any("wrong order" in text for text in fake_report([0.1] * 30).warnings())


def test_reports_are_compared_in_pairs():
    better, worse = fake_report(np.linspace(0.3, 0.9, 30)), fake_report(np.linspace(0.2, 0.8, 30))
    gap = compare(better, worse, "OC*")
    assert gap.value == pytest.approx(0.1) and gap.high - gap.low < 1e-9
    other = fake_report([0.5] * 3)
    with pytest.raises(ValueError, match="same list"):
        compare(better, other, "OC*")


def test_trainings_with_several_seeds_are_compared_by_their_mean():
    rng = np.random.default_rng(0)
    a, b, c = (fake_report(rng.uniform(size=30)) for _ in range(3))
    assert compare_seeds([(a, b)], "text") == compare(a, b, "text")
    both = compare_seeds([(a, c), (b, c)], "text")
    assert both.value == pytest.approx((compare(a, c, "text").value + compare(b, c, "text").value) / 2)
    # what speaks for one seed and against the other cancels out, in every resample
    assert compare_seeds([(a, b), (b, a)], "text") == pytest.approx((0, 0, 0), abs=1e-12)
    with pytest.raises(ValueError, match="same list"):
        compare_seeds([(a, b), (fake_report([0.5] * 3), fake_report([0.5] * 3))], "text")


def test_evaluating_writes_json_table_and_picture(untrained, tmp_path):
    listed = prompts("val", 3)
    clips = [(p, another_truth(p, num_frames=25)) for p in listed]
    report = evaluate(clips, untrained)
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert [row["caption"] for row in saved["prompts"]] == [p.caption for p in listed]
    assert saved["columns"]["text"]["value"] == pytest.approx(column(report.rows, "text"))
    assert "Text Alignment*" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_a_clip_equal_to_the_truth_scores_one_wherever_truth_is_the_measure(untrained):
    prompt = prompts("val", 1)[0]
    read = read_clip(untrained, truth(prompt, 25))
    row, _ = score(read, "a red car drives", read)
    assert row["MS*"] == row["AQ*"] == row["flicker*"] == row["sharpness*"] == row["DD*"] == 1


def test_captions_alone_leave_comparisons_with_the_truth_empty(untrained):
    frames = truth(prompts("val", 1)[0], 25)
    report = evaluate([("a red car drives in the city", frames), ("a cat", frames)], untrained)
    assert np.isnan(report.columns["temporal"].value) and not np.isnan(report.columns["text"].value)
    assert report.calibrated == {}
    assert np.isnan(report.rows[1]["OC*"])  # nothing in it that Vista knows


def test_wrong_frames_are_refused(untrained):
    with pytest.raises(ValueError, match="uint8"):
        evaluate([("a car", np.zeros((20, 64, 64, 3), np.float32))], untrained)
    with pytest.raises(ValueError, match="no clips"):
        evaluate([], untrained)


def test_the_ceiling_has_the_same_attributes_in_another_layout():
    prompt = prompts("val", 1)[0]
    a, b = truth(prompt, 13), another_truth(prompt, 13)
    assert a.shape == b.shape and np.abs(a.astype(int) - b).mean() > 2


def test_through_codec_keeps_time_and_size(model):
    frames = np.random.default_rng(0).integers(0, 255, (11, 24, 40, 3), dtype=np.uint8)
    back = through_codec(model.codec)(frames)
    assert back.shape == (9, 24, 40, 3)
    flat = np.full((9, 24, 40, 3), 77, np.uint8)
    assert np.abs(through_codec(model.codec)(flat).astype(int) - 77).max() <= 1


# drift: curves with known answers

SECONDS = np.arange(30)
CURVES = {
    "flat": np.full(30, 0.66),
    "linear": 0.66 - 0.06 * SECONDS / 29,
    "dip": 0.66 - 0.10 * np.exp(-(((SECONDS - 15) / 2) ** 2)),
}


def test_each_drift_number_sees_what_it_should_and_misses_what_it_must():
    value = {name: {key: f(curve) for key, f in SUMMARIES.items()} for name, curve in CURVES.items()}
    assert all(abs(v) < 1e-9 for v in value["flat"].values())
    assert value["linear"]["slope per 30 s"] == pytest.approx(-0.06 * 30 / 29)
    assert value["linear"]["start to end"] == pytest.approx(0.06 * 26 / 29, rel=0.05)
    assert value["dip"]["start to end"] < 0.001 and abs(value["dip"]["slope per 30 s"]) < 0.01
    assert value["dip"]["worst second"] == pytest.approx(-0.10, abs=0.005)


def test_a_life_ends_with_two_bad_seconds_in_a_row():
    assert _lifetime(np.array([1, 0.2, 1, 1, 0.1, 0.1, 1]), 0.75) == (4.0, True)
    assert _lifetime(np.array([1, 0.2, 1, 0.2]), 0.75) == (4.0, False)


def test_around_a_switch_either_prompt_will_do(true_reading):
    reading = true_reading(Scene(seed=3, hero="car", colour="red"))
    timeline = [(0.0, "a red car"), (5.0, "a blue car")]
    everything = slice(0, 27)
    assert _accuracy(reading, everything, timeline, 2) == 1
    assert _accuracy(reading, everything, timeline, 5) == 1  # still settling
    assert _accuracy(reading, everything, timeline, 8) == 0.5  # the car is there, its colour is not


def test_drift_of_streams(untrained, tmp_path):
    prompt = prompts("val", 1)[0]
    frames = truth(prompt, 60)
    drift = measure_drift([([(0.0, prompt.caption)], frames, frames)] * 2, untrained)
    assert drift.made["IQ*"].shape == (2, 5)
    assert drift.summary("IQ*")["gap to truth"]["value"] == 0
    assert json.dumps(drift.to_json())
    from causvid.evaluate.figures import draw_drift

    assert draw_drift({"student": drift}, tmp_path / "drift.png", marks={"horizon": 3}).stat().st_size > 5000


# diversity


def test_diversity_is_a_ratio_to_the_renderer(untrained):
    prompt = prompts("val", 1)[0]
    clips = [another_truth(prompt, 25, draw=k) for k in range(3)]
    same = [clips[0]] * 3
    measured = measure_diversity([(prompt.caption, clips, clips), (prompt.caption, same, clips)], untrained)
    assert measured.made[0]["open entropy"] == measured.true[0]["open entropy"]
    of_all = "pixels of all clips"
    assert measured.made[0][of_all] == measured.true[0][of_all] > 0 == measured.made[1][of_all]
    assert json.dumps(measured.to_json())


def test_only_clips_that_show_what_was_asked_count_as_diverse(untrained):
    from causvid.evaluate.diversity import Sample

    def sample(x, right, colour="red"):
        vectors = {space: np.array([float(x)]) for space in ("state", "quality", "pixels")}
        answers = {
            "biome": "sea",
            "light": "day",
            "weather": "rain",
            "colour": colour,
            "motion": "bobs",
            "camera": "static",
            "second": "none",
        }
        return Sample(vectors, answers, right)

    assert spread([sample(0, True), sample(2, True), sample(90, False)])["state"] == 2
    assert np.isnan(spread([sample(0, True), sample(9, False)])["state"])
    assert spread([sample(0, True), sample(9, False)], whatever=True)["state"] == 9
    caption = "at noon, a duck bobs up and down on the sea in the rain, static camera, with a red bird nearby"
    varied = [sample(0, True, c) for c in ("red", "blue", "red", "blue")]
    assert open_entropy(varied, caption) == pytest.approx(np.log(2) / np.log(4))  # only the colour is open
    assert open_entropy([sample(0, True)] * 4, caption) == 0
