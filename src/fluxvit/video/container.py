"""Opens files, shards, uploads and streams with FFmpeg; no other module does.

FFmpeg reads far more than videos. Playlists, session descriptions and scripts make it open other files or
sockets, so that a file from a stranger could read whatever its receiver may read. Files are therefore limited
to containers that hold their pictures themselves. Only streams that the user names may have any format.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import av
from av.container import InputContainer

from fluxvit.video.limits import VideoLimits

# FFmpeg's names of the demuxers of files that hold their pictures themselves. Sound is included, so that the
# error about a song says what it is.
_CONTAINERS = """
    mov mp4 m4a 3gp 3g2 mj2 matroska webm avi mpegts mpeg flv live_flv kux gif apng webp webp_anim asf asf_o
    ogg mxf nut dv rm nsv nuv gxf lxf wtv ty pva dhav film_cpk amv ivf obu av1 avif
    h261 h263 h264 hevc vvc evc m4v mpegvideo cavsvideo avs2 avs3 vc1 vc1test dirac dnxhd mjpeg mjpeg_2000
    mpjpeg smjpeg yuv4mpegpipe flic roq smk bink jpegxl_anim
    aac mp3 wav flac aiff ac3 eac3 dts amr w64 caf au ape wv
    bmp_pipe gif_pipe jpeg_pipe jpegls_pipe jpegxl_pipe j2k_pipe png_pipe webp_pipe tiff_pipe ppm_pipe
    pgm_pipe pbm_pipe pam_pipe qoi_pipe image2
"""

# Without pattern_type, a % in the name of an image is taken for the pattern of a numbered sequence.
_LIMITED = {
    "format_whitelist": ",".join(_CONTAINERS.split()),
    "protocol_whitelist": "file",
    "pattern_type": "none",
}

# FFmpeg's own bound on pixels.
_LARGEST_OPTION = (1 << 31) - 1

# Before PyAV 19, titles that are not UTF-8 raise an error by default.
_PYAV = int(av.__version__.partition(".")[0])
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if _PYAV < 19 else {}

# The first bytes of files whose header names all of their streams.
_HEADERS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"\x1a\x45\xdf\xa3")

# The first bytes of files that name other files or addresses instead of holding pictures.
_SCRIPTS = (
    (b"#EXTM3U", "an HLS playlist (m3u8)"),
    (b"ffconcat", "an ffconcat script"),
    (b"v=0", "a session description (SDP)"),
    (b"<?xml", "an XML file, such as a DASH manifest"),
    (b"<MPD", "a DASH manifest"),
    (b"<smil", "a SMIL playlist"),
    (b"<asx", "an ASX playlist"),
    (b"[playlist]", "a playlist"),
    (b"[reference]", "a playlist"),
    (b"rtsptext", "an RTSP link"),
)

# The first bytes of files that are often found under the names of videos.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the video itself: git lfs pull"),
    (b"<!doctype html", "a web page, which a server may send in place of a file; download it again"),
    (b"<html", "a web page, which a server may send in place of a file; download it again"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)


def open_container(source: Path | IO[bytes]) -> InputContainer:
    """Open a file or a pipe, without letting it make FFmpeg open anything else.

    Args:
        source: A path or a binary file. A seekable file is read from its beginning.

    Raises:
        av.error.FFmpegError, OSError, ValueError: FFmpeg does not open it.
    """
    start = b""
    if isinstance(source, Path):
        if _PYAV < 18 and source.is_file():
            with source.open("rb") as file:
                start = file.read(12)
        # The prefix keeps FFmpeg from reading names such as "concat:a" or "take:1.mp4" as protocols.
        return av.open(f"file:{source}", "r", **_limits(start), **_METADATA)
    if source.seekable():
        source.seek(0)
        if _PYAV < 18:
            start = source.read(12)
            source.seek(0)
    return av.open(source, "r", **_limits(start), **_METADATA)


def _limits(start: bytes) -> dict[str, Any]:
    """Arguments of `av.open` that limit what is opened, for a file that begins with ``start``."""
    # FFmpeg decodes first frames while it opens a file.
    pixels = {"max_pixels": str(min(VideoLimits.current().pixels, _LARGEST_OPTION))}
    if (
        _PYAV >= 18
        or start.startswith(_HEADERS)
        or start[4:8] == b"ftyp"
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    ):
        return {"options": {**_LIMITED, **pixels}}
    # PyAV before 18 frees options of decoders that it never set, and crashes, if FFmpeg finds further streams
    # behind the header, as in MPEG-TS, MPEG-PS and FLV. Options of the container alone are safe.
    return {"container_options": _LIMITED}


def open_address(
    address: str,
    *,
    format: str | None = None,
    options: dict[str, str] | None = None,
    timeout: float | None = None,
) -> InputContainer:
    """Open a stream that the user names: a camera, an address, or a playlist with the files that it names.

    Args:
        format: FFmpeg's input device of a camera.
        options: Options of FFmpeg's demuxer or protocol.
        timeout: Seconds to wait for an address that sends nothing.

    Raises:
        av.error.FFmpegError, OSError, ValueError: FFmpeg does not open it.
    """
    # These are not options of decoders, too; see _limits.
    how: dict[str, Any] = {"format": format, "container_options": options or {}, "timeout": timeout}
    return av.open(address, "r", **how, **_METADATA)


def script_kind(start: bytes) -> str | None:
    """The kind of a playlist or script that begins with ``start``; None if it is neither."""
    return _kind(start, _SCRIPTS)


def is_animated_webp(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is an animated WebP, which few FFmpegs decode."""
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) > 20 and bool(start[20] & 2)


def other_kind(start: bytes) -> str | None:
    """The kind of a file that begins with ``start`` and is known not to be a video; None if unknown."""
    return _kind(start, _OTHERS)


def _kind(start: bytes, kinds: tuple[tuple[bytes, str], ...]) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for sign, kind in kinds if text[: len(sign)].lower() == sign.lower()), None)
