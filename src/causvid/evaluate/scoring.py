"""One clip against its caption: every number of a report's row."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from causvid.evaluate import formulas, metrics, oracle
from causvid.evaluate.alignment import Item, all_right, items, overall, still_score, wanted
from causvid.evaluate.judges import WEIGHTS, Judge, Reading, load_judge
from causvid.evaluate.quality import Quality, QualityJudge, load_quality_judge

MOVES = 3.0  # pixels (of 64) that hero or camera must cover to count as dynamic; bobbing covers 5
COLUMNS = {
    "temporal": {"SC*": 1.0, "BC*": 1.0, "MS*": 1.0, "DD*": 0.5},
    "frame": {"AQ*": 1.0, "IQ*": 1.0},
    "text": {"OC*": 1.0, "CS*": 1.0},
}


@dataclass
class Instruments:
    """Everything that looks at pixels, loaded once."""

    judge: Judge
    quality: QualityJudge
    flow: metrics.Flow
    second_judge: Judge | None = None  # only to report how far two judges differ
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> dict[str, str]:
        """The ids that columns depend on; the second judge has no part in them."""
        own = (f"judge_{self.judge.role}", "judge_quality")
        return {name: value for name, value in self.ids.items() if name in own}


def load_instruments(role: str = "report") -> Instruments:
    """`role` "select" is for choosing checkpoints and settings; published numbers come from "report".

    The difference of the two judges is in a report only if both are there; its list of instruments shows which were."""
    other = "select" if role == "report" and (WEIGHTS / "judge_select.safetensors").exists() else None
    names = [f"judge_{role}", "judge_quality", *([f"judge_{other}"] if other else [])]
    ids = {name: file_hash(WEIGHTS / f"{name}.safetensors") for name in names}
    return Instruments(
        load_judge(role), load_quality_judge(), metrics.Flow(), load_judge(other) if other else None, ids
    )


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@dataclass
class ClipRead:
    """What the instruments say about a clip, before any caption is looked at."""

    reading: Reading
    quality: Quality
    values: dict[str, float]
    looks: np.ndarray  # [4 quarters, 4] sharpness, contrast, chroma, brightness
    second_reading: Reading | None = None
    opinion: dict[str, np.ndarray] | None = None  # the oracle's, at the places that the judge sees the hero at


def read_clip(instruments: Instruments, frames: np.ndarray) -> ClipRead:
    """uint8 [F, H, W, 3]"""
    second = None if instruments.second_judge is None else instruments.second_judge.read(frames)
    reading = instruments.judge.read(frames)
    return ClipRead(
        reading,
        instruments.quality.read(frames),
        metrics.temporal_metrics(frames, instruments.flow),
        metrics.looks(frames),
        second,
        oracle.second_opinion(frames, reading.place),
    )


def to_arrays(read: ClipRead) -> dict[str, np.ndarray]:
    """A reading as named arrays, to be kept on disk."""
    arrays = {"looks": read.looks} | {f"quality/{name}": value for name, value in vars(read.quality).items()}
    arrays |= {f"values/{name}": np.asarray(value) for name, value in read.values.items()}
    arrays |= {f"opinion/{name}": value for name, value in (read.opinion or {}).items()}
    for place, reading in (("reading", read.reading), ("second reading", read.second_reading)):
        if reading is not None:
            fields = dict(vars(reading))
            arrays |= {f"{place}/log_probs/{name}": value for name, value in fields.pop("log_probs").items()}
            arrays |= {f"{place}/{name}": value for name, value in fields.items()}
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> ClipRead:
    def below(place: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(place): value for name, value in arrays.items() if name.startswith(place)}

    def reading(place: str) -> Reading:
        fields = {name: value for name, value in below(f"{place}/").items() if "/" not in name}
        return Reading(below(f"{place}/log_probs/"), **fields)

    values = {name: float(value) for name, value in below("values/").items()}
    second = reading("second reading") if "second reading/place" in arrays else None
    opinion = below("opinion/") or None
    return ClipRead(reading("reading"), Quality(**below("quality/")), values, arrays["looks"], second, opinion)


def travelled(reading: Reading) -> float:
    """Pixels (of 64) that the hero covers inside the picture, or the camera in the world, whichever is more."""
    seen = reading.visible > 0.5
    hero = reading.place[seen] if seen.sum() > 2 else reading.place
    spans = np.percentile(hero, 90, axis=0) - np.percentile(hero, 10, axis=0)
    camera = np.cumsum(reading.speed * 3)
    return float(64 * max(spans.max(), np.ptp(camera)))


def unsteadiness(reading: Reading) -> float:
    """Root mean square of the hero track's second difference, pixels per stack squared."""
    return (
        float(64 * np.sqrt(np.square(np.diff(reading.place, n=2, axis=0)).sum(1).mean()))
        if len(reading.place) > 2
        else 0.0
    )


def flips(reading: Reading, seconds: float) -> float:
    """Changes of the hero's kind or colour from one half second to the next, per second."""
    count = 0
    for name in ("hero", "colour"):
        smooth = [reading.probabilities(name, slice(i, i + 2)).argmax() for i in range(0, len(reading.place) - 1, 2)]
        count += int((np.diff(smooth) != 0).sum())
    return count / seconds


def agreement(clip: ClipRead) -> dict[str, float]:
    """How often the oracle sees the light and the paint that the judge sees: nobody can have fitted a model to it."""
    light = colour = float("nan")
    if clip.opinion is not None:
        same = {name: seen == clip.reading.log_probs[name].argmax(1) for name, seen in clip.opinion.items()}
        there = clip.reading.visible > 0.5
        light = float(same["light"].mean())
        colour = float(same["colour"][there].mean()) if there.any() else colour
    return {"light as the oracle's": light, "colour as the oracle's": colour}


def score(
    clip: ClipRead, caption: str, true: ClipRead | None = None, fps: float = 12.0
) -> tuple[dict[str, float], list[Item]]:
    """A row of numbers, and the items behind the text scores. Comparisons with the truth are NaN without it."""
    want = wanted(caption)
    found = items(want, clip.reading)
    stacks = clip.quality.stack_features.reshape(-1, clip.quality.stack_features.shape[-1])
    row = {
        "OC*": overall(found),
        "CS*": still_score(want, clip.reading),
        "all right": all_right(found),
        "SC*": formulas.consistency(clip.reading.features),
        "BC*": formulas.consistency(stacks),
        "naturalness": clip.quality.naturalness,
        "IQ*": clip.quality.frame_quality,
        "travelled": travelled(clip.reading),
        "unsteadiness": unsteadiness(clip.reading),
        "flips": flips(clip.reading, 3 * len(clip.reading.place) / fps),
        "temporal severity": float(clip.quality.temporal.mean()),
        **clip.values,
        **agreement(clip),
    }
    if clip.second_reading is not None:
        row["OC* of the other judge"] = overall(items(want, clip.second_reading))
    return row | _against_truth(clip, row, want.phases[0], true), found


def _against_truth(
    clip: ClipRead, row: Mapping[str, float], asked: Mapping[str, str | None], true: ClipRead | None
) -> dict[str, float]:
    """Two-sided scores. Motion is compared only where the caption says how the hero moves."""
    if true is None:
        return dict.fromkeys(("MS*", "DD*", "AQ*", "flicker*", "sharpness*", "steadiness*"), float("nan"))
    asked_for = asked["motion"] is not None
    agrees = (row["travelled"] > MOVES) == (travelled(true.reading) > MOVES)
    return {
        "MS*": formulas.two_sided(1 - row["smoothness"], 1 - true.values["smoothness"], 1e-4),
        "DD*": float(agrees) if asked_for else float("nan"),
        "AQ*": float(np.mean([formulas.two_sided(a, b, 0.01) for a, b in zip(clip.looks.flat, true.looks.flat)])),
        "flicker*": formulas.two_sided(1 - row["flicker"], 1 - true.values["flicker"], 1e-4),
        "sharpness*": formulas.two_sided(row["sharpness"], true.values["sharpness"]),
        "steadiness*": formulas.two_sided(row["unsteadiness"], unsteadiness(true.reading), 0.1),
    }
