"""A check for NaN and infinity in the output of a network."""

from __future__ import annotations

from torch import Tensor


class NotFiniteError(ValueError):
    """The output of a network has NaN or infinity. The message is one line and names possible cures."""


def check_finite(values: Tensor, where: object) -> Tensor:
    """Return the values if all of them are finite.

    The check waits for the device, so that it belongs where results are fetched, not inside a network.

    Args:
        values: Output of a network.
        where: The input, such as the path of a video; the message begins with it.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    if not values.isfinite().all():
        raise NotFiniteError(
            f"{where}: the network's output is not finite (NaN or infinity); the weights are damaged or come "
            "from a training that diverged, or the values are too large for reduced precision: try fp32"
        )
    return values
