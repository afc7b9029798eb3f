"""A continuous clock for recordings whose time stamps jump.

The time stamps of joined transport streams, DVD cells and recorders that start again in the same file jump
between the parts. The ffmpeg program lays such parts end to end. :class:`Clock` does the same for files and
streams.
"""

from __future__ import annotations

from typing import Protocol

# The ffmpeg program takes a longer gap for a jump of the clock: 10 s in formats for broadcasts
# (dts_delta_threshold), 30 h in others (dts_error_threshold), where a long gap may be a still picture.
_BROADCAST_GAP_S, _LONGEST_GAP_S = 10.0, 30 * 3600.0
# Stored order never goes back in time, except a little, by rounding.
_BACK_S = 0.1
# FFmpeg's AVFMT_TS_DISCONT, for which PyAV has no name.
_MAY_JUMP = 0x0200
_LARGEST_TICK = 1 << 61


class _Timed(Protocol):
    pts: int | None
    dts: int | None
    duration: int | None


class Clock:
    """Rewrites the time stamps of packets, in stored order, so that they continue where the clock jumps.

    Args:
        time_base: Seconds of a tick.
        fps: Frames per second, for packets without a duration; None if unknown.
        format_flags: Flags of the container's format.

    Attributes:
        jumps: How often the clock has jumped so far.
    """

    def __init__(self, time_base: float, fps: float | None, format_flags: int) -> None:
        gap = _BROADCAST_GAP_S if format_flags & _MAY_JUMP else _LONGEST_GAP_S
        self.jumps = 0
        self._gap, self._longest, self._back = (s / time_base for s in (gap, _LONGEST_GAP_S, _BACK_S))
        if not fps or 1 / fps > gap:
            fps = 25.0
        self._usual = max(1, round(1 / (time_base * fps)))
        self._offset = 0
        self._last: int | None = None
        self._latest: int | None = None
        self._next = 0

    def mend(self, packet: _Timed) -> None:
        """Rewrite the time stamps of the next packet in place."""
        pts, dts = _possible(packet.pts), _possible(packet.dts)
        if pts is not None and dts is not None and abs(pts - dts) > self._longest:
            pts = dts  # One of them is damaged; stored order makes dts more likely.
        if dts is not None:
            moved = dts + self._offset
            if self._last is not None and not -self._back <= moved - self._last <= self._gap + self._usual:
                self.jumps += 1
                self._offset = self._next - dts
                if pts is not None and self._latest is not None and pts + self._offset <= self._latest:
                    # In this part, frames may be shown sooner after they are stored than in the former.
                    self._offset = self._latest + self._usual - pts
                moved = dts + self._offset
            duration = packet.duration or 0
            self._last, self._next = moved, moved + (duration if 0 < duration < self._gap else self._usual)
        offset = self._offset
        if pts is not None:
            shown = pts + offset
            self._latest = shown if self._latest is None else max(self._latest, shown)
        if offset or pts != packet.pts:
            packet.pts = None if pts is None else pts + offset
        if offset or dts != packet.dts:
            packet.dts = None if dts is None else dts + offset


def _possible(ticks: int | None) -> int | None:
    """The ticks, or None if arithmetic on them may overflow."""
    return None if ticks is None or abs(ticks) > _LARGEST_TICK else ticks
