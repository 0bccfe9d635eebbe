"""The how-to pages do what they say: their Python runs, on the tiny model."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import causvid
from causvid import media
from conftest import random_model

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/how-to"


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(PAGES / f"{name}.md" for name in ("prompts", "image", "video", "takes"))],
    ids=lambda page: page.stem,
)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    frames = np.random.default_rng(0).integers(0, 256, (40, 24, 40, 3), dtype=np.uint8)
    Image.fromarray(frames[0]).save(tmp_path / "car.png")
    media.write_video(tmp_path / "clip.mp4", frames, 12)
    monkeypatch.chdir(tmp_path)
    ways = {None: {}, "framewise": {"chunk": 1}}
    monkeypatch.setattr(causvid, "load", lambda name, recipe=None: random_model(**ways[recipe]))
    names: dict = {}
    for block in blocks:  # one after the other, as a reader would
        exec(compile(block, page.name, "exec"), names)


def test_the_protocol_page_names_every_message():
    from causvid.serve.viewer import MESSAGES

    page = (PAGES / "serve.md").read_text()
    assert all(f"`{message}`" in page for message in MESSAGES)
