"""Exact frames from every kind of file, and one clear line for every kind of broken one."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from clips import FPS, cut_short, encode, encode_sound, number_of, numbered, numbers_of, save_image

from fluxvit.data.check import inspect_video
from fluxvit.video.pyav_reader import PyAVReader
from fluxvit.video.reader import VideoError, open_video, probe

GOP12 = {"g": "12", "preset": "veryfast"}
# name of the file -> how it is encoded
FORMATS = {
    "h264.mp4": {"options": {"g": "250"}},
    "h264_gops.mp4": {"options": {"g": "12", "bf": "3", "b_strategy": "0"}},
    "h264_open_gop.mp4": {"options": {"x264-params": "keyint=12:open-gop=1:b-adapt=0:bframes=3"}},
    "h264_intra_refresh.mkv": {"options": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"}},
    "h264.mkv": {"options": GOP12},
    "h264.mov": {"options": GOP12, "sound": True},
    "h264.ts": {"options": GOP12},
    "h264.avi": {"options": {"g": "12", "bf": "3", "b_strategy": "0"}},
    "h264.h264": {"options": GOP12},
    "h264_fragments.mp4": {"options": GOP12, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_10bit.mp4": {"pix_fmt": "yuv420p10le", "options": GOP12},
    "h264_odd.mp4": {"pix_fmt": "yuv444p", "size": (131, 97), "options": GOP12},
    "hevc_10bit.mp4": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "options": {"preset": "ultrafast", "x265-params": "keyint=12:log-level=none:pools=none"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    "vp8_altref.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}},
    "vp9_alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {"deadline": "realtime"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "0"}},
    "mpeg4_b.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "qtrle_alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "prores_alpha.mov": {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "options": {"profile": "4444"}},
    "one_frame.mp4": {"count": 1},
    "variable_rate.mp4": {"pts": [n * 40 + (n % 3) * 12 + n * n for n in range(60)], "options": GOP12},
    "starts_late.mkv": {"pts": [5000 + n * 40 for n in range(60)], "options": GOP12},
    "starts_before_zero.mkv": {"pts": [n * 40 - 200 for n in range(60)], "options": GOP12},
}


@pytest.fixture(scope="module", params=FORMATS)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(tmp_path_factory.mktemp("clips") / request.param, **FORMATS[request.param])


def test_every_frame_is_found_by_its_time(clip: Path) -> None:
    count = FORMATS[clip.name].get("count", 60)
    with open_video(clip) as reader:
        assert len(reader.times) == count
        assert reader.times[0] == 0
        assert reader.end > reader.times[-1]
        frames = reader.read(reader.times)
        assert frames.shape == (count, reader.info.height, reader.info.width, 3)
        assert numbers_of(frames) == list(range(count))


def test_jumping_about_gives_the_same_pixels_as_a_full_pass(clip: Path) -> None:
    with PyAVReader(clip) as reader:
        complete = reader.read(reader.times)
    with PyAVReader(clip) as reader:
        for wanted in [list(range(len(complete)))[::-17], [0], [len(complete) - 1], [len(complete) // 2] * 2]:
            np.testing.assert_array_equal(reader.read(reader.times[wanted]), complete[wanted])


@pytest.mark.parametrize("clip", ["h264_gops.mp4", "h264.mov", "mpeg4.avi", "vp9.webm"], indirect=True)
def test_one_late_frame_costs_one_group_of_pictures(clip: Path) -> None:
    with PyAVReader(clip) as reader:
        start, run = reader.contents.next_run([50])
        assert 36 <= start <= 50
        assert run == [50]


@pytest.mark.parametrize("clip", ["variable_rate.mp4"], indirect=True)
def test_variable_rate_is_read_by_time(clip: Path) -> None:
    pts = np.array(FORMATS[clip.name]["pts"]) / 1000
    with open_video(clip) as reader:
        np.testing.assert_allclose(reader.times, pts, atol=1e-4)
        between = np.linspace(0, pts[-1], 29)
        shown = np.searchsorted(reader.times, between + 1e-6, side="right") - 1
        assert numbers_of(reader.read(between)) == shown.tolist()


@pytest.mark.parametrize("clip", ["h264.mp4"], indirect=True)
def test_times_are_clamped_kept_in_order_and_may_repeat(clip: Path) -> None:
    with open_video(clip) as reader:
        assert numbers_of(reader.read([99.0, -3.0, 1.0, 0.999, 1.0, 3 * 0.04])) == [59, 0, 25, 24, 25, 3]
        assert reader.end == pytest.approx(60 / FPS)
        for bad in ([], [float("nan")], [[0.0]]):
            with pytest.raises(ValueError, match=r"h264\.mp4: times must be"):
                reader.read(bad)


@pytest.mark.parametrize("clip", ["h264.mp4"], indirect=True)
def test_info_says_what_the_header_says(clip: Path) -> None:
    info = probe(clip)
    assert (info.path, info.width, info.height, info.rotation) == (clip, 128, 96, 0)
    assert (info.frames, info.fps, info.codec) == (60, FPS, "h264")
    assert info.duration == pytest.approx(2.4)


@pytest.mark.parametrize(("ccw", "turns"), [(-90, 1), (180, 2), (90, 3), (-89.6, 1)])
def test_rotation_is_applied(tmp_path: Path, ccw: float, turns: int) -> None:
    path = encode(tmp_path / "phone.mp4", count=3, rotation=ccw)
    with open_video(path) as reader:
        frame = reader.read([0.04])[0]
        info = reader.info
    upright = (128, 96) if turns == 2 else (96, 128)
    assert (info.width, info.height, info.rotation) == (*upright, 90 * turns)
    assert frame.shape == (upright[1], upright[0], 3)
    # Clockwise turns are undone by as many counter-clockwise ones.
    assert number_of(np.rot90(frame, turns)) == 1


def test_rotated_frames_are_shrunk_by_their_shown_short_side(tmp_path: Path) -> None:
    path = encode(tmp_path / "phone.mp4", count=3, rotation=-90)
    with open_video(path, short_side=48) as reader:
        assert reader.read([0]).shape == (1, 64, 48, 3)


@pytest.mark.parametrize(("short_side", "shape"), [(48, (48, 64)), (96, (96, 128)), (500, (96, 128))])
def test_short_side_shrinks_and_never_enlarges(
    tmp_path: Path, short_side: int, shape: tuple[int, int]
) -> None:
    path = encode(tmp_path / "clip.mp4", count=8)
    with open_video(path, short_side=short_side) as reader:
        frames = reader.read(reader.times)
    assert frames.shape == (8, *shape, 3)
    assert numbers_of(frames) == list(range(8))


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_colours_survive(tmp_path: Path, codec: str) -> None:
    path = encode(tmp_path / "clip.mkv", codec, count=1, options={"crf": "1"} if codec == "libx264" else {})
    with open_video(path) as reader:
        difference = np.abs(reader.read([0])[0].astype(int) - numbered(0))
    assert np.median(difference) <= 3


def test_edit_list_hides_the_frames_before_it(tmp_path: Path) -> None:
    path = encode(tmp_path / "edited.mp4", options={"g": "12", "bf": "0"})
    data = bytearray(path.read_bytes())
    # elst: version and flags, number of entries, duration, media time, rate. Begin in the middle of a group.
    media_time = data.index(b"elst") + 16
    assert int.from_bytes(data[media_time : media_time + 4], "big") == 0
    data[media_time : media_time + 4] = (20 * 512).to_bytes(4, "big")
    path.write_bytes(data)
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(20, 60))
        assert numbers_of(reader.read([0.0, 0.4, 1.0])) == [20, 30, 45]


# Broken files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi", "cut.mpg", "cut.ts"])
def test_a_truncated_file_gives_the_frames_it_has(tmp_path: Path, name: str) -> None:
    codec = {"cut.avi": "mpeg4", "cut.mpg": "mpeg2video"}.get(name, "libx264")
    muxer = {"movflags": "faststart"} if name == "cut.mp4" else {}
    path = encode(tmp_path / name, codec, count=120, options={"g": "12"}, muxer=muxer)
    cut_short(path, 0.6)
    with open_video(path) as reader:
        assert 40 < len(reader.times) < 110
        # FFmpeg 7 gives the key frame that is cut in two, too, as far as it goes.
        cut_frame = name == "cut.ts" and av.library_versions["libavcodec"][0] < 62
        late = reader.times[-2] if cut_frame else 100.0
        last = number_of(reader.read([late])[0])
        # Frames are stored in decoding order, so some just before the last one may be missing.
        assert abs(last - len(reader.times)) <= 3
        wanted = [0.0, 0.8, 1.0, late, late]
        jumping = reader.read(wanted)
    assert numbers_of(jumping) == [0, 20, 25, last, last]
    with PyAVReader(path) as reader:
        np.testing.assert_array_equal(reader.read(reader.times)[[20, 25]], jumping[1:3])


def test_damage_in_the_middle_does_not_shift_later_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "holes.mkv", count=120, options={"g": "12", "bf": "0"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    with open_video(path) as reader:
        assert number_of(reader.read([100.0])[0]) == 119
        assert numbers_of(reader.read([0.0, 0.4, 4.4, 4.72])) == [0, 10, 110, 118]


def broken(folder: Path, kind: str) -> Path:
    """Make a file that cannot be read."""
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("not a video at all\n" * 50)
    elif kind == "noise":  # which FFmpeg takes for a container
        path.write_bytes(np.random.default_rng(289).bytes(5000))
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("no images here")
    elif kind == "no_index":
        cut_short(encode(path), 0.6)
    elif kind == "sound":
        encode_sound(path)
    elif kind == "undecodable":
        encode(path, count=4, muxer={"movflags": "faststart"})
        data = path.read_bytes()
        start = data.index(b"mdat") + 4
        path.write_bytes(data[:start] + bytes(len(data) - start))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("text", r"not a video, or its header is damaged \(FFmpeg: Invalid data"),
        ("noise", "not a video"),
        ("empty", "empty"),
        ("folder", "a folder without images"),
        ("no_index", "cut short: its index"),
        ("sound", "sound but no pictures"),
        ("undecodable", "not one h264 frame could be decoded"),
    ],
)
def test_errors_are_one_line_with_file_and_reason(tmp_path: Path, kind: str, reason: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(VideoError, match=reason) as caught:
        open_video(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    # Loader workers send their errors to the main process.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_title_in_any_encoding_is_read_past(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", count=2)
    with av.open(str(path)) as container:
        tags = container.metadata["encoder"]
    path.write_bytes(path.read_bytes().replace(tags.encode(), b"\xe9" * len(tags)))
    assert probe(path).frames == 2


def test_names_that_look_like_protocols_are_files(tmp_path: Path) -> None:
    path = encode(tmp_path / "concat:take 1 %03d.mp4", count=2)
    assert probe(path).frames == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"short_side": 0}, "short_side must be"),
        ({"fps": 10}, "fps is only for folders"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_video(encode(tmp_path / "clip.mp4", count=1), **arguments)


# Folders of images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_folder_of_images(tmp_path: Path, suffix: str) -> None:
    for number in range(12):
        save_image(tmp_path / f"frame%d {number}{suffix}", numbered(number))
    (tmp_path / "Thumbs.db").write_text("")
    (tmp_path / f"._frame{suffix}").write_text("")
    with open_video(tmp_path, fps=10) as reader:
        assert (reader.info.frames, reader.info.fps, reader.end) == (12, 10, 1.2)
        assert numbers_of(reader.read([0.0, 1.1, 0.95, 0.3, 7.0])) == [0, 11, 9, 3, 11]
    with open_video(tmp_path, short_side=48) as reader:
        assert reader.info.fps == 25
        assert reader.read([0]).shape == (1, 48, 64, 3)


def test_a_bad_image_in_a_folder_is_named(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", numbered(1))
    save_image(tmp_path / "2.png", numbered(2, width=64))
    (tmp_path / "3.png").write_text("no image")
    with open_video(tmp_path) as reader:
        with pytest.raises(VideoError, match=r"2\.png: is 64x96, the first image of its folder 128x96"):
            reader.read([0.04])
        with pytest.raises(VideoError, match=r"3\.png: not an image"):
            reader.read([0.08])


def test_a_recording_that_starts_in_the_middle_begins_with_its_first_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", count=100, options={"g": "40", "sc_threshold": "0", "bf": "2"})
    data = path.read_bytes()
    path.write_bytes(data[188 * (len(data) // 188 // 5) :])
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(40, 100))
        assert reader.end == pytest.approx(60 / FPS)
        assert numbers_of(reader.read([2.0, 0.0])) == [90, 40]
    facts = inspect_video(path, deep=True)
    assert facts["ok"]
    assert "damaged_frames" not in facts


def test_frames_that_an_edit_list_leaves_out_are_not_missing(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", count=50, options={"g": "25", "bf": "0"})
    data = bytearray(path.read_bytes())
    # The track begins one second later than its first frame, as cuts without encoding do it.
    place = data.index(b"elst") + 12
    timescale = int.from_bytes(data[(at := data.index(b"mdhd") + 16) : at + 4], "big")
    data[place : place + 8] = (1000).to_bytes(4, "big") + timescale.to_bytes(4, "big")
    path.write_bytes(data)
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(25, 50))
    assert inspect_video(path, deep=True)["ok"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE HTML><html><body>404</body></html>", "web page.*download it again"),
        (b"PK\x03\x04" + bytes(90), "zip archive; unpack it"),
        (b"\x1f\x8b\x08" + bytes(90), "gzip archive; unpack it"),
    ],
)
def test_what_is_no_video_is_not_called_damaged(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for video in (path, content):
        with pytest.raises(VideoError, match=f"not a video but an? {kind}") as caught:
            open_video(video)
        assert "damaged" not in str(caught.value)


def test_a_still_image_is_not_called_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "photo.mp4"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x0cmeta\0\0\0\0" + b"\0\0\0\x08mdat")
    with pytest.raises(VideoError) as caught:
        open_video(path)
    assert "cut short" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_names_in_messages_cannot_break_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m.mp4"
    with pytest.raises(VideoError, match=r"a\\nb\\x1b\[31m\.mp4: no such file"):
        open_video(path)
    path.write_bytes(b"junk" * 99)
    assert inspect_video(path)["error"].startswith("not a video")
    (tmp_path / "link.mp4").symlink_to("nothing")
    with pytest.raises(VideoError, match="a broken link"):
        open_video(tmp_path / "link.mp4")


def test_a_clock_that_stands_still_loses_no_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", count=20, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"stts") + 16  # The duration of the frames.
    data[place : place + 4] = bytes(4)
    path.write_bytes(data)
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(20))
        assert (np.diff(reader.times) > 0).all()
