"""A check that what a network gives are numbers."""

from __future__ import annotations

from torch import Tensor


class NotFiniteError(ValueError):
    """A network gave NaN or infinity. The message is one line, and names the cause's cure."""


def check_finite(values: Tensor, where: object) -> Tensor:
    """The values themselves, if all of them are finite.

    It waits for the device that computes them; so it belongs where results are fetched, not inside a network.

    Args:
        values: Whatever a network gave.
        where: What they were computed for, such as the path of a video; the message begins with it.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    if not values.isfinite().all():
        raise NotFiniteError(
            f"{where}: the network's output is not finite (NaN or infinity); the weights are damaged or come "
            "from a training that diverged, or the values are too large for reduced precision: try fp32"
        )
    return values
