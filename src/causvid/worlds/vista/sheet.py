"""Vista for people: contact sheets with captions above the pictures, and a folder of clips to look through."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from causvid.errors import UserError
from causvid.worlds.vista.captions import caption, caption_at
from causvid.worlds.vista.controls import relight, sketch
from causvid.worlds.vista.render import render
from causvid.worlds.vista.sampling import SPLITS, sample_scene
from causvid.worlds.vista.scene import LIGHTS, WEATHERS, Scene
from causvid.worlds.vista.streams import Stream

FPS = 12
KINDS = ("clips", "sketch", "relight", "controls")
_BACKGROUND, _INK, _LINE = (18, 19, 23), (232, 232, 228), 26


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: int = 4, zoom: int | None = None) -> Image.Image:
    """One row of evenly spaced frames per (caption, frames uint8 [F, H, W, 3]), its caption above it."""
    height, width = rows[0][1].shape[1:3]
    zoom = zoom or max(1, round(224 / width))
    cell = (width * zoom, height * zoom)
    wide, tall = columns * (cell[0] + 3) + 3, cell[1] + _LINE + 3
    sheet = Image.new("RGB", (wide, tall * len(rows) + 3), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (text, frames) in enumerate(rows):
        draw.text((6, row * tall + 6), _shortened(text, draw, font, wide - 12), fill=_INK, font=font)
        chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        for column, index in enumerate(chosen):
            picture = Image.fromarray(frames[index]).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(picture, (3 + column * (cell[0] + 3), row * tall + _LINE + 3))
    return sheet


def _shortened(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: int
) -> str:
    """The text as far as it fits on a line."""
    if draw.textlength(text, font) <= room:
        return text
    while draw.textlength(text + " ...", font) > room:
        text = text.rsplit(" ", 1)[0]
    return text + " ..."


def write_world(
    out: Path,
    num_clips: int = 9,
    seed: int = 0,
    split: str = "train",
    size: str = "64x112",
    num_frames: int = 81,
    kind: str = "clips",
) -> str:
    """Write clips (animated WebP), scenes and captions (clips.jsonl) and sheet.png; says what was written.

    kind "sketch": each clip is followed by its sketch; "relight": by the same clip under another light and weather;
    "controls": by both.
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if num_clips < 1:
        raise UserError(f"{num_clips} clips are nothing to look at: ask for one or more.")
    height, width = _parse_size(size)
    out.mkdir(parents=True, exist_ok=True)
    rows, records = [], []
    for number in range(seed, seed + num_clips):
        scene = sample_scene(number, split)
        frames = render(scene, num_frames, height, width, FPS)[0]
        text = _text(scene, number, split, num_frames / FPS)
        name = f"{split}-{number:05d}.webp"
        write_movie(out / name, frames)
        rows.append((text, frames))
        records.append({"file": name, "caption": text, "scene": json.loads(scene.to_json())})
        for control, told, target in _controls(scene, frames, number, kind):
            write_movie(out / f"{split}-{number:05d}-{control}.webp", target)
            rows.append((told, target))
    with (out / "clips.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    contact_sheet(rows, 8 if split == "timeline" else 4).save(out / "sheet.png")
    return f"{num_clips} clips of {num_frames} frames, clips.jsonl and sheet.png are in {out}"


def _text(scene: Scene, seed: int, split: str, seconds: float) -> str:
    if split != "timeline":
        return caption(scene, seed, split)
    later = [f"{event.target} ({event.time:.0f} s)" for event in scene.events if event.time < seconds]
    return " > ".join([caption_at(scene, 0.0, seed), *later])


def _controls(scene: Scene, frames: np.ndarray, seed: int, kind: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, what it is, frames)"""
    if kind in ("sketch", "controls"):
        yield "sketch", "its sketch", sketch(frames)
    if kind in ("relight", "controls"):
        stream = Stream(seed, "controls")
        light = stream.pick([name for name in LIGHTS if name != scene.light])
        weather = stream.pick([name for name in WEATHERS if name != scene.weather])
        target = render(relight(scene, light, weather), len(frames), frames.shape[1], frames.shape[2], FPS)[0]
        yield "relight", f"the exact target for {light}, {weather}", target


def write_movie(path: Path, frames: np.ndarray, fps: float = FPS) -> None:
    """An animated WebP: plays in any browser, and needs no video library."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=85, method=2)


def _parse_size(size: str) -> tuple[int, int]:
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"size {size!r} is not HEIGHTxWIDTH: write it like 64x112.")
    return int(parts[0]), int(parts[1])
