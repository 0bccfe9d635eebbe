import io

import numpy as np
import pytest
from PIL import Image

from causvid import media
from causvid.errors import UserError

RNG = np.random.default_rng(0)


def greys(count, height=32, width=48):
    """Frames that are told apart by their brightness."""
    levels = np.linspace(20, 230, count).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def number_of(frames, shown):
    """Which frame of `greys` each one is."""
    levels = frames[:, 0, 0, 0].astype(float)
    return [int(np.abs(levels - level).argmin()) for level in shown.mean((1, 2, 3))]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov", ".gif"])
def test_frames_survive_a_movie_file(tmp_path, suffix):
    frames = greys(8)
    path = media.write_video(tmp_path / f"a{suffix}", frames, 10)
    again = media.read_video(path, 10, size=(32, 48))
    assert again.shape == frames.shape and number_of(frames, again) == list(range(8))
    assert np.array_equal(media.read_video(io.BytesIO(path.read_bytes()), 10, size=(32, 48)), again)


def test_retiming_shows_what_is_on_screen_at_each_instant(tmp_path):
    frames = greys(6)
    path = media.write_video(tmp_path / "a.mp4", frames, 6)
    assert number_of(frames, media.read_video(path, 12)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert number_of(frames, media.read_video(path, 3)) == [0, 2, 4]
    assert number_of(frames, media.read_video(path, 6, max_seconds=0.5)) == [0, 1, 2]


def test_files_and_bytes_are_read_alike(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", greys(3), 6)
    assert np.array_equal(media.read_video(path, 6), media.read_video(io.BytesIO(path.read_bytes()), 6))
    picture = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(media.read_image(tmp_path / "a.png"), picture)
    assert np.array_equal(media.read_image(io.BytesIO((tmp_path / "a.png").read_bytes())), picture)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile private.mp4\n",
        "ffconcat version 1.0\nfile {folder}/private.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{folder}/private.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_what_was_sent_cannot_name_files_of_this_machine(tmp_path, monkeypatch, playlist):
    media.write_video(tmp_path / "private.mp4", greys(3), 6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not a video"):
        media.read_video(io.BytesIO(playlist.format(folder=tmp_path).encode()), 6)


def test_a_photograph_is_turned_the_right_way_up(tmp_path):
    picture = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(media.read_image(tmp_path / "a.png"), np.rot90(picture, -1))


def test_a_film_of_a_turned_phone_is_turned_the_right_way_up(tmp_path):
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :16, :24] = 250
    path = media.write_video(tmp_path / "a.mp4", frames, 6)
    film, as_filmed = path.read_bytes(), media.read_video(path, 6)
    upright, quarter = (
        np.array(turn, ">i4").tobytes() for turn in ([1 << 16, 0, 0, 0, 1 << 16], [0, 1 << 16, 0, -1 << 16, 0])
    )
    head, tail = film.split(b"tkhd")
    path.write_bytes(head + b"tkhd" + tail.replace(upright, quarter, 1))  # shown turned by a quarter, clockwise
    assert np.array_equal(media.read_video(path, 6), np.rot90(as_filmed, -1, axes=(1, 2)))


def test_pictures_of_every_depth_look_as_they_should(tmp_path):
    steps = np.linspace(0, 65535, 12).reshape(3, 4)
    file = tmp_path / "a.png"
    Image.fromarray(steps.astype(np.uint16)).save(file)
    assert np.array_equal(media.read_image(file)[..., 0], np.round(steps / 257).astype(np.uint8))
    half = np.full((2, 2, 4), [200, 100, 0, 0], np.uint8)
    half[0] = [200, 100, 0, 255]
    Image.fromarray(half).save(file)
    assert media.read_image(file).tolist() == [[[200, 100, 0]] * 2, [[255, 255, 255]] * 2]
    Image.fromarray(steps.astype(np.float32) / 65535).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="8 bits per channel"):
        media.read_image(tmp_path / "a.tiff")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(UserError, match="not a picture"):
        media.read_image(tmp_path / "a.eps")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"\xff\xd8\xff\xe0" * 9])
def test_what_is_no_picture_or_video_is_refused_in_words(content):
    with pytest.raises(UserError, match="not a picture"):
        media.read_image(io.BytesIO(content))
    with pytest.raises(UserError, match=r"not a video|no frames|no video"):
        media.read_video(io.BytesIO(content), 12)


def test_huge_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(media, "MAX_PIXELS", 100)
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "png")
    file.seek(0)
    with pytest.raises(UserError, match="20x20"):
        media.read_image(file)


def test_fitting_crops_the_middle():
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 200
    assert (media.fit(wide, 10, 10) == 200).all()
    tall = wide.transpose(1, 0, 2)
    assert (media.fit(tall[None], 10, 10) == 200).all()
    assert media.fit(wide, 64, 112).shape == (64, 112, 3)
    same = RNG.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    assert np.array_equal(media.fit(same, 6, 8), same)


def test_an_interrupted_movie_is_kept_and_a_failed_one_leaves_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), media.VideoWriter(path, 10) as movie:
        movie.write(greys(4))
        raise KeyboardInterrupt
    assert len(media.read_video(path, 10)) == 4
    with pytest.raises(RuntimeError), media.VideoWriter(tmp_path / "b.mp4", 10) as movie:
        movie.write(greys(4))
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_hopeless_outputs_are_refused_before_the_work(tmp_path):
    for path, match in [
        (tmp_path / "a.xyz", "end it in"),
        (tmp_path / "no suffix", "end it in"),
        (tmp_path, "end it in|folder"),
    ]:
        with pytest.raises(UserError, match=match):
            media.check_output(path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        media.check_output(tmp_path / "file" / "a.mp4")
    media.check_output(tmp_path / "new" / "a.mp4")
    assert not (tmp_path / "new").exists()


def test_a_gif_is_as_long_as_its_frames(tmp_path):
    with Image.open(media.write_video(tmp_path / "a.gif", greys(24), 12)) as picture:
        times = []
        for place in range(picture.n_frames):
            picture.seek(place)
            times.append(picture.info["duration"])
    assert sum(times) == 2000 and {*times} == {80, 90}


def test_a_sheet_shows_evenly_spaced_frames(tmp_path):
    sheet = media.contact_sheet(greys(48), 12)
    assert sheet.width > 6 * 192 and sheet.height > 4 * 128
    path = media.write_video(tmp_path / "a.png", greys(5), 12)
    assert media.read_image(path).shape[1] > 5 * 192
    with pytest.raises(UserError, match="uint8"):
        media.write_video(path, np.zeros((1, 4, 4, 3)), 12)
