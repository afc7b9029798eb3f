"""The server: answers that are the predictor's, and requests that cannot be answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("pebble")

from starlette.testclient import TestClient

from conftest import small_model
from fluxvit import Budget, Predictor
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Measured, Plan
from fluxvit.serving.app import create_app
from fluxvit.serving.config import ServeConfig
from fluxvit.serving.engine import Engine
from fluxvit.serving.service import Service
from fluxvit.video.writer import write_video

CHECKPOINT = "fluxvit_nano_motionworld"
OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def video(path: Path, frames: int = 40, height: int = 48) -> Path:
    pixels = np.random.default_rng(frames).integers(0, 256, (frames, height, 64, 3), np.uint8)
    write_video(path, pixels, 20)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    video(folder / "clip.mp4")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    config = ServeConfig(
        CHECKPOINT,
        allow=(str(folder),),
        decoders=1,
        queue=4,
        batch_tokens=400,
        max_bytes=300_000,
        max_seconds=9,
        max_pixels=100 * 100,
        **OPTIONS,
    )
    return Service(config)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def classify(client: TestClient, file_path: Path, task: str = "classify", **fields: Any) -> Any:
    with file_path.open("rb") as file:
        return client.post(f"/v1/{task}", data=fields, files={"video": (file_path.name, file)})


@pytest.mark.parametrize("budget", ["36", "18 tokens", "0.03gflops", "30/s"])
def test_answers_are_those_of_a_predictor(client: TestClient, folder: Path, budget: str) -> None:
    answer = classify(client, folder / "clip.mp4", budget=budget, top=16, explain=True).json()
    wanted = Predictor(CHECKPOINT, Budget.parse(budget), **OPTIONS)(folder / "clip.mp4")
    scores = {row["label"]: row["score"] for row in answer["labels"]}
    np.testing.assert_allclose([scores[label] for label in wanted.labels], wanted.probabilities, atol=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert answer["kept"]["indices"] == wanted.kept.tolist()
    assert answer["times"] == wanted.times.tolist()
    assert answer["cost"] == {"tokens": wanted.spent.tokens, "gflops": pytest.approx(wanted.spent.gmacs)}
    assert answer["plan"]["grid"] == str(wanted.plan.grid)
    shape = answer["kept"]["shape"]
    assert shape[0] * answer["kept"]["tubelet"] == len(wanted.times)
    assert max(answer["kept"]["indices"]) < np.prod(shape)
    assert answer["kept"]["view"] == pytest.approx({"x": 0.125, "y": 0, "width": 0.75, "height": 1})


def test_vectors_are_those_of_a_predictor(client: TestClient, folder: Path) -> None:
    answer = classify(client, folder / "clip.mp4", "embed", budget="36").json()
    wanted = Predictor(CHECKPOINT, 36, **OPTIONS)(folder / "clip.mp4").embedding
    np.testing.assert_allclose(answer["embedding"], wanted, atol=1e-4)


def test_the_model_and_its_plans(client: TestClient, folder: Path) -> None:
    facts = client.get("/v1/model").json()
    assert (facts["tasks"], len(facts["labels"]), facts["default_budget"]) == (
        ["classify", "embed"],
        16,
        "72 tokens",
    )
    tokens = [row["tokens"] for row in facts["plans"]]
    assert tokens == sorted(tokens)
    assert {72, 36, 18, 9} <= set(tokens)
    # A budget in milliseconds leads to the most expensive plan that was measured to be within it.
    slowest = max(row["milliseconds"] for row in facts["plans"])
    answer = classify(client, folder / "clip.mp4", budget=f"{slowest + 1:.3f}ms").json()
    assert answer["cost"]["tokens"] == tokens[-1]
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    schema = client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    assert schema["multipart/form-data"]["schema"]["properties"]["video"]["format"] == "binary"


def test_stored_plans_are_served_with_their_accuracy(tmp_path: Path) -> None:
    plans = [Plan(SamplingGrid(8, 24, 24), keep, measured=Measured(3, 4)) for keep in (24, 17, 10, 5)]
    folder = Checkpoint(small_model(), plans=plans).save(tmp_path / "checkpoint")
    ladder = Engine(ServeConfig(str(folder), **OPTIONS)).ladder
    assert [plan.keep for plan in ladder] == [5, 10, 17, 24]
    assert {plan.measured.accuracy for plan in ladder if plan.measured} == {0.75}


def test_videos_by_path(client: TestClient, folder: Path, tmp_path: Path) -> None:
    path = folder / "clip.mp4"
    answer = client.post("/v1/classify", json={"path": str(path), "budget": 36, "top": 1})
    assert len(answer.json()["labels"]) == 1
    outside = video(tmp_path / "outside.mp4")
    (folder / "link.mp4").symlink_to(outside)
    for forbidden in (outside, folder / "link.mp4", folder / ".." / "x.mp4", "/etc/passwd", "\0"):
        answer = client.post("/v1/classify", json={"path": str(forbidden)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden_path")
    assert client.post("/v1/classify", json={"path": str(folder / "x.mp4")}).status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"budget": "99999"}, 400, "budget 99999 tokens: the grid 32x32 has 128 tokens"),
        ({"budget": "1e3"}, 400, "budget '1e3': give tokens"),
        ({"budget": "0.00001ms"}, 400, "the cheapest plan takes"),
        ({"budget": "0.1/s"}, 400, "2 s of video get 0.2 tokens; give more tokens per second"),
        ({"budget": "300/s"}, 400, "more than the 400 that a request may cost"),
        ({"bogus": "1"}, 400, "'bogus'"),
        ({"top": "x"}, 400, "'top'"),
        ({"path": "/x"}, 400, "give one of video, path and url; the request has path and video"),
        ({"deadline_ms": "0.01"}, 504, "not answered within 1e-05 s"),
    ],
)
def test_wrong_fields(
    client: TestClient, folder: Path, fields: dict[str, str], status: int, message: str
) -> None:
    answer = classify(client, folder / "clip.mp4", **fields)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_wrong_bodies(client: TestClient, folder: Path) -> None:
    for body, status, message in (
        ({"json": {}}, 400, "none of them"),
        ({"json": []}, 400, "not an object"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"content": b"x" * 70_000, "headers": {"Content-Type": "application/json"}}, 413, "more than"),
        ({"content": b"x"}, 415, "content type"),
        ({"files": {"film": b"x"}}, 400, "call it 'video'"),
        ({"files": {"video": ("a.mp4", b"")}}, 422, "a.mp4: it is empty"),
        ({"files": {"video": ("a.mp4", b"no video")}}, 422, "a.mp4: not a video"),
        ({"files": {"video": ("../../a.mp4", bytes(500_000))}}, 413, "more than"),
        ({"json": {"url": "http://127.0.0.1/x"}}, 403, "opens no addresses"),
    ):
        answer = client.post("/v1/classify", **body)
        assert answer.status_code == status, body
        assert message in answer.json()["error"]["message"]
    assert client.post("/v1/search", json={"text": "x"}).status_code == 404
    assert client.get("/nothing").json()["error"]["message"] == "GET /nothing: Not Found"


def test_videos_beyond_the_limits(client: TestClient, tmp_path: Path) -> None:
    for path, message in (
        (video(tmp_path / "long.mp4", 200, 16), "long.mp4 has 10 seconds; the server takes up to 9"),
        (video(tmp_path / "large.mp4", 2, 160), "large.mp4 has 10240 pixels in a frame; the server takes"),
    ):
        answer = classify(client, path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_large")
        assert message in answer.json()["error"]["message"]


def test_a_full_queue_and_a_stopping_server_refuse(
    client: TestClient, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(service, "_in_flight", 4)
        answer = classify(client, folder / "clip.mp4")
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    with monkeypatch.context() as patch:
        patch.setattr(service, "draining", True)
        assert classify(client, folder / "clip.mp4").status_code == 503
        assert client.get("/ready").status_code == 503
    assert service._in_flight == 0
    lines = client.get("/metrics").text
    assert 'fluxvit_requests_total{status="429",task="classify"} 1.0' in lines
    assert "fluxvit_in_flight 0.0" in lines


def test_requests_carry_the_token(service: Service) -> None:
    # Without the lifespan, so that the service goes on.
    client = TestClient(create_app(service, "secret"))
    assert client.get("/v1/model").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200
    for public in ("/health", "/ready", "/", "/page/page.js"):
        assert client.get(public).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert client.get("/page/page.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("/page/nothing.js").status_code == 404


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--allow .*: no such folder"):
        Service(ServeConfig(CHECKPOINT, allow=(str(tmp_path / "x"),), **OPTIONS))
    with pytest.raises(ValueError, match="the grid 32x32 has 128 tokens"):
        Service(ServeConfig(CHECKPOINT, budget=Budget(tokens=1000), **OPTIONS))
