"""``examples/ray_serve.py``: the server in a replica of Ray Serve."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fluxvit import Predictor

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
pytest.importorskip("fastapi")

REQUESTS = 100
BUDGETS = (24, 12)


def test_a_replica_answers_as_the_predictor(
    checkpoint: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray_serve
    from ray import serve

    from running_server import free_port
    from serving_load import Connection, form

    monkeypatch.chdir(Path(ray_serve.__file__).parent)  # Ray's processes import it from there.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"checkpoint": str(checkpoint), "decoders": "1", "device": "cpu", "precision": "fp32"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_serve.build(options))

        async def ask_all() -> list:
            bodies = [form(clip.read_bytes(), budget=budget, top=5) for budget in BUDGETS]
            return await asyncio.gather(
                *(Connection(port).ask(*bodies[n % len(bodies)]) for n in range(REQUESTS))
            )

        replies = asyncio.run(ask_all())
    finally:
        serve.shutdown()
        ray.shutdown()
    assert Counter(reply.status for reply in replies) == {200: REQUESTS}
    for n, reply in enumerate(replies):
        scores = {row["label"]: row["score"] for row in reply.content["labels"]}
        wanted = Predictor(checkpoint, BUDGETS[n % len(BUDGETS)], device="cpu", precision="fp32")(clip)
        np.testing.assert_allclose([scores[name] for name in wanted.labels], wanted.probabilities, atol=1e-5)
