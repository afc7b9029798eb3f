"""A camera on this machine: live video over HTTP or RTSP, with a switch for each way in which it can fail."""

from __future__ import annotations

import itertools
import re
import socket
import struct
import time
from base64 import b64encode
from contextlib import suppress
from fractions import Fraction
from threading import Event, Thread
from types import TracebackType
from typing import Any

import av
from av.error import FFmpegError
from clips import FPS, numbered

_H264 = {"g": "5", "preset": "ultrafast", "tune": "zerolatency"}
_START_CODE = re.compile(b"\0{2,3}\1")


class LiveServer:
    """Serves frames that carry their numbers, at `FPS` times ``pace``, to all who connect.

    The numbers of a connection follow one another, and leap from one connection to the next.

    Attributes:
        number: The newest frame.
        stalled: Connections stay open, but nothing is sent.
        connections: How many there have been.
    """

    def __init__(self, pace: float = 1.0) -> None:
        self.number, self.connections, self._pace = 0, 0, pace
        self.stalled = Event()
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def drop(self) -> None:
        """End all connections."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def stop(self) -> None:
        """Refuse connections, and end those that there are."""
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.drop()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections += 1
                self._open.append(connection)
                Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, FFmpegError), connection:
            self.answer(connection, connection.makefile("rb"))
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def answer(self, connection: socket.socket, requests: Any) -> None:
        raise NotImplementedError

    def frames(self) -> Any:
        """Frames with their times in seconds, at the pace of the server."""
        first = self.number + 40
        begin = time.monotonic()
        for count in itertools.count():
            while self.stalled.is_set():
                time.sleep(0.01)
            frame = av.VideoFrame.from_ndarray(numbered((first + count) % 256), format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, FPS)
            yield frame
            self.number = max(self.number, first + count)
            time.sleep(max(0.0, begin + (count + 1) / (FPS * self._pace) - time.monotonic()))


def _encoder(codec: str) -> Any:
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height = 128, 96
    encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, FPS), Fraction(FPS)
    encoder.options = {} if codec == "mjpeg" else _H264
    return encoder


class HTTPCamera(LiveServer):
    """``/live.ts`` (MPEG-TS), ``/live.mjpg``, ``/moved`` (to live.mjpg), ``/page.html``, ``/mute``."""

    def url(self, path: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}/{path}"

    def answer(self, connection: socket.socket, requests: Any) -> None:
        path = _request(requests).split()[1].partition("?")[0]
        if path == "/live.ts":
            connection.sendall(_http("200 OK", "Content-Type: video/mp2t"))
            with av.open(connection.makefile("wb", buffering=0), "w", format="mpegts") as container:
                stream: Any = container.add_stream("libx264", rate=FPS, options=_H264)
                stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
                for frame in self.frames():
                    container.mux(stream.encode(frame))
        elif path == "/live.mjpg":
            connection.sendall(_http("200 OK", "Content-Type: multipart/x-mixed-replace; boundary=next"))
            encoder = _encoder("mjpeg")
            for frame in self.frames():
                for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                    head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {packet.size}\r\n\r\n"
                    connection.sendall(head.encode() + bytes(packet) + b"\r\n")
        elif path == "/moved":
            connection.sendall(_http("302 Found", f"Location: {self.url('live.mjpg')}"))
        elif path == "/page.html":
            page = b"<!doctype html><html><body>Log in to see the camera</body></html>"
            connection.sendall(_http("200 OK", "Content-Type: text/html") + page)
        elif path == "/mute":
            connection.recv(1)  # Until the client leaves.
        else:
            connection.sendall(_http("404 Not Found", "Content-Length: 0"))


class RTSPCamera(LiveServer):
    """``/live``: H.264 in RTP packets within the connection; ``/private``: the same for ``ann:word``."""

    def url(self, path: str = "live", user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}/{path}"

    def answer(self, connection: socket.socket, requests: Any) -> None:
        key = b64encode(b"ann:word").decode()
        while request := _request(requests):
            method, url = request.split()[:2]
            head = [f"CSeq: {re.findall('CSeq: *([0-9]+)', request, re.I)[0]}", "Session: 1"]
            status, body = "200 OK", ""
            if "/private" in url and key not in request:
                status = "401 Unauthorized"
                head.append('WWW-Authenticate: Basic realm="camera"')
            elif "/live" not in url and "/private" not in url:
                status = "404 Not Found"
            elif method == "OPTIONS":
                head.append("Public: DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "DESCRIBE":
                body = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
                )
                head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            elif method == "SETUP":
                head.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
            connection.sendall("\r\n".join([f"RTSP/1.0 {status}", *head, "", body]).encode())
            if method == "PLAY" and status == "200 OK":
                self._play(connection)

    def _play(self, connection: socket.socket) -> None:
        """Send RTP packets, one for each unit of the H.264 stream, until the client leaves."""
        encoder, count = _encoder("libx264"), 0
        for frame in self.frames():
            for packet in encoder.encode(frame):
                units = [unit for unit in _START_CODE.split(bytes(packet)) if unit]
                ticks = int(packet.pts * packet.time_base * 90000)
                for unit in units:
                    kind = 96 | (128 if unit is units[-1] else 0)  # The last of a frame is marked.
                    rtp = struct.pack(">BBHII", 128, kind, count & 0xFFFF, ticks & 0xFFFFFFFF, 1) + unit
                    connection.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
                    count += 1


def _request(requests: Any) -> str:
    """The next request; empty when the client has left."""
    lines = []
    while line := requests.readline().decode():
        if line == "\r\n":
            break
        lines.append(line)
    return "".join(lines)


def _http(status: str, *head: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *head, "", ""]).encode()
