"""Does a running stream obey? Read by the reporting judge, between what rendering does (ceiling) and what nothing does.

    python scripts/studio_report.py [--scenes 24] [--model vista] [--recipe framewise]

switches: half a second at a time after a new prompt, is the new attribute there? Share of streams within 2 seconds.
restyling: rendered clips and their sketches followed under a prompt with another light: is the light obeyed, is the
structure of the source kept, and how far is the exact target?
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track

import causvid
from causvid.evaluate.judges import Judge, load_judge
from causvid.session import Session
from causvid.threads import choose_threads
from causvid.worlds.vista import render, sample_scene
from causvid.worlds.vista.captions import caption_at
from causvid.worlds.vista.controls import relight, sketch
from causvid.worlds.vista.sampling import successors
from causvid.worlds.vista.scene import Event, Scene

FPS, BEFORE, AFTER = 12, 72, 48  # frames; a switch after six seconds, watched for four
HALF = FPS // 2
console = Console(stderr=True)


def scenes(count: int) -> list[Scene]:
    """Scenes of the validation split, without events or second entities, whose light, weather or colour can change."""
    return [replace(sample_scene(seed, "val"), events=(), second=None) for seed in range(count)]


def make(session: Session, num_frames: int) -> np.ndarray:
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_frames:
        parts.append(session.next_chunk().frames)
    return np.concatenate(parts)[:num_frames]


def first_obeyed(judge: Judge, frames: np.ndarray, kind: str, target: str) -> float | None:
    """Seconds until half a second of frames is read as the target, or None."""
    for start in range(0, len(frames) - HALF + 1, FPS // 4):
        if judge.read(frames[start : start + HALF]).answer(kind) == target:
            return (start + HALF) / FPS
    return None


def report_switches(model: causvid.Model, judge: Judge, count: int) -> None:
    waits: dict[str, list[float | None]] = {}
    for number, scene in enumerate(track(scenes(count), "switches", console=console)):
        kind = ("light", "weather", "colour")[number % 3]
        target = successors(scene, kind)[0]
        old = caption_at(scene, 0.0, number)
        new = caption_at(replace(scene, **{kind: target}), 0.0, number)
        for mode in ("keep", "recache", "flush", "none"):
            session = model.session(old, seed=number)
            made = 0
            while made < BEFORE:
                made += len(session.next_chunk().frames)
            if mode != "none":
                session.set_prompt(new, mode)
            waits.setdefault(mode, []).append(first_obeyed(judge, make(session, AFTER), kind, target))
        truth, _ = render(replace(scene, events=(Event(BEFORE / FPS, kind, target),)), BEFORE + AFTER)
        waits.setdefault("rendered", []).append(first_obeyed(judge, truth[BEFORE:], kind, target))
    print("| after the switch | read within 1 s | within 2 s | within 4 s |\n|---|---|---|---|")
    for mode, seconds in waits.items():
        shares = [np.mean([s is not None and s <= limit for s in seconds]) for limit in (1, 2, 4)]
        print(f"| {mode} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(float) - b).mean())))


def edges_of(frames: np.ndarray) -> np.ndarray:
    """How dark the lines of a sketch are, blurred a little: structure without colour."""
    lines = 255 - sketch(frames).mean(-1)
    return lines[:, :-1, :-1] + lines[:, 1:, :-1] + lines[:, :-1, 1:] + lines[:, 1:, 1:]


def structure(frames: np.ndarray, source: np.ndarray) -> float:
    """Correlation of edges with those of the source."""
    return float(np.corrcoef(edges_of(frames).ravel(), edges_of(source).ravel())[0, 1])


def restyled(
    model: causvid.Model, prompt: str, source: np.ndarray, strength: float | str, of: str | None, seed: int
) -> np.ndarray:
    session = model.session(prompt, seed=seed)
    session.restyle(strength, of=of)
    session.push(source)
    parts = []
    while session.can_step:
        parts.append(session.next_chunk().frames)
    return np.concatenate(parts)


def tried(name: str, shown: str) -> list[tuple[str, str | None, float | str]]:
    """(how, what the source is said to show, strength): sketches are drawn anew, clips edited as well."""
    anew: list[tuple[str, str | None, float | str]] = [("drawn anew", None, level) for level in (0.6, 0.75, 0.9)]
    if name == "sketch":
        return anew
    levels = (0.75, 0.9, 0.95, 1.0, "motion")
    return [*anew, *(("told", shown, level) for level in levels), *(("not told", "", level) for level in (0.95, 1.0))]


def report_restyling(model: causvid.Model, judge: Judge, count: int) -> None:
    rows: dict[tuple[str, str, float | str], list[tuple[float, float, float]]] = {}
    for number, scene in enumerate(track(scenes(count), "restyling", console=console)):
        light = successors(scene, "light")[0]
        goal = relight(scene, light=light)
        source, target = (render(s, 81)[0] for s in (scene, goal))
        prompt, shown = caption_at(goal, 0.0, number), caption_at(scene, 0.0, number)
        for name, given in (("clip", source), ("sketch", sketch(source))):
            for how, of, strength in tried(name, shown):
                made = restyled(model, prompt, given, strength, of, number)
                size = len(made)
                scores = (
                    float(judge.read(made).answer("light") == light),
                    structure(made, source[:size]),
                    psnr(made, target[:size]),
                )
                rows.setdefault((name, how, strength), []).append(scores)
        for name, frames in (("the source itself", source), ("the exact target", target)):
            score = float(judge.read(frames).answer("light") == light), structure(frames, source), psnr(frames, target)
            rows.setdefault((name, "–", "–"), []).append(score)
    columns = ("followed", "how", "strength", "light obeyed", "structure kept", "PSNR to the target")
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for (name, how, strength), scores in rows.items():
        obeyed, kept, near = np.mean(scores, axis=0)
        print(f"| {name} | {how} | {strength} | {obeyed:.2f} | {kept:.2f} | {min(near, 99):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--model", default="vista")
    parser.add_argument("--recipe", help="how its student is run")
    options = parser.parse_args()
    choose_threads()
    model, judge = causvid.load(options.model, recipe=options.recipe), load_judge("report")
    report_switches(model, judge, options.scenes)
    report_restyling(model, judge, options.scenes)


if __name__ == "__main__":
    main()
