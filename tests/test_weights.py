"""What is shipped: whole, described, and no larger than was promised."""

import hashlib
import re
from pathlib import Path

import pytest

import causvid

VISTA = Path(causvid.__file__).parent / "weights" / "vista"
CARDS = {"guide": "teacher", "text": "teacher"}  # described together with another one


def test_weights_are_those_of_their_checksums():
    lines = (VISTA / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split()) for line in lines)
    assert {*sums} == {file.name for file in VISTA.glob("*.safetensors")}
    for name, told in sums.items():
        assert hashlib.sha256((VISTA / name).read_bytes()).hexdigest() == told, name


def test_weights_fit_in_a_wheel():
    assert sum(file.stat().st_size for file in VISTA.iterdir()) <= 60e6


@pytest.mark.parametrize("name", [file.stem for file in VISTA.glob("*.safetensors")])
def test_weights_have_a_card(name):
    """Of data, recipe and commit."""
    card = (VISTA / f"{CARDS.get(name, name)}.md").read_text()
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", card, re.MULTILINE))
    assert rows.keys() & {"data", "recipe", "initialisation"}
    assert re.search(r"`[0-9a-f]{7}`", rows["commit"]), name
