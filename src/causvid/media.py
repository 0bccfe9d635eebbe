"""Pictures and videos in and out of files. A file appears whole under its name or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from causvid.atomic import whole_file
from causvid.errors import UserError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

VIDEO_CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
CODEC_OPTIONS = {
    "libx264": {"crf": "18"},
    "libvpx-vp9": {"crf": "28", "b": "0", "deadline": "realtime", "cpu-used": "6"},
}
MOVIE_SUFFIXES = (*VIDEO_CODECS, ".gif")
SHEET_SUFFIXES = (".png", ".jpg", ".webp")
SENT_OPTIONS = {  # for a video from outside: formats such as playlists make FFmpeg open files of this machine
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg",
    "protocol_whitelist": "none",
}
MAX_PIXELS = 50_000_000  # of a picture from outside, before it is decoded
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # what is read; others may start programs, as EPS does
TIME_SLACK = 1e-3  # seconds that a time stamp may be off through rounding


class _Tried(Exception):
    """Ends a rehearsal of writing."""


def check_folder(path: Path) -> None:
    """Refuse a file where a folder is to be written."""
    if any(place.exists() and not place.is_dir() for place in (path, *path.parents)):
        raise UserError(f"{path} is a file or in one; name a folder")


def check_output(path: Path, allowed: Iterable[str] = (*MOVIE_SUFFIXES, *SHEET_SUFFIXES)) -> None:
    """Refuse a hopeless output before hours of work go into it."""
    allowed = tuple(allowed)
    if path.suffix.lower() not in allowed:
        raise UserError(f"cannot tell what to write from '{path.name}'; end it in one of {' '.join(allowed)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"cannot write {path}: it is write-protected; choose another place with -o")
    with contextlib.suppress(_Tried), whole_file(path):
        raise _Tried


class VideoWriter:
    """Frames into a movie file as they come. Use as a context manager; what was written before an interruption stays
    playable: leaving through KeyboardInterrupt finishes the file."""

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.fps = Path(path), fps
        self.num_frames = 0
        self._suffix = self.path.suffix.lower()
        if self._suffix not in MOVIE_SUFFIXES:
            raise UserError(f"cannot write a movie to '{self.path.name}'; end it in one of {' '.join(MOVIE_SUFFIXES)}")
        self._stack = contextlib.ExitStack()
        self._pictures: list[Image.Image] = []

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(whole_file(self.path))
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        return self

    def write(self, frames: np.ndarray) -> None:
        """uint8 [F, H, W, 3]"""
        self.num_frames += len(frames)
        if self._suffix == ".gif":
            self._pictures += [Image.fromarray(frame) for frame in frames]
            return
        import av

        if self._container is None:
            from fractions import Fraction

            self._container = av.open(str(self._temporary), "w")
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = cast("VideoStream", self._container.add_stream(VIDEO_CODECS[self._suffix], rate=rate))
            # players expect 4:2:0 with even sides; small pictures are doubled so that colour edges survive it
            self._scale = 4 if frames.shape[2] < 256 else 1
            self._stream.height = frames.shape[1] * self._scale // 2 * 2
            self._stream.width = frames.shape[2] * self._scale // 2 * 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = dict(CODEC_OPTIONS[VIDEO_CODECS[self._suffix]])
        assert self._stream is not None
        for frame in frames:
            size = (self._stream.width, self._stream.height)
            picture = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
            for packet in self._stream.encode(av.VideoFrame.from_image(picture)):
                self._container.mux(packet)

    def __exit__(self, kind, error, traceback) -> bool | None:
        interrupted = kind is KeyboardInterrupt and self.num_frames > 0
        if kind is None or interrupted:
            self._finish()
            self._stack.close()
            return None
        if self._container is not None:
            self._container.close()
        return self._stack.__exit__(kind, error, traceback)

    def _finish(self) -> None:
        if self._suffix == ".gif":
            if not self._pictures:
                raise UserError(f"there are no frames to write to {self.path}")
            first, *rest = self._pictures
            ends = [round(100 * end / self.fps) for end in range(len(self._pictures) + 1)]  # GIFs count in 1/100 s
            times = [10 * (end - start) for start, end in pairwise(ends)]
            first.save(self._temporary, save_all=True, append_images=rest, duration=times, loop=0)
            return
        if self._container is None:
            raise UserError(f"there are no frames to write to {self.path}")
        assert self._stream is not None
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Frames uint8 [F, H, W, 3] to .mp4, .mov, .mkv, .webm, .gif, or a contact sheet (.png, .jpg, .webp)."""
    path = Path(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise UserError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if path.suffix.lower() in SHEET_SUFFIXES:
        with whole_file(path) as temporary:
            contact_sheet(frames, fps).save(temporary)
        return path
    with VideoWriter(path, fps) as writer:
        writer.write(frames)
    return path


def contact_sheet(frames: np.ndarray, fps: float, columns: int = 6, max_pictures: int = 24) -> Image.Image:
    """A clip at a glance: evenly spaced frames in rows, the time under each."""
    from PIL import ImageDraw

    chosen = np.unique(np.linspace(0, len(frames) - 1, min(max_pictures, len(frames))).round().astype(int))
    scale = max(1, 192 // frames.shape[2])
    width, height, gap, label = frames.shape[2] * scale, frames.shape[1] * scale, 4, 14
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + label) + gap), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        x, y = gap + place % columns * (width + gap), gap + place // columns * (height + gap + label)
        sheet.paste(Image.fromarray(frames[index]).resize((width, height), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + 2, y + height + 1), f"{index / fps:.2f} s", fill=(200, 200, 205))
    return sheet


def read_image(source: str | Path | BytesIO) -> np.ndarray:
    """uint8 [H, W, 3], the right way up, on white where it is transparent. From a file, or from bytes in memory."""
    name = _name_of(source)
    try:
        with Image.open(source, formats=PICTURES) as picture:
            _check_size(picture.width, picture.height, name)
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")):
                return _from_deep(np.asarray(upright), name)
            if upright.has_transparency_data:
                opaque = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
            return np.asarray(upright.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is not a picture that can be read ({error})") from None


def read_video(
    source: str | Path | BytesIO, fps: float, *, max_seconds: float | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """uint8 [F, H, W, 3], re-timed to `fps` by taking the frame that is on screen at each instant. With `size`, cropped
    and resized to (height, width) while reading, which keeps a long video of large pictures out of memory."""
    import av

    name = _name_of(source)
    limit = None if max_seconds is None else max(1, round(max_seconds * fps))
    frames: list[np.ndarray] = []
    shown, begin, end = None, 0.0, 0.0
    try:
        file, options = (source, SENT_OPTIONS) if isinstance(source, BytesIO) else (str(source), {})
        with av.open(file, "r", options=options) as container:
            if not container.streams.video:
                raise UserError(f"{name} holds no video")
            for frame in container.decode(video=0):
                _check_size(frame.width, frame.height, name)
                if shown is None:
                    begin = frame.time or 0.0
                time = (frame.time or 0.0) - begin
                while shown is not None and len(frames) / fps < time - TIME_SLACK and len(frames) != limit:
                    frames.append(shown)
                if len(frames) == limit:
                    break
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # phones turn so
                shown = picture if size is None else fit(picture, *size)
                end = time + (
                    float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / fps
                )
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is not a video that can be read ({str(error).splitlines()[0]})") from None
    if shown is None:
        raise UserError(f"{name} holds no frames")
    while (len(frames) / fps < end - TIME_SLACK or not frames) and len(frames) != limit:
        frames.append(shown)
    if any(frame.shape != frames[0].shape for frame in frames):
        raise UserError(f"{name} changes the size of its pictures on the way; convert it to one size")
    return np.stack(frames)


def _from_deep(gray: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W, 3] of 16 bits per pixel."""
    if gray.dtype.kind == "f" or gray.min() < 0 or gray.max() > 0xFFFF:
        raise UserError(f"{name} has pixels that are not of 8 or 16 bits; save it with 8 bits per channel")
    return np.repeat(np.round(gray[..., None] / 257).astype(np.uint8), 3, axis=-1)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} has pictures of {width}x{height}; shrink them to at most {MAX_PIXELS // 10**6} megapixels"
        )


def _name_of(source: str | Path | BytesIO) -> str:
    """What to call it in a message."""
    if not isinstance(source, str | Path):
        return "what was sent"
    if not Path(source).is_file():
        raise UserError(f"there is no file {source}")
    return str(source)


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop the middle to the wanted shape, then resize. [F, H, W, 3] or [H, W, 3]."""
    if frames.ndim == 3:
        return fit(frames[None], height, width)[0]
    source_height, source_width = frames.shape[1:3]
    scale = min(source_height / height, source_width / width)
    crop_h, crop_w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (source_height - crop_h) // 2, (source_width - crop_w) // 2
    cropped = frames[:, top : top + crop_h, left : left + crop_w]
    if (crop_h, crop_w) == (height, width):
        return cropped
    resized = [Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS) for f in cropped]
    return np.stack([np.asarray(picture) for picture in resized])
