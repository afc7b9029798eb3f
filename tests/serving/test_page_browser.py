"""The page in a real browser, against the real server."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fluxvit.deploy.predictor import Predictor
from fluxvit.deploy.search.database import VideoDatabase
from fluxvit.deploy.search.index import Embedder, choose_settings, search, update_index
from fluxvit.flux.budget import Budget
from fluxvit.serving.config import ServeConfig
from language import SENTENCES, saved_encoder
from shades import GRID, shades

sync_api = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
expect = sync_api.expect
expect.set_options(timeout=20_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

# A checksum of what is drawn over the video.
DRAWN = """
() => {
  const canvas = document.querySelector("#overlay");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.reduce((sum, value) => (sum * 31 + value) % 1e9, 0);
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def serving(token: str = "", **options: Any) -> Iterator[str]:
    """The address of a server."""
    from fluxvit.serving.app import create_app
    from fluxvit.serving.service import Service

    config = ServeConfig(device="cpu", precision="fp32", decoders=1, **options)
    server = uvicorn.Server(uvicorn.Config(create_app(Service(config), token), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the packaged checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        with serving(max_bytes=100_000) as address:
            yield address


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page, and the errors of its console and its scripts."""
    errors: list[str] = []
    page = browser.new_page(**options)
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(address)
        yield page, errors
    finally:
        page.close()


def encoded(path: Path, codec: str) -> Path:
    """A square that moves over noise, a second long."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for t in range(10):
            image = rng.integers(0, 60, (64, 96, 3), dtype=np.uint8)
            image[20:44, 6 * t : 6 * t + 24] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_labels_and_overlay_follow_the_budget(browser: Any, classifier: str, tmp_path: Path) -> None:
    clip = encoded(tmp_path / "clip.webm", "libvpx")
    with opened(browser, classifier, viewport={"width": 1440, "height": 900}) as (page, errors):
        page.set_input_files("#file", clip)
        best = page.locator("#labels li").first.locator(".label")
        expect(page.locator("#labels li")).to_have_count(5)
        expect(page.locator("#spent")).to_have_text("72 tokens")
        expect(best).to_have_text(Predictor(budget=72, precision="fp32")(clip).top(1)[0][0])
        expect(page.locator("#kept")).to_contain_text("72 of 112 tokens kept")
        expect(page.locator("#status")).to_contain_text("with 72 of 112 tokens")
        expect(page.locator("#total")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        stops = page.locator("#ticks span").all_inner_texts()
        expect(page.locator("#plot circle.score")).to_have_count(len(stops))  # They are asked in turn.

        expect(page.locator("#overlay")).to_have_attribute("data-step", re.compile("[1-9]"))  # It plays.
        page.locator("#play").click()
        expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
        before, labels = page.evaluate(DRAWN), page.inner_text("#labels")
        page.locator("#slider").focus()
        page.keyboard.press("Home")
        expect(page.locator("#spent")).to_have_text(f"{stops[0]} tokens")
        expect(page.locator("#kept")).to_contain_text(f"{stops[0]} of 72 tokens kept")
        expect(page.locator("#slider")).to_have_attribute(
            "aria-valuetext", re.compile(f"^{stops[0]} tokens of 72")
        )
        expect(best).to_have_text(Predictor(budget=int(stops[0]), precision="fp32")(clip).top(1)[0][0])
        assert page.inner_text("#labels") != labels
        assert page.evaluate(DRAWN) != before

        page.locator("#toggle").uncheck(force=True)
        expect(page.locator("#overlay")).to_be_hidden()
        page.locator("#toggle").check(force=True)
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator("#overlay")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        expect(page.locator("#overlay")).to_have_attribute(
            "width", "356"
        )  # It is drawn anew at the new size.
        assert errors == []


def test_what_the_browser_plays_and_what_it_cannot(browser: Any, classifier: str, tmp_path: Path) -> None:
    with opened(browser, classifier) as (page, errors):
        page.set_input_files("#file", encoded(tmp_path / "clip.mp4", "libx264"))
        expect(page.locator("#labels li")).to_have_count(5)
        if page.evaluate(
            """video.canPlayType('video/mp4; codecs="avc1.42E01E"')"""
        ):  # Some builds lack H.264.
            expect(page.locator("#overlay")).to_have_attribute("data-step", re.compile("[1-9]"))
        page.set_input_files("#other", encoded(tmp_path / "clip.avi", "mpeg4"))
        expect(page.locator("#unplayable")).to_contain_text("The server reads it all the same")
        expect(page.locator("#labels li")).to_have_count(5)
        expect(page.locator("#strip")).to_be_visible()
        assert errors == []


def test_errors_are_shown_where_they_arise(browser: Any, classifier: str, tmp_path: Path, clip: Path) -> None:
    with opened(browser, classifier) as (page, errors):
        (tmp_path / "bad.mp4").write_bytes(b"<b>no video</b>")
        page.set_input_files("#file", tmp_path / "bad.mp4")
        expect(page.locator("#problem p")).to_contain_text("bad.mp4")
        (tmp_path / "large.mp4").write_bytes(bytes(200_000))
        page.set_input_files("#other", tmp_path / "large.mp4")
        expect(page.locator("#problem p")).to_contain_text("large.mp4 has 0.191 MB")
        page.set_input_files("#other", clip)
        expect(page.locator("#labels li")).to_have_count(5)
        expect(page.locator("#problem")).to_be_hidden()

        page.fill("#custom", "many")
        page.keyboard.press("Enter")
        expect(page.locator("#budget-error")).to_contain_text("many")
        expect(page.locator("#spent")).to_have_text(
            "72 tokens"
        )  # The answer that is shown is still this one.
        page.fill("#custom", "0.03gflops")
        page.keyboard.press("Enter")
        expect(page.locator("#spent")).to_have_text("26 tokens")
        expect(page.locator("#budget-error")).to_be_empty()
        assert all(error.startswith("Failed to load resource") for error in errors), errors


def test_search_behind_a_token(browser: Any, tmp_path: Path, clip: Path) -> None:
    encoder, db = str(saved_encoder(tmp_path / "encoder")), tmp_path / "videos.db"
    for i in range(3):
        shades(tmp_path / "videos" / f"{i}.mp4", 2, hue=i % 2, seed=i)
    embedder = Embedder(choose_settings(encoder, Budget(tokens=6), GRID, 2.0, True), precision="fp32")
    with VideoDatabase(db, create=True) as database:
        update_index(database, tmp_path / "videos", embedder, progress=False)
        hits = search(database, embedder, SENTENCES[0], count=3)
    with (
        serving("secret", checkpoint=encoder, db=str(db)) as address,
        opened(browser, address) as (page, errors),
    ):
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-hint")).to_contain_text("does not accept")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        page.fill("#text", SENTENCES[0])
        page.keyboard.press("Enter")
        expect(page.locator("#results li")).to_have_count(3)
        assert page.locator("#results b").all_inner_texts() == [Path(hit.path).name for hit in hits]
        expect(page.locator("#answer")).to_be_hidden()  # It has no classes.
        page.set_input_files("#file", clip)
        expect(page.locator("#kept")).to_contain_text("tokens kept")
        assert all("401" in error for error in errors), errors
