"""What one clip, or a second of video, may cost. Imports no PyTorch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

from fluxvit.utils.schema import Count, Positive, check, located, shown

# At most as many digits as floats have: Python takes long to read integers of thousands of digits.
_BUDGET = re.compile(r"(\d{1,309})(\.\d{1,400})?\s*((?:tokens?)?/s|tokens?|gflops|ms|)", re.ASCII)
_MOST_TOKENS = 1 << 40  # Of a video.


@dataclass(frozen=True)
class Budget:
    """What one clip, or a second of video, may cost, in exactly one unit.

    :meth:`parse` reads what ``str`` writes.

    Args:
        tokens: Tokens that enter the blocks.
        gflops: GMACs of everything that the network computes (the field's papers call a multiply-accumulate
            one FLOP).
        latency_ms: Milliseconds of a forward pass of one clip on the device that is used.
        tokens_per_s: Tokens for each second of video, so that the cost follows the length of the video; see
            :meth:`spread`.

    Raises:
        ValueError: No unit or several units are given, or the number is not positive and finite. A number of
            tokens must be an integer: ``36.0`` is not one.
    """

    tokens: Count | None = None
    gflops: Positive | None = None
    latency_ms: Positive | None = None
    tokens_per_s: Positive | None = None

    def __post_init__(self) -> None:
        units = self.tokens, self.gflops, self.latency_ms, self.tokens_per_s
        if sum(value is not None for value in units) != 1:
            raise ValueError("a budget has exactly one of tokens, gflops, latency_ms and tokens_per_s")
        with located("budget"):
            check(self)

    @classmethod
    def of(cls, value: Budget | int) -> Budget:
        """Return a budget as it is, and turn a number of tokens into one. NumPy's integers are accepted, too.

        Raises:
            ValueError: ``value`` is neither, or out of range.
        """
        return value if isinstance(value, Budget) else cls(tokens=value)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"1024"`` or ``"1024tokens"``, ``"20gflops"``, ``"50ms"`` or ``"64/s"``.

        Raises:
            ValueError: ``text`` has another form, or the number is out of range.
        """
        match = _BUDGET.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(
                f"budget {shown(text)}: give tokens (1024), GFLOPs (20gflops), milliseconds (50ms) or tokens "
                "for each second of video (64/s), as a positive number"
            )
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if unit == "gflops":
            return cls(gflops=float(whole + fraction))
        if unit == "ms":
            return cls(latency_ms=float(whole + fraction))
        if unit.endswith("/s"):
            return cls(tokens_per_s=float(whole + fraction))
        if fraction.strip(".0"):
            raise ValueError(f"budget {shown(text)}: tokens come in whole numbers")
        return cls(tokens=int(whole))

    def of_seconds(self, seconds: float) -> int:
        """The whole tokens that a budget per second allows for ``seconds`` of video.

        Raises:
            ValueError: They are less than one, or more than a video may cost.
        """
        assert self.tokens_per_s is not None
        total = self.tokens_per_s * seconds + 1e-6  # Lengths of videos are rounded.
        if not 1 <= total < _MOST_TOKENS:
            cure = "give more tokens per second" if total < 1 else "give fewer tokens per second"
            raise ValueError(f"budget {self}: {seconds:.3g} s of video get {total:.3g} tokens; {cure}")
        return int(total)

    def spread(self, seconds: float, most: int) -> tuple[int, int]:
        """Spread a budget per second over a video.

        Args:
            seconds: Length of the video.
            most: Largest number of tokens of a clip.

        Returns:
            The number of clips, as few as possible, and the tokens of each.

        Raises:
            ValueError: See :meth:`of_seconds`.
        """
        total = self.of_seconds(seconds)
        clips = math.ceil(total / most)
        return clips, total // clips

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens} token{'s' if self.tokens > 1 else ''}"
        number: float | None
        if self.gflops is not None:
            number, unit = self.gflops, "GFLOPs"
        elif self.latency_ms is not None:
            number, unit = self.latency_ms, "ms"
        else:
            number, unit = self.tokens_per_s, "tokens/s"
        # The number is never rounded, and has no exponent, which floats may print.
        text = f"{Decimal(repr(float(number or 0))):f}"
        return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
