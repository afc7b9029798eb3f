"""Reads exact frames from any file that FFmpeg can read, and decodes as little as possible.

A file is demuxed once without decoding (well under a millisecond for a hundred frames), which gives every
frame's time and the key frame from which it can be reached. A read then visits the requested frames in order
and, for each, either decodes on or seeks, whichever is nearer.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from fluxvit.video.base import DamageFound, VideoError, VideoInfo, VideoReader, decoding
from fluxvit.video.clock import Clock
from fluxvit.video.container import is_animated_webp
from fluxvit.video.limits import VideoLimits, image_size
from fluxvit.video.motion import MotionMeter
from fluxvit.video.rgb import RGBConverter, display_width, orientation
from fluxvit.video.tar_members import TarMember
from fluxvit.video.video_file import (
    IMAGE_CODECS,
    bytes_of,
    open_main_stream,
    pixel_aspect,
)

# Seeking flushes the decoder, which then needs a few packets before its first frame comes out.
_SEEK_COST_IN_PACKETS = 3

_IMAGE_HEADER_BYTES = 1 << 17

_LONGEST_LAST_FRAME_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Packet:
    """The facts of a demuxed packet about its frame; times are in ticks of the stream's clock."""

    pts: int | None
    dts: int | None
    duration: int | None
    is_key: bool
    is_shown: bool


class _Contents:
    """The position of every frame of a file, from its packets in decoding order.

    The *tick* of a frame is its presentation time or, in files that store none, its number.

    Attributes:
        ticks: int64 ``[N]``, rising; entry i belongs to frame i in display order.
        times: float64 ``[N]`` seconds from the first frame.
        end: Seconds at which the last frame stops being shown.
        counts: Ticks are frame numbers, so frames must be counted from the beginning of the file.
        repeats: Several packets claim the same presentation time.
        key_times: Presentation times of the key frames, in the stream's time base.
    """

    def __init__(
        self, packets: list[_Packet], time_base: float, fps: float | None, reorders_silently: bool
    ) -> None:
        self.packets = packets
        shown = [i for i, packet in enumerate(packets) if packet.is_shown]
        clock = [packets[i].pts for i in shown]
        self.counts = reorders_silently or None in clock
        if self.counts:
            clock = [packets[i].dts for i in shown]
            if None in clock:
                step = 1 / (time_base * (fps or 25.0))
                clock = [round(n * step) for n in range(len(shown))]
        if not self.counts and 2 * len(set(clock)) < len(clock):
            # Most frames would be lost to others at the same time: the clock stands still.
            self.counts = True
            clock = [round(n / (time_base * (fps or 25.0))) for n in range(len(shown))]
        starts, first_seen = np.unique(np.array(clock, dtype=np.int64), return_index=True)
        self.repeats = len(starts) < len(clock)
        self.ticks = np.arange(len(starts)) if self.counts else starts
        self.times = (starts - starts[0]) * time_base
        self._position = np.array(shown)[first_seen]
        self._keys = [i for i, packet in enumerate(packets) if packet.is_key]
        self.key_times = {packets[i].pts for i in self._keys}
        last = packets[self._position[-1]].duration
        if last and 0 < last * time_base <= _LONGEST_LAST_FRAME_S:
            shown_for = last * time_base
        elif len(starts) > 1:
            shown_for = float(np.median(np.diff(self.times)))
        else:
            shown_for = 1 / (fps or 25.0)
        self.end = float(self.times[-1]) + shown_for

    def next_run(self, frames: list[int]) -> tuple[int, list[int]]:
        """The packet at which decoding starts for ``frames[0]``, and the ``frames`` to decode from there."""
        start = self._key_before(frames[0])
        run = frames[:1]
        for frame in frames[1:]:
            if self._key_before(frame) - self._position[run[-1]] > _SEEK_COST_IN_PACKETS:
                break
            run.append(frame)
        return start, run

    def _key_before(self, frame: int) -> int:
        """Index of the packet from which ``frame`` can be decoded; 0 is the beginning of the file."""
        if self.counts:
            return 0
        for key in reversed(self._keys[: np.searchsorted(self._keys, self._position[frame], side="right")]):
            # Frames stored after a key frame but shown before it (open GOP) need the group before, too.
            pts = self.packets[key].pts
            if pts is not None and pts <= self.ticks[frame]:
                return key
        return 0


class PyAVReader(VideoReader):
    """Reads a video file, or one in a shard, by PyAV; see `fluxvit.video.reader.open_video` for arguments.

    Args:
        file: The content of the video, if it is open already; ``path`` is then its name in messages.
        motion: Collect the codec's motion vectors in ``motion``; no frame is then left out in decoding.

    Raises:
        VideoError: The file is missing, empty, cut short before its index, not a video, sound only, larger
            than `fluxvit.video.limits` allows, or no frame of it can be decoded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        short_side: int | None = None,
        file: IO[bytes] | None = None,
        motion: bool = False,
    ) -> None:
        self._path, self._limits = Path(path), VideoLimits.current()
        member = TarMember.parse(path) if file is None else None
        self._file = file if member is None else member.open()
        self._packets: list[_Packet] = []
        # False for good once random access may give other frames than reading in stored order.
        self._seeks = True
        self._cut_off = False
        self._container: InputContainer | None = None
        self._meter = MotionMeter() if motion else None
        try:
            with decoding(self._path):
                self._open()
                # One demuxing pass gives the first frame, now, and the table of contents, if it is needed.
                self._first_pass = self._recorded(self._demux())
                first = next(self._frames(self._first_pass), None)
                if first is None:
                    raise self._nothing_decoded()
                self._first_tick, self._read_for_first = first.pts, len(self._packets)
                aspect = pixel_aspect(self._stream)
                shown = display_width(first.width, aspect), first.height
                if reason := self._limits.too_large(*shown):
                    raise VideoError.of(self._path, reason)
                self._convert = RGBConverter(first, short_side, aspect)
                if self._meter is not None:
                    self.motion, self._meter.orientation = {}, orientation(first)
                self.info = self._describe(first, aspect)
        except BaseException:
            self.close()
            raise

    @property
    def times(self) -> np.ndarray:
        return self.contents.times

    @property
    def end(self) -> float:
        return self.contents.end

    @cached_property
    def contents(self) -> _Contents:
        with decoding(self._path):
            for _ in self._first_pass:
                pass
            # AVI has no presentation times; FFmpeg numbers its packets as if they were shown in stored order.
            is_avi = self.container.format.name == "avi"
            reorders_silently = is_avi and bool(self._stream.codec_context.has_b_frames)
            self._leave_out_leading()
            contents = _Contents(self._packets, self._time_base, self.info.fps, reorders_silently)
            if contents.counts or contents.repeats or self._cut_off:
                self._seeks = False
            return contents

    def _leave_out_leading(self) -> None:
        """Leave out the frames before the first one that can be decoded: a recording may start at any packet,
        and frames that depend on earlier packets are lost. As in the ffmpeg program, time starts after them.
        """
        first = self._first_tick
        if first is None or (not self._stream.codec_context.has_b_frames and self._packets[0].is_key):
            return
        if 2 * len({packet.pts for packet in self._packets}) < len(self._packets):
            return  # The clock stands still, and does not show which frames come first.
        for number, packet in enumerate(self._packets[: self._read_for_first]):
            if packet.pts is not None and packet.pts < first:
                self._packets[number] = replace(packet, is_shown=False)

    def count_intact(self) -> int:
        """Decode the whole file and count the frames without damage."""
        self._open()
        return sum(not frame.is_corrupt for frame in self._frames(self._demux()))

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        contents = self.contents
        if not self._seeks:
            yield from map(self._read, indices, self._run(0, contents.ticks[indices].tolist()))
            return
        pending = indices
        while pending:
            start, run = contents.next_run(pending)
            done = 0
            for frame in self._run(start, contents.ticks[run].tolist()):
                yield self._read(run[done], frame)
                done += 1
            if done < len(run):
                # Damage, or time stamps that depend on where reading starts: only a full pass is reliable.
                self._give_up_seeking()
            pending = pending[done:]

    def _read(self, index: int, frame: av.VideoFrame) -> np.ndarray:
        """The image of frame number ``index``; the motion towards it is stored."""
        if self._meter is not None and self.motion is not None:
            self.motion[index] = self._meter.take()
        return self._convert(frame)

    def _give_up_seeking(self) -> None:
        self._seeks = False
        raise DamageFound

    def _run(self, start: int, targets: list[int]) -> Iterator[av.VideoFrame]:
        """Frames at the ticks ``targets`` (rising), decoding from packet ``start`` on.

        In a full pass over the file, a target that cannot be decoded is replaced by the frame before it.
        After a jump the run stops early instead, since the jump may be the reason.
        """
        left = targets[::-1]
        previous: av.VideoFrame | None = None
        needed = set(targets) if self._seeks else None
        for number, frame in enumerate(self._frames(self._packets_from(start), skip_unless=needed)):
            tick = number if self.contents.counts else frame.pts
            if tick is None:
                continue
            while left and left[-1] < tick:
                if self._seeks:
                    return
                yield previous or frame
                left.pop()
            if left and left[-1] == tick:
                if self._seeks and frame.is_corrupt:
                    return
                yield frame
                left.pop()
            if not left:
                return
            previous = frame
        if self._seeks:
            return
        if previous is None:
            raise self._nothing_decoded()
        for _ in left:
            yield previous

    def _frames(
        self, packets: Iterator[av.Packet], skip_unless: set[int] | None = None
    ) -> Iterator[av.VideoFrame]:
        """Decode ``packets`` and skip the damaged ones.

        With ``skip_unless``, frames at other ticks may be left out if no frame depends on them.
        """
        codec = self._stream.codec_context
        for packet in packets:
            needed = skip_unless is None or packet.pts in skip_unless or self._meter is not None
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from self._measured(self._decoded(packet, skip_unless is not None))
        yield from self._measured(self._decoded(None, skip_unless is not None))

    def _measured(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            if self._meter is not None:
                self._meter.add(frame)
            yield frame

    def _decoded(self, packet: av.Packet | None, after_jump: bool) -> list[av.VideoFrame]:
        """The frames that the decoder gives for ``packet``; for None, those that it still holds."""
        try:
            return self._stream.decode(packet)
        except (FFmpegError, ValueError) as error:
            self._expect_small_frames(error)
            if after_jump:
                self._give_up_seeking()
            return []

    def _expect_small_frames(self, error: Exception) -> None:
        """Raise a VideoError if the decoder has failed because frames are too large, not damaged."""
        context, number = self._stream.codec_context, getattr(error, "errno", None)
        reason = self._limits.too_large(context.width, context.height)
        # The decoder of AV1 says that the size is out of range; others forget it, and call it invalid.
        if not reason and (number == errno.ERANGE or (number == errno.EINVAL and context.width == 0)):
            reason = self._limits.grown()
        if reason:
            raise VideoError.of(self._path, reason) from None

    def _packets_from(self, start: int) -> Iterator[av.Packet]:
        """Packets from number ``start`` or, where seeking is coarse, from a key frame before it."""
        target = self.contents.packets[start]
        # Containers are indexed by display time or by decoding time; the wrong one may land too late.
        for timestamp in (target.pts, target.dts) if self._seeks else ():
            if timestamp is None:
                continue
            try:
                self.container.seek(timestamp, stream=self._stream)
            except FFmpegError:
                break
            packets = self._demux()
            landed = next((packet for packet in packets if packet.is_keyframe), None)
            if landed is None or landed.pts is None or target.pts is None:
                break
            if landed.pts not in self.contents.key_times:
                break  # FFmpeg 7 numbers the frames of MPEG-PS files differently after a jump.
            if landed.pts <= target.pts:
                return chain([landed], packets)
        # Reopening costs a few milliseconds but, unlike seeking, always finds the first packet.
        self._open()
        return self._demux()

    def _open(self) -> None:
        if self._container is not None:
            self._container.close()
        # Seek before FFmpeg reads, which expects that nothing else moves in the file.
        size = None if self._file is None else self._file.seek(0, os.SEEK_END)
        self._container, self._stream = open_main_stream(self._path, self._file, self._limits)
        self._bytes = self._path.stat().st_size if size is None else size
        assert self._stream.time_base is not None
        self._time_base = float(self._stream.time_base)
        # Frames may grow in the middle of a stream.
        options = {"max_pixels": str(min(self._limits.pixels, (1 << 31) - 1))}
        if self._meter is not None:
            options["flags2"] = "+export_mvs"
        self._stream.codec_context.options = options
        self._stream.codec_context.thread_count = 1  # Several processes read at once.

    @property
    def container(self) -> InputContainer:
        """The open container of PyAV."""
        assert self._container is not None
        return self._container

    def _demux(self) -> Iterator[av.Packet]:
        """Packets up to the end of the file, or to the point where damage prevents reading on.

        Random access ends where the clock has jumped: its parts only add up if all packets are read in stored
        order.
        """
        fps = float(self._stream.average_rate) if self._stream.average_rate else None
        clock = Clock(self._time_base, fps, int(self.container.format.flags))
        try:
            for packet in self.container.demux(self._stream):
                if not packet.size:
                    continue
                if self._stream.codec_context.name in IMAGE_CODECS:
                    self._expect_small_image(packet)
                clock.mend(packet)
                if clock.jumps or packet.is_corrupt:
                    self._seeks = False
                yield packet
        except VideoError:
            raise
        except (FFmpegError, ValueError):
            self._cut_off = True

    def _expect_small_image(self, packet: av.Packet) -> None:
        """Raise if an image in a video is too large; its decoder would report damage."""
        size = image_size(io.BytesIO(memoryview(packet)[:_IMAGE_HEADER_BYTES]))
        if size is not None and (reason := self._limits.too_large(*size)):
            raise VideoError.of(self._path, reason)

    def _recorded(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        context = self._stream.codec_context
        pixels = context.width * context.height
        for packet in packets:
            count = len(self._packets) + 1
            reason = self._limits.too_many(count) or self._limits.too_dense(count, pixels, self._bytes)
            if reason:
                raise VideoError.of(self._path, reason)
            self._packets.append(
                _Packet(packet.pts, packet.dts, packet.duration, packet.is_keyframe, not packet.is_discard)
            )
            yield packet

    def _describe(self, first: av.VideoFrame, aspect: float) -> VideoInfo:
        stream, container = self._stream, self.container
        height, width = self._convert.shown
        duration = None
        if stream.duration is not None:
            duration = float(stream.duration * self._time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        return VideoInfo(
            path=self._path,
            width=width,
            height=height,
            frames=stream.frames or None,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration=duration,
            rotation=90 * self._convert.turns,
            codec=stream.codec_context.name,
            pixel_aspect=aspect,
        )

    def _nothing_decoded(self) -> VideoError:
        codec = self._stream.codec_context.name
        reason = f"not one {codec} frame could be decoded; the file is damaged"
        with bytes_of(self._path, self._file) as file:
            if is_animated_webp(file.read(32)):
                reason = "this FFmpeg cannot decode animated WebP; convert it to MP4, GIF or APNG"
            elif not self._packets:
                reason = f"its {codec} stream is empty: it holds no frame"
        return VideoError.of(self._path, reason)
