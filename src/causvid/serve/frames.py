"""Frames to bytes and back: a picture behind a short JSON header, as it travels over a socket.

4 bytes, big-endian: length of the header | the header, JSON in UTF-8 | the picture (JPEG; from clients also PNG, WebP)
"""

from __future__ import annotations

import io
import json
import struct
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from causvid.errors import UserError

MAX_HEADER = 4096


def pack(header: dict[str, Any], body: bytes) -> bytes:
    about = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack(">I", len(about)) + about + body


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    if len(message) < 4:
        raise UserError("a binary message begins with the length of its header in four bytes")
    (length,) = struct.unpack(">I", message[:4])
    if length > MAX_HEADER or 4 + length > len(message):
        raise UserError(f"the header of a binary message has at most {MAX_HEADER} bytes and lies within the message")
    try:
        header = json.loads(message[4 : 4 + length])
    except (ValueError, RecursionError):
        raise UserError("the header of a binary message is JSON in UTF-8") from None
    if not isinstance(header, dict):
        raise UserError("the header of a binary message is a JSON object")
    return header, message[4 + length :]


def jpeg(frame: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    # small pictures are shown enlarged: full colour resolution costs little and keeps their edges clean
    Image.fromarray(frame).save(out, "jpeg", quality=quality, subsampling=0 if frame.shape[1] < 256 else 2)
    return out.getvalue()


def digest(frames: np.ndarray) -> str:
    """Tells whether two chunks show the same, to the last bit."""
    return blake2b(np.ascontiguousarray(frames).data, digest_size=8).hexdigest()
