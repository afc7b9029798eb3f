"""One clock for a recording whose own clock is not continuous.

Joined transport streams, DVD cells and recorders that start again in the same file have time stamps that
jump between their parts. FFmpeg's program lays such parts end to end, and so does :class:`Clock`, for reading
files and streams alike.
"""

from __future__ import annotations

from typing import Protocol

# FFmpeg's program takes a longer gap for a jump of the clock: 10 s in formats made for broadcasts
# (dts_delta_threshold), 30 h in others (dts_error_threshold), where a long gap may be a still picture.
_BROADCAST_GAP_S, _LONGEST_GAP_S = 10.0, 30 * 3600.0
# Stored order never goes back in time; a little is tolerated, as rounding does it.
_BACK_S = 0.1
# FFmpeg's AVFMT_TS_DISCONT, which PyAV does not name.
_MAY_JUMP = 0x0200
_LARGEST_TICK = 1 << 61


class _Timed(Protocol):
    pts: int | None
    dts: int | None
    duration: int | None


class Clock:
    """Rewrites the time stamps of packets, in stored order, so that they go on where the clock jumps.

    Args:
        time_base: Seconds of a tick.
        fps: Frames per second, for packets that do not say how long they last; None if unknown.
        format_flags: Flags of the container's format.

    Attributes:
        jumps: How often the clock has jumped so far.
    """

    def __init__(self, time_base: float, fps: float | None, format_flags: int) -> None:
        gap = _BROADCAST_GAP_S if format_flags & _MAY_JUMP else _LONGEST_GAP_S
        self.jumps = 0
        self._gap, self._longest, self._back = (
            gap / time_base,
            _LONGEST_GAP_S / time_base,
            _BACK_S / time_base,
        )
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
            pts = dts  # One of them is damaged, and stored order speaks for this one.
        if dts is not None:
            moved = dts + self._offset
            if self._last is not None and not -self._back <= moved - self._last <= self._gap + self._usual:
                self.jumps += 1
                self._offset = self._next - dts
                if pts is not None and self._latest is not None and pts + self._offset <= self._latest:
                    # Frames of the former part are shown later than they are stored, and may not be so here.
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
    """Ticks that arithmetic on them cannot overflow."""
    return None if ticks is None or abs(ticks) > _LARGEST_TICK else ticks
