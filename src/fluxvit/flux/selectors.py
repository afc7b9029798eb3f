"""The names of the token selectors, for configs and help. Imports no PyTorch.

:mod:`fluxvit.flux.selection` implements each of them, and a test holds the two together.
"""

from __future__ import annotations

from typing import Literal

SelectorName = Literal[
    "group_dynamic",
    "group_dynamic_2",
    "dynamic",
    "pixel_difference",
    "two_sided",
    "two_sided_pixels",
    "tube",
    "uniform",
    "random",
]
"""Which tokens of a pool are kept; ``group_dynamic`` is the paper's selector (section 3.2)."""
