"""Many clips, one report: columns with floor, ceiling and intervals over prompts; JSON, a Markdown table, a picture.

    report = evaluate(clips, instruments, anchors=packaged_anchors())
    print(report.markdown())

`clips` gives (caption or Prompt, frames uint8 [F, H, W, 3]) and may be a generator: nothing is kept but numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from causvid.atomic import whole_file
from causvid.errors import UserError
from causvid.evaluate import distribution, formulas, stats
from causvid.evaluate.alignment import items, overall, wanted
from causvid.evaluate.distortions import distort
from causvid.evaluate.judges import WEIGHTS
from causvid.evaluate.protocol import REFERENCE_STRENGTH, REFERENCES, Prompt, another_truth, truth
from causvid.evaluate.scoring import COLUMNS, ClipRead, Instruments, read_clip, score

Frames = np.ndarray
Truth = Callable[[Prompt], Frames]
T = TypeVar("T")
ARBITER = 0.75  # of a clip, in which the oracle should agree with the judge; of rendered ones it does in .93 and more
TITLES = {"temporal": "Temporal Quality*", "frame": "Frame Quality*", "text": "Text Alignment*"}


@dataclass(frozen=True)
class Anchors:
    """Columns of the ceiling (the same scenes in another layout, through the codec if given) and of bad references."""

    ceiling: dict[str, float]
    references: dict[str, dict[str, float]]  # name -> column -> raw value
    about: dict[str, str] = field(default_factory=dict)

    def floor(self, column: str) -> float:
        names = REFERENCES.get(column, ("shuffled captions",))
        return float(np.mean([self.references[name][column] for name in names]))

    def save(self, path: Path) -> None:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Anchors:
        return Anchors(**json.loads(path.read_text()))

    @staticmethod
    def packaged() -> Anchors:
        """Those of the shipped instruments and codec on the first prompts of `val`."""
        return Anchors.load(WEIGHTS / "judge_anchors.json")

    def check(self, ids: dict[str, str]) -> None:
        """Floors and ceilings belong to the instruments that measured them."""
        for name, value in ids.items():
            if self.about.get(name, value) != value:
                raise ValueError(
                    f"these anchors were measured with {name} {self.about[name]}, not {value}: measure them again"
                )


def column(rows: Sequence[dict[str, float]], name: str) -> float:
    """A column's raw value, 0 to 1: the weighted mean of its members' means. NaN if one is not available."""
    weights = COLUMNS[name]
    return float(sum(w * _mean([row[m] for row in rows]) for m, w in weights.items()) / sum(weights.values()))


def _mean(values: Sequence[float]) -> float:
    array = np.asarray(values, float)
    kept = array[~np.isnan(array)]
    return float(kept.mean()) if len(kept) else float("nan")


def column_interval(
    rows: Sequence[dict[str, float]], name: str, resamples: int = 2000, seed: int = 0
) -> stats.Interval:
    """The column with its 95 % interval over prompts; members a prompt has no value for are left out of their mean."""
    return stats.Interval(column(rows, name), *stats.middle(_column_draws(rows, name, resamples, seed)))


def _column_draws(rows: Sequence[dict[str, float]], name: str, resamples: int, seed: int) -> np.ndarray:
    """The column over resampled prompts; equal numbers of rows see the same prompts, so differences stay paired."""
    weights = np.array(list(COLUMNS[name].values()))
    table = np.array([[row[m] for m in COLUMNS[name]] for row in rows], float)
    there = ~np.isnan(table)
    both = stats.resampled_means(np.concatenate([np.where(there, table, 0), there], 1), resamples, seed)
    means = both[:, : len(weights)] / np.where(both[:, len(weights) :] > 0, both[:, len(weights) :], np.nan)
    return means @ weights / weights.sum()


@dataclass
class Report:
    """Per-prompt rows and everything that follows from them."""

    captions: list[str]
    rows: list[dict[str, float]]
    right: list[dict[str, bool]]  # per prompt: wanted attribute -> found
    sets: dict[str, float]
    chance: float  # OC* of the same clips with captions in turned order
    anchors: Anchors | None
    about: dict[str, Any]

    @property
    def columns(self) -> dict[str, stats.Interval]:
        return {name: column_interval(self.rows, name) for name in COLUMNS}

    @property
    def calibrated(self) -> dict[str, stats.Interval]:
        """0 to 100 between floor and ceiling; a column that cannot tell these apart is left out."""
        if self.anchors is None:
            return {}
        out = {}
        for name, interval in self.columns.items():
            floor, ceiling = self.anchors.floor(name), self.anchors.ceiling[name]
            if floor < ceiling and not math.isnan(interval.value):
                out[name] = stats.Interval(*(formulas.calibrate(x, floor, ceiling) for x in interval))
        return out

    @property
    def attributes(self) -> dict[str, stats.Interval]:
        """Share of prompts whose named attribute is the judge's first answer, with Wilson's interval."""
        names = sorted({name for row in self.right for name in row})
        found = {name: [row[name] for row in self.right if name in row] for name in names}
        return {name: stats.wilson(sum(answers), len(answers)) for name, answers in found.items()}

    @property
    def metrics(self) -> dict[str, stats.Interval]:
        return {name: stats.bootstrap([row[name] for row in self.rows], 2000) for name in self.rows[0]}

    def warnings(self) -> list[str]:
        """Ways in which good columns can mislead."""
        told, m = [], self.metrics
        if m["DD*"].value < 0.85:
            told.append(
                f"motion agrees with the captions in only {m['DD*'].value:.0%} of prompts: smoothness may be standstill"
            )
        if m["sharpness*"].value < 0.7:
            told.append("sharpness is far from the ground truth's")
        if m["flips"].high > 0.25:
            told.append(f"the hero changes kind or colour {m['flips'].value:.2f} times a second")
        other = m.get("OC* of the other judge")
        if other is not None and abs(other.value - m["OC*"].value) > 0.05:
            told.append(
                f"the two judges differ by {m['OC*'].value - other.value:+.2f}: something fits one of them too well"
            )
        for name in ("light", "colour"):
            same = m.get(f"{name} as the oracle's")
            if same is not None and same.value < ARBITER:
                told.append(f"the oracle, which nothing learns from, sees the judge's {name} in only {same.value:.0%}")
        if m["OC*"].low < self.chance:
            told.append("captions in wrong order score as well as the right ones")
        return told

    def to_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "columns": {k: v._asdict() for k, v in self.columns.items()},
            "calibrated": {k: v._asdict() for k, v in self.calibrated.items()},
            "attributes": {k: v._asdict() for k, v in self.attributes.items()},
            "metrics": {k: v._asdict() for k, v in self.metrics.items()},
            "sets": self.sets,
            "chance": self.chance,
            "warnings": self.warnings(),
            "anchors": None if self.anchors is None else asdict(self.anchors),
            "prompts": [{"caption": c, **row, "right": r} for c, row, r in zip(self.captions, self.rows, self.right)],
        }

    @staticmethod
    def load(path: Path) -> Report:
        """A report.json, to compare with another one."""
        try:
            saved = json.loads(path.read_text())
            listed = saved["prompts"]
            names = [name for name in listed[0] if name not in ("caption", "right")]
            rows = [{name: float("nan") if row[name] is None else row[name] for name in names} for row in listed]
            anchors = None if saved["anchors"] is None else Anchors(**saved["anchors"])
            chance = float("nan") if saved["chance"] is None else saved["chance"]
            report = Report([row["caption"] for row in listed], rows, [row["right"] for row in listed], saved["sets"],
                            chance, anchors, saved["about"])  # fmt: skip
            _ = [column(rows, name) for name in COLUMNS], report.about["instruments"], report.about["suite"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no report that can be read ({error}); give the report.json of a run") from None
        return report

    def save(self, folder: Path, **more: Any) -> Path:
        """report.json (with `more` in it), report.md and report.png in `folder`; returns the JSON file."""
        path = folder / "report.json"
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(_without_nan(self.to_json() | more), indent=1) + "\n")
        with whole_file(folder / "report.md") as temporary:
            temporary.write_text(self.markdown())
        from causvid.evaluate.figures import draw_report

        draw_report(self, folder / "report.png")
        return path

    def markdown(self) -> str:
        """The table for people: the three columns, then what they are made of."""
        instruments = ", ".join(f"{name} {hash}" for name, hash in self.about["instruments"].items())
        lines = [
            f"{len(self.rows)} prompts. Instruments: {instruments}.",
            "",
        ]
        lines += ["| column | raw | 95 % | floor | ceiling | calibrated |", "|---|---|---|---|---|---|"]
        for name, value in self.columns.items():
            score = self.calibrated.get(name)
            ends = (
                ("", "")
                if self.anchors is None
                else (f"{self.anchors.floor(name):.3f}", f"{self.anchors.ceiling[name]:.3f}")
            )
            told = "" if score is None else f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})"
            lines.append(
                f"| {TITLES[name]} | {value.value:.3f} | {value.low:.3f} to {value.high:.3f} "
                f"| {ends[0]} | {ends[1]} | {told} |"
            )
        lines += ["", "| attribute | right | 95 % |", "|---|---|---|"]
        lines += [f"| {name} | {v.value:.3f} | {v.low:.3f} to {v.high:.3f} |" for name, v in self.attributes.items()]
        lines += ["", "| metric | mean | 95 % |", "|---|---|---|"]
        lines += [f"| {name} | {v.value:.4f} | {v.low:.4f} to {v.high:.4f} |" for name, v in self.metrics.items()]
        lines += [f"| {name} | {v:.3f} | |" for name, v in self.sets.items()]
        lines += [f"| OC* with captions exchanged (chance) | {self.chance:.4f} | |"]
        lines += ["", *(f"Warning: {text}." for text in self.warnings())]
        return "\n".join(lines).rstrip() + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for terminals."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not available is null."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(
    clips: Iterable[tuple[Prompt | str, Frames]],
    instruments: Instruments,
    *,
    anchors: Anchors | None = None,
    true_frames: Truth | None = truth,
    about: dict[str, Any] | None = None,
    on_clip: Callable[[int], None] | None = None,
    fps: float = 12.0,
) -> Report:
    """Score clips. For plain captions (and with `true_frames` None) the comparisons with the truth stay empty."""
    if anchors is not None:
        anchors.check(instruments.ids)

    def read() -> Iterator[tuple[Prompt | str, ClipRead, ClipRead | None]]:
        for number, (prompt, frames) in enumerate(clips):
            _check(frames)
            true = None
            if isinstance(prompt, Prompt) and true_frames is not None:
                true = read_clip(instruments, true_frames(prompt)[: len(frames)])
            yield prompt, read_clip(instruments, frames), true
            if on_clip is not None:
                on_clip(number)

    return report_of(read(), instruments.ids, anchors=anchors, about=about, fps=fps)


def report_of(
    clips: Iterable[tuple[Prompt | str, ClipRead, ClipRead | None]],
    ids: dict[str, str],
    *,
    anchors: Anchors | None = None,
    about: dict[str, Any] | None = None,
    fps: float = 12.0,
) -> Report:
    """The same from what the instruments of these `ids` said: of each clip, and of its truth."""
    captions, rows, right, reads, trues = [], [], [], [], []
    for prompt, read, true in clips:
        words = prompt.caption if isinstance(prompt, Prompt) else prompt
        row, found = score(read, words, true, fps)
        captions.append(words)
        rows.append(row)
        right.append({item.name: item.right for item in found})
        reads.append(read)
        trues += [] if true is None else [true]
    if not rows:
        raise ValueError("there are no clips to evaluate")
    about = {"clips": len(rows), "instruments": ids, **(about or {})}
    return Report(captions, rows, right, set_distances(reads, trues), exchanged(captions, reads), anchors, about)


def _check(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 13:
        raise ValueError(
            f"a clip is uint8 [F, H, W, 3] with 13 frames or more, got {frames.dtype} {list(frames.shape)}"
        )


def exchanged(captions: Sequence[str], reads: Sequence[ClipRead]) -> float:
    """OC* when every clip is scored against another clip's caption: the chance level, and a self-test."""
    if len(captions) < 2:
        return float("nan")
    return _mean([overall(items(wanted(words), read.reading)) for words, read in zip(turned(captions), reads)])


def turned(listed: Sequence[T]) -> list[T]:
    """Everybody gets what belongs to somebody half the list away."""
    return [*listed[len(listed) // 2 :], *listed[: len(listed) // 2]]


def set_distances(reads: Sequence[ClipRead], trues: Sequence[ClipRead]) -> dict[str, float]:
    """Distances in the quality judge's space, one vector per clip; needs 32 clips and their truth."""
    if len(trues) != len(reads) or len(reads) < 32:
        return {}
    made, real = (np.stack([r.quality.features.mean(0) for r in side]) for side in (reads, trues))
    real, made = distribution.standardise(real, made)
    scores = distribution.manifold_scores(real, made)
    distances = {"MMD": distribution.polynomial_mmd(real, made), "FD": distribution.frechet_distance(real, made)}
    return distances | scores._asdict()


def compare(a: Report, b: Report, metric: str, resamples: int = 10_000) -> stats.Interval:
    """a - b of a column or a metric over the same prompts, with the paired 95 % interval."""
    if metric in COLUMNS:
        return compare_seeds([(a, b)], metric, resamples)
    _check_same(a, b)
    return stats.paired_bootstrap([r[metric] for r in a.rows], [r[metric] for r in b.rows], resamples)


def compare_seeds(pairs: Sequence[tuple[Report, Report]], column_name: str, resamples: int = 10_000) -> stats.Interval:
    """The mean of a - b over trainings with several seeds, of a column: the interval is that over prompts."""
    for a, b in pairs:
        _check_same(a, b)
        _check_same(a, pairs[0][0])
    draws = [_column_draws(r.rows, column_name, resamples, 0) for pair in pairs for r in pair]
    low, high = stats.middle(np.mean(draws[::2], axis=0) - np.mean(draws[1::2], axis=0))
    gap = _mean([column(a.rows, column_name) - column(b.rows, column_name) for a, b in pairs])
    return stats.Interval(gap, low, high)


def _check_same(a: Report, b: Report) -> None:
    if a.captions != b.captions:
        raise ValueError("the two reports are about different prompts: evaluate both on the same list")


def measure_anchors(
    instruments: Instruments,
    listed: Sequence[Prompt],
    round_trip: Callable[[Frames], Frames] = lambda frames: frames,
    about: dict[str, str] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> Anchors:
    """Render every prompt twice: the truth, and (through `round_trip`) the ceiling and, spoilt, the floors."""
    names = [name for group in REFERENCES.values() for name in group]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("ceiling", "shuffled captions", *names)}
    reads: list[tuple[ClipRead, ClipRead]] = []
    for prompt in listed:
        true = read_clip(instruments, truth(prompt))
        clip = round_trip(another_truth(prompt))
        reads.append((read_clip(instruments, clip), true))
        rows["ceiling"].append(score(reads[-1][0], prompt.caption, true)[0])
        for name in names:
            spoilt, _ = distort(clip, name, REFERENCE_STRENGTH, np.random.default_rng(prompt.index))
            rows[name].append(score(read_clip(instruments, spoilt), prompt.caption, true)[0])
        if on_clip is not None:
            on_clip(prompt.index)
    rows["shuffled captions"] = [score(read, p.caption, true)[0] for p, (read, true) in zip(turned(listed), reads)]
    values = {name: {c: column(r, c) for c in COLUMNS} for name, r in rows.items()}
    return Anchors(values.pop("ceiling"), values, instruments.scale | (about or {}))
