from __future__ import annotations

import socket
from pathlib import Path

import av
import pytest
from clips import encode, numbers_of

from fluxvit.video.container import open_container, script_kind
from fluxvit.video.reader import VideoError, open_video
from fluxvit.video.stream import open_stream

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_titles_in_any_encoding_are_harmless(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"clip{suffix}", "mpeg4", count=5, metadata={"title": "TITLE-OF-IT"})
    data = path.read_bytes()
    assert b"TITLE-OF-IT" in data
    path.write_bytes(data.replace(b"TITLE-OF-IT", b"T\xe9\xff\xfe\xc3-OF-IT"))
    with open_video(path) as reader:
        assert numbers_of(reader.read(reader.times)) == list(range(5))


def scripts(folder: Path) -> dict[str, str]:
    return {
        "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "call.sdp": SDP.format(port=5004),
    }


@pytest.mark.parametrize("name", ["list.ffconcat", "list.m3u8", "manifest.mpd", "call.sdp"])
@pytest.mark.parametrize("disguise", ["", ".mp4"])
def test_a_file_does_not_open_others(tmp_path: Path, name: str, disguise: str) -> None:
    encode(tmp_path / "clip.mp4", count=5)
    path = tmp_path / (name + disguise)
    path.write_text(scripts(tmp_path)[name])
    with pytest.raises(VideoError, match=r"names other files or addresses.*fluxvit stream"):
        open_video(path)
    with pytest.raises((av.error.FFmpegError, ValueError)):
        open_container(path)
    with path.open("rb") as file, pytest.raises((av.error.FFmpegError, ValueError)):
        open_container(file)


def test_a_session_description_opens_no_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    path = tmp_path / "video.mp4"
    path.write_text(SDP.format(port=port))
    with pytest.raises(VideoError, match="session description"):
        open_video(path)
    # FFmpeg would have waited there, and kept the port while it did.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", port))


def test_a_playlist_named_as_a_stream_is_opened(tmp_path: Path) -> None:
    encode(tmp_path / "clip.ts", count=10)
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:0.4,\nclip.ts\n#EXT-X-ENDLIST\n")
    assert len(list(open_stream(str(path)).sample(0.04))) == 10


def test_scripts_are_known_by_their_first_bytes() -> None:
    assert script_kind(b"\xef\xbb\xbf\n #extm3u\n") is not None
    assert script_kind(b"\x00\x00\x00\x20ftypisom") is None
    assert script_kind(b"") is None
