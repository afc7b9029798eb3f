"""The page in a real browser, against the real server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.deploy.predictor import Predictor
from fluxvit.deploy.search.database import VideoDatabase
from fluxvit.deploy.search.index import Embedder, choose_settings, update_index
from fluxvit.flux.budget import Budget
from language import SENTENCES, saved_encoder
from shades import GRID, shades

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")
expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}

# Counts the pixels of the overlay that are drawn on, by a checksum: where they are matters, too.
OVERLAY = """
() => {
  const canvas = document.querySelector("#overlay");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.reduce((sum, value, i) => (i % 4 === 3 ? (sum * 31 + value) % 1e9 : sum), 7);
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()
