"""What one clip may cost: tokens, GFLOPs or milliseconds. Imports no PyTorch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from fluxvit.utils.schema import Count, Positive, check, located, shown

# At most as many digits as floats have: Python takes long to read integers of thousands of digits.
_BUDGET = re.compile(r"(\d{1,309})(\.\d{1,400})?\s*(tokens?|gflops|ms|)", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """What one clip may cost, in exactly one unit. :meth:`parse` reads what ``str`` writes.

    Args:
        tokens: Tokens that enter the blocks.
        gflops: GMACs of everything that the network computes (the field's papers call a multiply-accumulate
            one FLOP).
        latency_ms: Milliseconds of a forward pass of one clip on the device that is used.

    Raises:
        ValueError: No unit or several units are given, or the number is not positive and finite. A number of
            tokens must be an integer: ``36.0`` is not one.
    """

    tokens: Count | None = None
    gflops: Positive | None = None
    latency_ms: Positive | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.tokens, self.gflops, self.latency_ms) if value is not None]
        if len(given) != 1:
            raise ValueError("a budget has exactly one of tokens, gflops and latency_ms")
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
        """Read ``"1024"`` or ``"1024tokens"``, ``"20gflops"`` or ``"50ms"``.

        Raises:
            ValueError: ``text`` has another form, or the number is out of range.
        """
        match = _BUDGET.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(
                f"budget {shown(text)}: give tokens (1024), GFLOPs (20gflops) or milliseconds (50ms), "
                "as a positive number"
            )
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if unit == "gflops":
            return cls(gflops=float(whole + fraction))
        if unit == "ms":
            return cls(latency_ms=float(whole + fraction))
        if fraction.strip(".0"):
            raise ValueError(f"budget {shown(text)}: tokens come in whole numbers")
        return cls(tokens=int(whole))

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens} token{'s' if self.tokens > 1 else ''}"
        number, unit = (self.latency_ms, "ms") if self.gflops is None else (self.gflops, "GFLOPs")
        # The number is never rounded, and has no exponent, which floats may print.
        text = f"{Decimal(repr(float(number or 0))):f}"
        return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
