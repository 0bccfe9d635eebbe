"""A model put to the test in a folder: its clips, what the instruments say of them, and the report.

    model, parts = load_candidate("local/dmd/weights", "student")
    trial = Trial(folder, model, Settings("local/dmd/weights", parts, "student", steps=4))
    print(trial.examine(prompts("val", 64), load_instruments("report")).table())

Clips and readings stay in the folder: after an interruption, or with more prompts, the same call goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from causvid import config, flow
from causvid.atomic import whole_file
from causvid.bundle import SPEC_FILE, Model, Place
from causvid.checkpoints import load_dit
from causvid.errors import UserError
from causvid.evaluate.diversity import ANY, SPACES, Diversity, measure_diversity
from causvid.evaluate.drift import Drift, measure_drift
from causvid.evaluate.making import Maker, kept, long_streams, seeds_of_a_prompt, student_maker, teacher_maker
from causvid.evaluate.protocol import NUM_FRAMES, Prompt, another_truth, fingerprint, through_codec, truth
from causvid.evaluate.report import TITLES, Anchors, Report, aligned, measure_anchors, report_of, turned
from causvid.evaluate.scoring import ClipRead, Instruments, file_hash, from_arrays, read_clip, to_arrays
from causvid.evaluate.shelf import Shelf
from causvid.loading import find, load
from causvid.media import fit
from causvid.presets import VISTA_STUDENT
from causvid.sample import ODE, Renewal
from causvid.text import Settler
from causvid.text.vista import VistaText
from causvid.view_noise import ViewNoise

Role = Literal["teacher", "student"]
Told = Callable[[str, int, int], None]  # (what is being done, how many are done, of how many)
ANCHOR_PROMPTS = 8  # that the bad references are measured on, at ten readings each
DIVERSITY_PROMPTS = 16
SHEET_PROMPTS, SHEET_FRAMES = 40, 4
CEILING, FLOOR = "ground truth through the codec", "ground truth, captions exchanged"


@dataclass(frozen=True)
class Settings:
    """What makes a clip what it is, besides its prompt. A folder holds the clips of one of these."""

    model: str
    parts: dict[str, str]  # part -> hash of its weights
    role: Role
    steps: int
    guidance: flow.Guidance | None = None
    num_frames: int = NUM_FRAMES
    chunk: int = VISTA_STUDENT.chunk  # latent frames that a student makes at a time
    story: bool = False  # what comes later is told to a student when its time comes
    named: bool = False  # what a caption leaves open is named
    first_sigmas: tuple[float, ...] | None = None  # the levels of a student's first chunk, where it has its own
    view_noise: ViewNoise | None = None
    renewal: Renewal = ODE  # of the noise on a teacher's way down
    steady: float = 0.0  # as in the model

    @property
    def label(self) -> str:
        guided = "" if self.guidance is None else f", guidance {self.guidance:g}"
        fresh = f", {self.renewal}" if self.renewal.eta else ""
        chunks = "" if self.chunk == VISTA_STUDENT.chunk else f", chunks of {self.chunk}"
        told = "" if self.story or self.role == "teacher" else ", told all at once"
        return f"{self.role}, {self.steps} steps{guided}{fresh}{chunks}{told}"


def load_candidate(
    name: str, role: Role, device: str | None = None, recipe: str | None = None
) -> tuple[Model, dict[str, str]]:
    """A model with the hashes of its parts. `name` is a model, or the weights/ folder of a run (or one of its
    candidates), which is run with the codec and the settings of `vista`."""
    place = Path(name).expanduser()
    is_run = place.is_dir() and not (place / SPEC_FILE).is_file()
    if is_run and (place / "weights" / f"{role}.safetensors").is_file():
        place = place / "weights"
    model = load("vista" if is_run else name, device=device, recipe=recipe)
    if model.cfg.text != "vista":
        raise UserError(f"the captions and judges are of the world Vista, which '{model.cfg.name}' does not know")
    shared = find("vista" if is_run else name)
    files = {"network": shared / f"{role}.safetensors", "text": shared / "text.safetensors",
             "codec": shared / "codec.safetensors"}  # fmt: skip
    if role == "teacher":
        files["guide"] = (place if is_run else shared) / "guide.safetensors"
    if is_run:
        files["network"] = place / f"{role}.safetensors"
        if not files["network"].is_file():
            raise UserError(
                f"{place} holds no {role}.safetensors; give the weights/ folder of a run, or another --role"
            )
        settle = Place.of(device, None, is_small=True).settle
        network = settle(load_dit(files["network"]))
        setattr(model, f"{role}_source", lambda: network)
        guide = files.get("guide")
        model.guide_source = (lambda: settle(load_dit(guide))) if guide and guide.is_file() else None
        # candidates lie two folders below the text encoder they were trained with
        texts = [folder / "text.safetensors" for folder in (place, *place.parents[:2])]
        found = next((file for file in texts if file.is_file()), None)
        if found is None:
            raise UserError(f"{place} holds no text.safetensors: a network is of no use without its own text encoder")
        files["text"] = found
        model.text = VistaText.load(found).to(model.device)
    return model, {part: file_hash(file) for part, file in files.items() if file.is_file()}


def settings_of(
    model: Model,
    name: str,
    parts: dict[str, str],
    role: Role,
    steps: int | None = None,
    guidance: flow.Guidance | None = None,
    story: bool = True,
    eta: float | None = None,
) -> Settings:
    """What is not asked for is as the model says."""
    how, named = model.cfg.teacher, story and isinstance(model.text, Settler)
    if role == "teacher":
        guidance = how.guidance if guidance is None else guidance
        noise = model.view_noise(model.need_teacher())
        renewal = how.renewal if eta is None else replace(how.renewal, eta=eta)
        return Settings(
            name,
            parts,
            role,
            steps or how.steps,
            guidance,
            named=named,
            view_noise=noise,
            renewal=renewal,
            steady=model.cfg.steady,
        )
    if guidance is not None or eta is not None:
        raise UserError("a student is distilled from a guided teacher and has neither guidance nor eta; leave both out")
    rollout = model.cfg.rollout if steps is None else model.cfg.rollout.with_steps(steps)
    return Settings(
        name,
        parts,
        role,
        len(rollout.sigmas) - 1,
        chunk=rollout.chunk,
        story=story,
        named=named,
        first_sigmas=rollout.first_sigmas,
        view_noise=model.view_noise(model.need_student()),
        steady=model.cfg.steady,
    )


@dataclass
class Result:
    """The report of the model, with the ground truth's beside it."""

    label: str
    report: Report
    ceiling: Report
    floor: Report
    drift: Drift | None = None
    diversity: Diversity | None = None

    def table(self) -> str:
        return table([self])

    def told(self) -> list[str]:
        """Drift and diversity, a line each."""
        lines = []
        if self.drift is not None:
            for name in ("IQ*", "accuracy", "chroma"):
                numbers = self.drift.summary(name)
                slope, beyond = numbers["slope per 30 s"], numbers["slope beyond truth"]
                lines.append(f"drift of {name} per 30 s: {_told(slope)}; beyond the ground truth's: {_told(beyond)}")
            _, shares = self.drift.survival()
            left = shares[-1] if len(shares) else 1.0
            lines.append(f"what was asked for stays to the end of {left:.0%} of streams")
        if self.diversity is not None:
            summary = self.diversity.summary()
            counted = f"{summary['clips counted']:.0%} of clips show what was asked"
            ratios = {name: summary[f"{name} ratio"] for name in SPACES}
            if all(np.isnan(ratio["value"]) for ratio in ratios.values()):
                lines.append(f"no two clips of a prompt to compare: {counted}")
            else:
                told = ", ".join(f"{name} {_told(ratio)}" for name, ratio in ratios.items())
                lines.append(f"distance between seeds over the ground truth's: {told}; {counted}")
            of_all = ", ".join(f"{name} {_told(summary[f'{ANY.format(name)} ratio'])}" for name in SPACES)
            lines.append(f"the same of all clips, whatever they show: {of_all}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """What report.json holds besides the report itself."""
        beside = {CEILING: self.ceiling, FLOOR: self.floor}
        columns = {name: {k: v._asdict() for k, v in report.columns.items()} for name, report in beside.items()}
        return {"beside": columns,
                "drift": None if self.drift is None else self.drift.to_json(),
                "diversity": None if self.diversity is None else self.diversity.to_json()}  # fmt: skip

    @property
    def choice(self) -> float:
        """What settings are chosen by: the mean of the calibrated columns."""
        values = [interval.value for interval in self.report.calibrated.values()]
        return sum(values) / max(1, len(values))


class Trial:
    def __init__(self, folder: Path, model: Model, settings: Settings, truths: Path | None = None,
                 told: Told = lambda what, done, total: None) -> None:  # fmt: skip
        """Trials may share `truths`, the folder of what is said of the ground truth."""
        self.folder, self.model, self.settings, self.told = folder, model, settings, told
        _claim(folder / "trial.json", settings)
        self.clips, self.readings = Shelf(folder / "clips"), Shelf(folder / "readings")
        self.truths = Shelf((truths or folder / "truths") / settings.parts["codec"])
        self.round_trip = through_codec(model.codec, model.device)

    def make(self) -> Maker:
        """The model's clips, each made once."""
        s = self.settings
        if s.role == "teacher":
            sampled = teacher_maker(self.model, s.num_frames, s.steps, s.guidance, s.renewal, s.named)
            return kept(sampled, self.clips.frames)
        return kept(student_maker(self.model, s.num_frames, steps=s.steps, story=s.story), self.clips.frames)

    def examine(
        self, listed: Sequence[Prompt], instruments: Instruments, *, seeds: int = 1, long: float = 0.0, streams: int = 8
    ) -> Result:
        """Clips of all prompts with their report; of `seeds` > 1 also the diversity, of `long` seconds the drift."""
        result = self._score(listed, instruments)
        if seeds > 1:
            result.diversity = self._diversity(listed[:DIVERSITY_PROMPTS], instruments, seeds)
        if long:
            result.drift = self._drift(instruments, long, streams)
        result.report.save(self.folder, **result.to_json())
        self._write_sheet(listed[:SHEET_PROMPTS], result.report)
        return result

    def _score(self, listed: Sequence[Prompt], instruments: Instruments) -> Result:
        make, num_frames = self.make(), self.settings.num_frames
        made = self._read("clips", self.readings, listed, instruments, lambda p: make(p.caption, p.noise_seed))
        true = self._read("truth", self.truths, listed, instruments, lambda p: truth(p, num_frames))
        best = self._read(
            "ceiling", self.truths, listed, instruments, lambda p: self.round_trip(another_truth(p, num_frames))
        )
        about = {"prompts": fingerprint(list(listed)), "suite": listed[0].suite, "settings": asdict(self.settings)}
        ceiling = report_of(zip(listed, best, true), instruments.ids, about=about)
        # what a model would score that makes perfect clips and does not listen
        floor = report_of(zip(listed, turned(best), true), instruments.ids, about=about)
        anchors = self._anchors(listed, instruments, ceiling, floor)
        report = report_of(zip(listed, made, true), instruments.ids, anchors=anchors, about=about)
        return Result(self.settings.label, report, ceiling, floor)

    def _read(self, what: str, shelf: Shelf, listed: Sequence[Prompt], instruments: Instruments,
              frames: Callable[[Prompt], np.ndarray]) -> list[ClipRead]:  # fmt: skip
        by = " ".join(f"{name} {hash}" for name, hash in instruments.ids.items())
        reads = []
        for done, prompt in enumerate(listed):
            self.told(what, done, len(listed))
            name = f"{what} {prompt.suite} {prompt.index} {prompt.caption} by {by}"
            # named by the prompt, since one function is made per turn of the loop
            arrays = shelf.get(name, lambda prompt=prompt: to_arrays(read_clip(instruments, frames(prompt))))  # type: ignore[misc]
            reads.append(from_arrays(arrays))
        self.told(what, len(listed), len(listed))
        return reads

    def _anchors(self, listed: Sequence[Prompt], instruments: Instruments, ceiling: Report, floor: Report) -> Anchors:
        """The packaged bad references if they were measured with these instruments and this codec, or else ones of our
        own; ceiling and exchanged captions always from the same prompts as the model."""
        wanted = instruments.scale | {"codec": self.settings.parts["codec"]}
        used = listed[:ANCHOR_PROMPTS]
        own = self.truths.folder / f"anchors-{instruments.judge.role}-{len(used)}.json"
        known = [Anchors.packaged(), *([Anchors.load(own)] if own.exists() else [])]
        fitting = [anchors for anchors in known if anchors.about.items() >= wanted.items()]
        if not fitting:
            fitting = [measure_anchors(instruments, used, self.round_trip, {"codec": wanted["codec"]},
                                       lambda index: self.told("bad references", index + 1, len(used)))]  # fmt: skip
            fitting[0].save(own)
        best = {name: interval.value for name, interval in ceiling.columns.items()}
        exchanged = {"shuffled captions": {name: interval.value for name, interval in floor.columns.items()}}
        return replace(fitting[0], ceiling=best, references=fitting[0].references | exchanged)

    def _diversity(self, listed: Sequence[Prompt], instruments: Instruments, seeds: int) -> Diversity:
        groups = seeds_of_a_prompt(self.make(), listed, seeds)
        return measure_diversity(groups, instruments, lambda done: self.told("seeds", done + 1, len(listed)))

    def _drift(self, instruments: Instruments, seconds: float, count: int) -> Drift:
        from causvid.evaluate.figures import draw_drift

        if self.settings.role == "teacher":
            raise UserError("the teacher makes clips as a whole and cannot stream; leave out --long, or use a student")
        streams = long_streams(self.model, count, seconds, self.clips.frames, steps=self.settings.steps)
        drift = measure_drift(streams, instruments, on_video=lambda done: self.told("streams", done + 1, count))
        horizon = self.settings.num_frames / self.model.cfg.fps
        draw_drift({self.settings.label: drift}, self.folder / "drift.png", marks={"trained length": horizon})
        return drift

    def _write_sheet(self, listed: Sequence[Prompt], report: Report) -> None:
        """Per prompt frames of the model on the left, of the ground truth on the right."""
        from causvid.worlds.vista.sheet import contact_sheet

        make, rows = self.make(), []
        for prompt, row in zip(listed, report.rows):
            sides = make(prompt.caption, prompt.noise_seed), truth(prompt, self.settings.num_frames)
            height, width = sides[1].shape[1:3]
            chosen = [fit(frames[_spread(len(frames))], height, width) for frames in sides]
            rows.append((f"OC* {row['OC*']:.2f}   model | truth   {prompt.caption}", np.concatenate(chosen)))
        with whole_file(self.folder / "sheet.png") as temporary:
            contact_sheet(rows, columns=2 * SHEET_FRAMES, zoom=2).save(temporary)


def _spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, SHEET_FRAMES).round().astype(int)


def _told(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _claim(file: Path, settings: Settings) -> None:
    """A folder holds clips of one model under one set of settings."""
    now = config.to_json(settings)
    if not file.exists():
        with whole_file(file) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n")
        return
    changes = config.difference(config.completed(Settings, json.loads(file.read_text())), now)
    changes.pop("model", None)  # the same weights under another path are the same
    if "story" in changes:  # that what is left open is named goes with it
        changes.pop("named", None)
    if changes:
        path, (before, after) = next(iter(changes.items()))
        again = f", or --{'story' if before else 'no-story'} as before" if path == "story" else ""
        raise UserError(f"{file.parent} holds clips of other settings ({path} was {before!r}, is {after!r}); "
                        f"choose another --out{again}")  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """The three columns of each, between the ground truth and the ground truth under wrong captions."""
    first = results[0]
    rows = [["", *TITLES.values()], [CEILING, *_cells(first.ceiling)]]
    rows += [[result.label, *_cells(result.report)] for result in results]
    rows.append([FLOOR, *_cells(first.floor)])
    about = first.report.about
    ids = ", ".join(f"{name} {hash}" for name, hash in about["instruments"].items())
    return (
        f"{aligned(rows)}\n\n{len(first.report.rows)} prompts of {about['suite']}, 95 % intervals over prompts; "
        f"after the colon 0 is the bad references, 100 the ground truth. {ids}"
    )


def _cells(report: Report) -> list[str]:
    calibrated = report.calibrated
    return [
        f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
        + (f": {calibrated[name].value:5.1f}" if name in calibrated else "")
        for name, value in report.columns.items()
    ]
