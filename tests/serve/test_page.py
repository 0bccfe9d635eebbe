"""The page itself, in a real browser, against a real server with the tiny model."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, browser
from causvid import media
from causvid.serve.frames import digest
from conftest import random_model
from live_server import running

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture
def server():
    """Of every test its own: what pages leave behind is kept for a while, and fills a server."""
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(shared_browser, server):
    """A page that was never used: with its own server it has its own origin, and remembers nothing."""
    page = shared_browser
    page.problems.clear()
    page.open(server.url, 960, 640)
    page.wait("window.studio && studio.panes[0].stream.socket.readyState === 1")
    yield page
    problems = list(page.problems)
    page.open("about:blank")  # before the server ends, which it would report
    assert not problems


def start(page, prompt, seed=3):
    page.run(f"document.querySelector('#seed').value = {seed}")
    page.run("document.querySelector('#pace').value = '2'")
    page.click("#prompt")
    page.run("document.querySelector('#prompt').select()")
    page.type(prompt)
    page.press("Enter", text="\r")
    page.wait("studio.panes[0].stream.shown.chunk >= 2")


STREAM = "studio.panes[0].stream"
CHECKSUM = """(() => {const c = studio.panes[0].canvas; const d = c.getContext('2d')
  .getImageData(0, 0, c.width, c.height).data; return d.reduce((sum, x, i) => (sum + x * (i % 251)) % 1000003, 0)})()"""


def test_prompts_time_travel_and_takes(page, server):
    start(page, "a red car")
    first = page.run(CHECKSUM)
    page.wait(f"{CHECKSUM} !== {first}")
    assert page.run("studio.panes[0].canvas.width") > 400, "pictures are enlarged"
    page.click("input[value=flush] + span")
    page.click("#prompt")
    page.run("document.querySelector('#prompt').select()")
    page.type("a blue bus")
    page.press("Enter", text="\r")
    page.wait(f"{STREAM}.chunks.some(c => c.prompt === 'a blue bus')")
    page.wait("document.querySelector('.caption').textContent === 'a blue bus'")
    page.wait("document.querySelectorAll('.track .segment').length === 2")
    page.click("#play")
    page.wait(f"!{STREAM}.state.playing")

    # the very same frames as a session without any server
    digests = page.run(f"{STREAM}.chunks.map(c => c.digest)")
    session = random_model().session("a red car", seed=3)
    switch = page.run(f"{STREAM}.chunks.map(c => c.prompt)").index("a blue bus")
    for index, seen in enumerate(digests):
        if index == switch:
            session.set_prompt("a blue bus", "flush")
        assert digest(session.next_chunk().frames) == seen

    # save; rewind, fork: both go on as before
    size = page.run(
        f"fetch('/api/sessions/' + {STREAM}.session + '/take').then(a => a.arrayBuffer()).then(b => b.byteLength)"
    )
    assert size > 1000
    page.run("document.activeElement.blur()")
    keep = max(1, switch - 1)
    page.run(f"studio.panes[0].rewind({keep})")
    page.wait(f"{STREAM}.chunks.length === {keep}")
    page.click("#fork")
    page.wait("studio.panes.length === 2 && studio.panes[1].stream.state")
    page.press(" ")
    page.wait(f"studio.panes[1].stream.chunks.length > {keep + 1}")
    page.run("studio.panes[1].stream.send('pause')")
    page.click(".pane canvas")
    page.click("#play")
    page.wait(f"{STREAM}.chunks.length > {keep + 1}")
    page.click("#play")
    page.wait(f"!{STREAM}.state.playing")
    ours, theirs = (page.run(f"studio.panes[{i}].stream.chunks.map(c => c.digest)") for i in (0, 1))
    assert ours[keep] == theirs[keep] is not None, "the fork goes on as its parent does"
    page.click(".pane + .pane .close")
    page.wait("studio.panes.length === 1")

    # reload: the session is still there, and a replay shows the same
    page.call("Page.reload")
    page.wait("window.studio && studio.panes[0].stream.state")
    assert page.run(f"{STREAM}.state.chunks") >= len(ours)
    page.click("#replay")
    page.wait(f"{STREAM}.replayed.filter(Boolean).length >= {len(ours)}")
    assert page.run(f"{STREAM}.replayed")[: len(ours)] == [*digests[:keep], *ours[keep:]]


def test_what_is_asked_while_the_connection_is_lost_is_done_once_it_is_back(page):
    start(page, "a red car")
    page.run(f"{STREAM}.socket.close(), {STREAM}.setPrompt('a blue bus', 'keep', 0)")
    page.wait(f"{STREAM}.state.prompt === 'a blue bus' && {STREAM}.state.playing")
    page.wait(f"{STREAM}.chunks.at(-1)?.prompt === 'a blue bus'")


@contextmanager
def taken_elsewhere(page, server):
    """Another window that shows this page's session."""
    with server.client(page.run(f"{STREAM}.session")) as other:
        other.wait_for("state")
        page.wait("document.querySelector('#status-text').textContent === 'in another window'")
        yield other


def test_a_stream_that_another_window_took_is_taken_back(page, server):
    start(page, "a red car")
    session = page.run(f"{STREAM}.session")
    with taken_elsewhere(page, server) as other:
        assert page.run("document.querySelector('#play').ariaLabel") == "Play"
        made = page.run(f"{STREAM}.chunks.length")
        page.click("#play")
        other.wait_for("replaced")
        page.wait(f"{STREAM}.state.playing && {STREAM}.chunks.length > {made + 2}")
        assert page.run("document.querySelector('#status-text').textContent") == "live"
    with taken_elsewhere(page, server):
        pass
    page.run("document.querySelector('#prompt').value = 'a blue bus'")
    page.click("#send")
    page.wait(f"{STREAM}.session === '{session}' && {STREAM}.chunks.at(-1)?.prompt === 'a blue bus'")


def test_a_window_does_not_end_what_another_one_shows(page, server):
    start(page, "a red car")
    session = page.run(f"{STREAM}.session")
    with taken_elsewhere(page, server) as other:
        page.click("#restart")
        page.wait(f"{STREAM}.state.playing && {STREAM}.session !== '{session}'")
        other.send("state")
        assert other.wait_for("state")["session"] == session


def pause(page):
    """Returns how many chunks there are then: the one that was being made still comes."""
    page.click("#play")
    counts = [-1]
    while len(counts) < 2 or counts[-1] != counts[-2]:
        asked = f"{STREAM}.send('state'), {STREAM}.state"  # what was told with the pause may not count that one
        page.wait(f"({asked}.chunks) === {STREAM}.chunks.length && !{STREAM}.state.playing")
        counts.append(page.run(f"{STREAM}.chunks.length"))
        time.sleep(0.5)
    return counts[-1]


def test_going_back_in_a_replay_takes_nothing_away(page):
    start(page, "a red car")
    pause(page)
    page.click("#play")
    page.wait(f"{STREAM}.state.playing && {STREAM}.chunks.length >= 6")  # there may be that many already
    made = pause(page)
    page.run("document.activeElement.blur()")
    page.press("p")
    page.wait(f"{STREAM}.replaying && {STREAM}.shown.chunk >= 1 && {STREAM}.shown.chunk < {made}")
    generation = page.run(f"{STREAM}.generation")
    page.press("ArrowLeft")
    page.wait(f"{STREAM}.generation > {generation} && {STREAM}.replaying && {STREAM}.replayed.length >= 1")
    page.press(" ")
    page.wait(f"!{STREAM}.replaying && !document.querySelector('.tag')")
    assert page.run(f"{STREAM}.state.chunks") == page.run(f"{STREAM}.chunks.length") == made
    page.press("ArrowLeft")  # and now it is the stream that loses its last chunk, not all from where the replay was
    page.wait(f"{STREAM}.chunks.length === {made - 1}")


def test_a_closed_dialog_does_nothing_and_the_last_pane_leaves_an_empty_one(page, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (14, 24, 40, 3), dtype=np.uint8)
    media.write_video(tmp_path / "a.mp4", clip, 12)
    start(page, "a red car")
    page.run("document.querySelector('#video-choice').returnValue = 'extend'")  # as an earlier choice leaves it
    page.choose_file("#video-file", tmp_path / "a.mp4")
    page.wait("document.querySelector('#video-choice').open")
    page.press("Escape", code="Escape", windowsVirtualKeyCode=27)
    page.wait("!document.querySelector('#video-choice').open")
    made = page.run(f"{STREAM}.chunks.length")
    page.wait(f"{STREAM}.chunks.length > {made + 1}")
    assert not page.run(f"{STREAM}.chunks.some(c => c.kind === 'given')")
    page.run("studio.panes[0].close()")
    page.wait("studio.panes.length === 1 && studio.panes[0].stream.socket.readyState === 1")
    start(page, "a blue bus")


def test_the_timeline_goes_back_by_keys_and_by_two_taps(page):
    start(page, "a red car")
    page.wait(f"{STREAM}.chunks.length > 4")
    made = pause(page)
    page.wait(f"document.querySelector('.track').ariaValueMax === '{made}'")  # drawn, not only known
    page.run("document.querySelector('.track').focus()")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        page.press(key)
    assert page.run("document.querySelector('.track').ariaValueNow") == str(made - 1)
    page.press("Escape")
    page.press("ArrowLeft")
    assert page.run(f"{STREAM}.chunks.length") == made, "nothing happens before Enter"
    page.press("Enter")
    page.wait(f"{STREAM}.chunks.length === {made - 1} && {STREAM}.state.chunks === {made - 1}")
    tap = """(() => { const t = document.querySelector('.track'); const { left } = t.getBoundingClientRect();
      t.dispatchEvent(new PointerEvent('click', { pointerType: 'touch', clientX: left + 2, bubbles: true })) })()"""
    page.run(tap)
    assert "tap again" in page.run("document.querySelector('.what').textContent")
    page.run(tap)
    page.wait(f"{STREAM}.chunks.length === 0")


def test_a_page_that_draws_slowly_leaves_pictures_out(page):
    start(page, "a red car")
    slow = "() => { const end = performance.now() + 80; while (performance.now() < end); }"
    page.run(f"{STREAM}.addEventListener('drawn', {slow})")
    made = page.run(f"{STREAM}.chunks.length")
    page.wait(f"{STREAM}.chunks.length > {made + 24}")
    behind = page.run(f"{STREAM}.chunks.length - 1 - {STREAM}.shown.chunk")
    assert behind <= 8, "a new prompt must not wait behind old pictures"


def test_camera(page):
    start(page, "a red car")
    page.run("document.querySelector('#shows').value = 'a person at a desk'")
    page.click("#camera")
    page.wait("document.querySelector('#camera').ariaPressed === 'true'")
    page.wait(f"{STREAM}.chunks.filter(c => c.kind === 'restyled').length >= 2")
    page.run("document.querySelector('#redraw').click()")
    page.wait(f"{STREAM}.state.events.some(e => e.kind === 'source' && e.of === 'a person at a desk')")
    assert page.run("document.querySelector('#shows').disabled")
    anew = "e => e.kind === 'source' && e.of === null && e.strength === 0.7"
    page.wait(f"({STREAM}.send('state'), {STREAM}.state.events.some({anew}))")
    page.click("#camera")
    page.wait(f"!{STREAM}.state.restyles")


def test_a_camera_takes_the_place_of_a_file_and_a_file_that_of_a_camera(page, server, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (300, 24, 40, 3), dtype=np.uint8)
    media.write_video(tmp_path / "a.mp4", clip, 12)

    def restyle_file():
        page.choose_file("#video-file", tmp_path / "a.mp4")
        page.wait("document.querySelector('#video-choice').open")
        page.click("#video-choice button[value=restyle]")

    start(page, "a red car")
    session = server.engine.streams[page.run(f"{STREAM}.session")].session
    restyle_file()
    page.wait(f"{STREAM}.state.restyles")
    assert session._inputs.source.limit is None
    page.click("#camera")
    page.wait("document.querySelector('#camera').ariaPressed === 'true'")
    server.wait_until(lambda: session.restyles and session._inputs.source.limit is not None)
    restyle_file()
    page.wait("document.querySelector('#camera').ariaPressed === 'false'")
    server.wait_until(lambda: session.restyles and session._inputs.source.limit is None)


def test_dropped_images_and_videos(page, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (14, 24, 40, 3), dtype=np.uint8)
    Image.fromarray(clip[0]).save(tmp_path / "a.png")
    media.write_video(tmp_path / "a.mp4", clip, 12)
    start(page, "a red car")
    page.drop_file(tmp_path / "a.png")
    page.wait(f"{STREAM}.chunks.some(c => c.kind === 'given')")
    page.run(f"{STREAM}.chunks.forEach(c => (c.kind = 'seen'))")
    page.drop_file(tmp_path / "a.mp4")
    page.wait("document.querySelector('#video-choice').open")
    page.click("#video-choice button[value=restyle]")
    page.wait(f"{STREAM}.chunks.some(c => c.kind === 'restyled')")
    page.choose_file("#video-file", tmp_path / "a.mp4")
    page.wait("document.querySelector('#video-choice').open")
    page.click("#video-choice button[value=extend]")
    page.wait(f"{STREAM}.chunks.some(c => c.kind === 'given')")
    (tmp_path / "a.txt").write_text("no picture")
    page.drop_file(tmp_path / "a.txt")
    page.wait("!document.querySelector('#toast').hidden")


def test_a_take_is_opened_and_settings_reach_the_stream(page, server, tmp_path):
    start(page, "a red car", seed=8)
    page.run("(() => { const s = document.querySelector('#steps'); s.value = 2;"
             "s.dispatchEvent(new Event('change')) })()")  # fmt: skip
    page.wait(f"{STREAM}.state.steps === 2")
    session = page.run(f"{STREAM}.session")
    with server.http as http:
        (tmp_path / "a.take").write_bytes(http.get(f"/api/sessions/{session}/take").content)
    page.choose_file("#take-file", tmp_path / "a.take")
    page.wait("studio.panes.length === 2")
    # a busy page may have missed frames of the first showing: compare those it saw both times
    page.wait(f"studio.panes[1].stream.replayed.some((seen, i) => seen && {STREAM}.chunks[i]?.digest)")
    again, first = page.run("studio.panes[1].stream.replayed"), page.run(f"{STREAM}.chunks.map(c => c.digest)")
    both = [(a, b) for a, b in zip(again, first) if a and b]
    assert both and all(a == b for a, b in both)


def test_what_is_recorded_becomes_a_movie(page):
    start(page, "a red car")
    page.click("#record")
    page.wait("document.querySelector('#record').ariaPressed === 'true'")
    page.wait(f"{STREAM}.shown.chunk >= 5")
    page.run(
        "window.made = []; const click = HTMLAnchorElement.prototype.click;"
        "HTMLAnchorElement.prototype.click = function () { made.push(this.download); click.call(this) }"
    )
    page.click("#record")
    page.wait("made.includes('causvid.mp4')")
    page.click("#save")
    page.wait("made.some(name => name.endsWith('.take'))")


def test_one_key_changes_one_thing_of_a_prompt(page):
    words = """import('/static/prompt.js').then(({Words}) => { const words = new Words({
      vocabulary: ['a', 'red', 'car', 'drives', 'at', 'night', 'late', 'in', 'the', 'rain'], examples: [], keys: {},
      read_as: {ship: 'boat'},
      groups: {light: {day: ['during the day'], night: ['at night', 'late at night']}, weather: {rain: ['in the rain']}}
    }); return %s })"""
    for prompt, group, value, expected in [
        (
            "a red car drives late at night, static camera",
            "light",
            "day",
            "a red car drives during the day, static camera",
        ),
        ("a red car, static camera", "weather", "rain", "a red car in the rain, static camera"),
        ("during the day, a red car", "light", "night", "at night, a red car"),
        ("midnight car", "light", "night", "midnight car at night"),
    ]:
        assert page.run(words % f"words.change('{prompt}', '{group}', '{value}')") == expected
    assert page.run(words % "words.unknown('a red dragon, in the ship')") == ["dragon"]
    assert page.run(words % "words.replaced('a red ship, in the rain')") == ["ship is read as boat"]
    assert page.run(words % "words.complete('a red car dr', 12).map(offer => offer.text)") == ["drives"]


@pytest.mark.parametrize(("width", "height", "phone"), [(1360, 860, False), (390, 844, True)])
def test_it_fits_and_can_be_used_by_everybody(page, server, width, height, phone):
    page.open(server.url, width, height, phone)
    page.wait("window.studio")
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, select, canvas[tabindex]')].filter(e => !(e.ariaLabel || "
        "e.labels?.length || e.textContent.trim() || e.title || e.getAttribute('role') === 'img')).map(e => e.id)"
    )
    assert unnamed == []
    if phone:
        small = page.run(
            "[...document.querySelectorAll('#transport button, #send, aside button')].filter(e => e.offsetParent && "
            "e.getBoundingClientRect().height < 40).map(e => e.id)"
        )
        assert small == [], "fingers need room"
    contrast = page.run(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast
    page.call("Page.captureScreenshot")


CONTRAST = """(() => {
  const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).slice(0, 3).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c } return 'rgb(13, 15, 18)' };
  const out = {};
  const texts = 'h1 span, dt, .note, #send, .segments span, .row label, .row output, #status';
  for (const e of document.querySelectorAll(texts)) {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    out[e.id || e.className || e.tagName + e.textContent] = (a + 0.05) / (b + 0.05);
  }
  return out;
})()"""
