"""A folder of videos with captions -> shards of latents, and embeddings of the captions, for training.

    videos/                          out/
        boat.mp4  boat.txt               index.json                     what the shards were made from
        fox.webm  fox.txt                long/shard-00000.safetensors   as data/clips.py reads them
        captions.jsonl                   long/shard-00000.json          which files are in it, and why others are not

A caption is a text file beside its video (several lines are several captions), or a line of captions.jsonl:
{"file": "boat.mp4", "caption": "..."}. Shard i is about files number i*n ... of the sorted folder, whoever makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from causvid.atomic import all_or_nothing, whole_file
from causvid.codecs import Codec, num_pixel_frames
from causvid.errors import UserError
from causvid.media import VIDEO_CODECS, fit, read_video
from causvid.tensor_files import write_tensors
from causvid.text import TextEncoder, clean_prompt

CAPTIONS = "captions.jsonl"
INDEX = "index.json"
SUFFIXES = (*VIDEO_CODECS, ".avi")


@dataclass(frozen=True)
class PrepareConfig:
    """Defaults are those of Wan2.1's clips: 81 frames of 480p at 16 a second."""

    num_latents: int = 21
    height: int = 480
    width: int = 832
    fps: float = 16.0
    shape_slack: float = 0.1  # (CausVid) how far a video's proportions may be from the wanted ones
    clips_per_shard: int = 16
    pool: str = "long"


VISTA = PrepareConfig(height=64, width=112, fps=12.0, clips_per_shard=64)


@dataclass(frozen=True)
class Prepared:
    """What is there by now, of this rank and all others: clips, files left out for which reason, shards to come."""

    num_clips: int
    left_out: dict[str, int]
    num_missing: int = 0

    def __str__(self) -> str:
        told = f"{self.num_clips} clips"
        if self.left_out:
            told += "; left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return told + (f"; {self.num_missing} shards to come from other processes" if self.num_missing else "")


def prepare(
    cfg: PrepareConfig,
    source: Path,
    out: Path,
    load_codec: Callable[[], Codec],
    text: TextEncoder | None = None,
    *,
    codec_name: str,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_ranks: int = 1,
    on_shard: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Make this rank's missing shards. `text`, where it keeps a store of embeddings, is shown every caption so that
    training finds them there. A video that cannot be used is left out with its reason; nothing else stops the work.
    `codec_name` goes into the index: latents of one codec mean nothing to another. Ranks need not know each other."""
    captions = read_captions(source)
    files = sorted(captions)
    _claim(out, cfg, codec_name, files)
    num_shards = -(-len(files) // cfg.clips_per_shard)
    missing = [s for s in range(rank, num_shards, num_ranks) if not _report_file(out, cfg, s).exists()]
    codec = load_codec() if missing else None
    for done, shard in enumerate(missing):
        assert codec is not None
        start = shard * cfg.clips_per_shard
        chosen = files[start : start + cfg.clips_per_shard]
        _write_shard(out, cfg, shard, start, source, {name: captions[name] for name in chosen}, codec, device)
        if text is not None:
            for name in chosen:
                text(captions[name])
        if on_shard:
            on_shard(done + 1, len(missing))
    return summary(out, cfg, num_shards)


def read_captions(source: Path) -> dict[str, list[str]]:
    """File name -> its captions, for every video of the folder that has one."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give a folder of videos with captions.")
    captions: dict[str, list[str]] = {}
    listed = source / CAPTIONS
    for number, line in enumerate(listed.read_text().splitlines() if listed.is_file() else [], 1):
        try:
            entry = json.loads(line)
            captions.setdefault(entry["file"], []).append(clean_prompt(entry["caption"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f'{listed}, line {number}: write {{"file": ..., "caption": ...}} ({error}).') from None
    for video in (path for path in source.iterdir() if path.suffix.lower() in SUFFIXES):
        beside = video.with_suffix(".txt")
        if beside.is_file():
            lines = [clean_prompt(line) for line in beside.read_bytes().splitlines() if line.strip()]
            captions.setdefault(video.name, []).extend(lines)
    captions = {name: told for name, told in captions.items() if told}
    if not captions:
        raise UserError(f"{source} holds no video with a caption; put a .txt beside each, or list them in {CAPTIONS}.")
    return captions


def videos_without_caption(source: Path) -> list[str]:
    """Videos of the folder that `read_captions` passes over."""
    told = read_captions(source)
    return sorted(p.name for p in source.iterdir() if p.suffix.lower() in SUFFIXES and p.name not in told)


def summary(out: Path, cfg: PrepareConfig, num_shards: int) -> Prepared:
    reports = [json.loads(path.read_text()) for path in sorted((out / cfg.pool).glob("shard-*.json"))]
    left_out = Counter(reason for report in reports for reason in report["left out"].values())
    made = Prepared(sum(len(report["files"]) for report in reports), dict(left_out), num_shards - len(reports))
    if made.num_clips == made.num_missing == 0:
        raise UserError(
            f"none of the videos could be used: {made}; clips are {cfg.num_latents} latent frames of "
            f"{cfg.height}x{cfg.width} at {cfg.fps:g} a second; choose others that fit."
        )
    return made


def _write_shard(
    out: Path,
    cfg: PrepareConfig,
    shard: int,
    first: int,
    source: Path,
    captions: dict[str, list[str]],
    codec: Codec,
    device: torch.device | str,
) -> None:
    latents, seeds, kept, left_out = [], [], [], {}
    for number, name in enumerate(captions, first):
        try:
            frames = read_clip(cfg, source / name, codec.time_factor)
        except UnfitError as reason:
            left_out[name] = str(reason)
            continue
        video = (torch.from_numpy(frames)[None].permute(0, 1, 4, 2, 3).float() / 127.5 - 1).to(device, codec.dtype)
        with torch.no_grad():
            latents.append(codec.encode(video).to("cpu", torch.float16))
        kept.append(name)
        seeds.append(number)
    report = _report_file(out, cfg, shard)
    with all_or_nothing(report.parent) as temporary:
        if kept:  # a shard without clips is a report alone
            tensors = {"latents": torch.cat(latents), "seeds": torch.tensor(seeds)}
            told = {"captions": json.dumps([captions[name] for name in kept])}
            write_tensors(temporary(report.with_suffix(".safetensors").name), tensors, told)
        # renamed last: a shard without its report is made again
        temporary(report.name).write_text(json.dumps({"files": kept, "left out": left_out}, indent=1) + "\n")


class UnfitError(Exception):
    """Why a video cannot be used."""


def read_clip(cfg: PrepareConfig, file: Path, time_factor: int) -> np.ndarray:
    """The beginning of a video, re-timed and cropped to the clip that is wanted. uint8 [F, H, W, 3]"""
    num_frames = num_pixel_frames(cfg.num_latents, time_factor)
    if not file.is_file():
        raise UnfitError("not in the folder")
    try:
        frames = read_video(file, cfg.fps, max_seconds=(num_frames + 1) / cfg.fps)
    except UserError:
        raise UnfitError("cannot be read") from None
    if len(frames) < num_frames:
        raise UnfitError("too short")
    wanted, given = cfg.width / cfg.height, frames.shape[2] / frames.shape[1]
    if abs(given / wanted - 1) > cfg.shape_slack:
        raise UnfitError("of another shape")
    return fit(frames[:num_frames], cfg.height, cfg.width)


def _claim(out: Path, cfg: PrepareConfig, codec_name: str, files: list[str]) -> None:
    """Write the index, or check that the shards that are there are of the same files, sizes and codec."""
    digest = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    told = {"codec": codec_name, "num_files": len(files), "files": digest}
    index = {"made_from": json.loads(json.dumps(asdict(cfg))) | told}
    file = out / INDEX
    if file.exists():
        before = json.loads(file.read_text())
        changed = [key for key, value in index["made_from"].items() if before.get("made_from", {}).get(key) != value]
        if changed:
            raise UserError(f"{out} was prepared from something else ({', '.join(changed)}); choose another folder.")
        return
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")


def _report_file(out: Path, cfg: PrepareConfig, shard: int) -> Path:
    return out / cfg.pool / f"shard-{shard:05d}.json"
