"""What a person would see: the reporting judge reads the page's canvas before and after a prompt is changed."""

import base64

import numpy as np
import pytest

from browser import CHROMIUM, browser
from causvid.evaluate.judges import load_judge
from live_server import running
from painter import SCENE, painter

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

STREAM = "studio.panes[0].stream"
# the next pictures that are drawn, as small as they came, in order
LOOK = """new Promise((done) => {
  const small = new OffscreenCanvas(112, 64).getContext('2d', {willReadFrequently: true}), seen = [];
  small.imageSmoothingQuality = 'high';
  const stream = studio.panes[0].stream;
  const look = () => {
    small.drawImage(studio.panes[0].canvas, 0, 0, 112, 64);
    seen.push(small.getImageData(0, 0, 112, 64).data);
    if (seen.length < COUNT) return;
    stream.removeEventListener('drawn', look);
    let text = '';
    for (const picture of seen) for (const byte of picture) text += String.fromCharCode(byte);
    done(btoa(text));
  };
  stream.addEventListener('drawn', look);
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with running(painter()) as server, browser(tmp_path_factory.mktemp("browser")) as page:
        page.open(server.url, 960, 640)
        page.wait("window.studio && studio.panes[0].stream.socket.readyState === 1")
        # on the page, and not from here: a busy machine may take a second from a key to the question what was shown
        page.run(f"addEventListener('keydown', () => {{ window.shownWhenAsked = {STREAM}.shown.chunk }}, true)")
        yield page
        assert not page.problems


@pytest.fixture(scope="module")
def judge():
    return load_judge("report")


def look(page, count=15):
    pixels = np.frombuffer(base64.b64decode(page.run(LOOK.replace("COUNT", str(count)))), np.uint8)
    return pixels.reshape(count, 64, 112, 4)[..., :3].copy()


def ask(page, prompt):
    page.click("#prompt")
    page.run("document.querySelector('#prompt').select()")
    page.type(prompt)
    page.press("Enter", text="\r")


def wait_until_shown(page, prompt, seconds=20):
    page.wait(f"{STREAM}.chunks[{STREAM}.shown.chunk]?.prompt === {prompt!r}", seconds)


def wait_until_obeyed(page, prompt):
    """In chunks, not seconds: what is on the screen is finished, and at most one is made ahead; on a machine so busy
    that the page cannot keep up, a chunk and a half is under way besides and another one may wait to be sent."""
    shown = page.run("window.shownWhenAsked")
    keeps_up = page.run(f"{STREAM}.framesPerSecond") > 11
    wait_until_shown(page, prompt)
    first = page.run(f"{STREAM}.chunks.findIndex(c => c.prompt === {prompt!r})")
    assert first <= shown + (2 if keeps_up else 5)


def test_a_judge_sees_on_the_canvas_what_was_asked_for(page, judge):
    day = "a red car drives through the city during the day"
    ask(page, day)
    wait_until_shown(page, day)
    seen = judge.read(look(page))
    assert [seen.answer(name) for name in ("light", "weather", "biome", "hero")] == ["day", "clear", "city", "car"]
    assert seen.answer("colour") == SCENE.colour

    # one key: night
    page.run("document.activeElement.blur()")
    page.press("n")
    night = page.run(f"{STREAM}.waitingFor.prompt")
    assert "night" in night and "day" not in night
    wait_until_obeyed(page, night)
    seen = judge.read(look(page))
    assert (seen.answer("light"), seen.answer("weather")) == ("night", "clear")

    # typed, in words that no caption has: the page says how they are read, and the stream obeys
    snow = "a blue auto drives through the town at daybreak, in snowfall"
    ask(page, snow)
    assert "snowfall is read as falling snow" in page.run(
        "document.querySelector('#prompt-note').textContent.toLowerCase()"
    )
    wait_until_obeyed(page, snow)
    seen = judge.read(look(page))
    answers = [seen.answer(name) for name in ("light", "weather", "colour", "hero")]
    assert answers == ["dawn", "snow", "blue", "car"]

    # back to before the switch: the old picture again
    page.run("document.activeElement.blur()")
    first = page.run(f"{STREAM}.chunks.findIndex(c => c.prompt === {night!r})")
    page.run(f"studio.panes[0].rewind({first})")
    wait_until_shown(page, day)
    seen = judge.read(look(page))
    assert (seen.answer("light"), seen.answer("weather"), seen.answer("colour")) == ("day", "clear", "red")


def test_what_comes_later_comes_later_and_a_key_changes_what_is_told_now(page, judge):
    told = "a green car drives through the city at noon, then night falls"
    night = "a green car drives through the city at night"
    ask(page, told)
    wait_until_shown(page, told)
    assert f"then '{night}'" in page.run("document.querySelector('#toast').textContent")
    wait_until_shown(page, night)
    assert page.run(f"{STREAM}.chunks.filter(c => c.prompt === {told!r}).length") in (2, 3)
    first = page.run(f"{STREAM}.chunks.findIndex(c => c.prompt === {night!r})")
    page.wait(f"{STREAM}.shown.chunk > {first}")  # it takes over in two chunks
    seen = judge.read(look(page))
    assert (seen.answer("light"), seen.answer("colour")) == ("night", "green")

    page.wait(f"{STREAM}.state.prompt === {night!r} && {STREAM}.state.asked === {told!r}")
    page.run("document.activeElement.blur()")
    page.press("f")
    fog = page.run(f"{STREAM}.waitingFor.prompt")
    assert fog.startswith(night) and "then" not in fog
    wait_until_shown(page, fog)
    seen = judge.read(look(page))
    assert (seen.answer("light"), seen.answer("weather")) == ("night", "fog")
