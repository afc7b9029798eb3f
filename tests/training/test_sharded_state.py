"""States in folders are read without trusting them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from fluxvit.training.state import find_state
from fluxvit.utils.files import write_json

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is", "ignore:TypedStorage")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "state-3"
    dcp.save(
        {"model/a": torch.arange(12.0).view(3, 4), "model/b": torch.ones(2).bfloat16()}, checkpoint_id=folder
    )
    write_json(folder / "about.json", {"step": 3})
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run" / "state-3"))


def read(folder: Path) -> torch.Tensor:
    target = torch.zeros(3, 4)
    saved = find_state(folder.parent)
    assert saved is not None
    saved.read({"model/a": target})
    return target


def test_a_state_is_read(folder: Path) -> None:
    assert torch.equal(read(folder), torch.arange(12.0).view(3, 4))
    saved = find_state(folder.parent)
    assert saved is not None
    assert saved.layout["model/b"] == (torch.Size([2]), torch.bfloat16)


class Trap:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.found = (function, args)

    def __reduce__(self) -> Any:
        return self.found


@pytest.mark.parametrize("place", ["whole", "planner_data", "storage_meta", "state_dict_metadata"])
def test_code_in_the_description_is_not_run(place: str, folder: Path, tmp_path: Path) -> None:
    trap = Trap(Path.touch, tmp_path / "sprung")
    content: Any = trap
    if place != "whole":
        content = pickle.loads((folder / ".metadata").read_bytes())
        setattr(content, place, {"x": trap} if place == "state_dict_metadata" else trap)
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"\.metadata holds more than .*(Path\.touch|getattr).*run code"):
        find_state(folder.parent)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "function", [eval, __import__, torch.load, torch.hub.load, pickle.loads, shutil.rmtree]
)
def test_functions_are_refused_by_name(function: Callable[..., Any], folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Trap(function, "0")))
    with pytest.raises(ValueError, match=f"{function.__name__}, which is not loaded"):
        find_state(folder.parent)


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    content = pickle.loads((folder / ".metadata").read_bytes())
    edit(content)
    (folder / ".metadata").write_bytes(pickle.dumps(content))


def redirect(path: str) -> Callable[[Any], None]:
    def edit(content: Any) -> None:
        for info in content.storage_data.values():
            info.relative_path = path

    return edit


def as_bytes(content: Any) -> None:
    # PyTorch unpickles such entries without limits.
    content.state_dict_metadata["model/a"] = metadata.BytesStorageMetadata()


def huge(content: Any) -> None:
    content.state_dict_metadata["model/a"].size = torch.Size([10**9, 10**9])


def too_far(content: Any) -> None:
    next(iter(content.storage_data.values())).length = 10**12


def encrypted(content: Any) -> None:
    info = next(iter(content.storage_data.values()))
    info.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (redirect("../../secret"), "points to '../../secret'"),
        (redirect("/etc/passwd"), "points to '/etc/passwd'"),
        (redirect("__1_0.distcp"), "__1_0.distcp is missing"),
        (as_bytes, "'model/a' is not a tensor"),
        (huge, "larger than the files"),
        (too_far, "is cut off"),
        (encrypted, "compressed or encrypted"),
        (lambda c: c.storage_data.clear(), "a part of model/a is missing"),
        (lambda c: setattr(c, "storage_data", None), "other types"),
        (lambda c: setattr(c, "state_dict_metadata", [1]), "other types"),
        (lambda c: c.state_dict_metadata.update({"model/a": 3}), "'model/a' is not a tensor"),
        (lambda c: c.storage_data.update({"x": filesystem._StorageInfo("a", 0, 1)}), "another type"),
    ],
)
def test_descriptions_that_do_not_fit_the_files(
    edit: Callable[[Any], None], reason: str, folder: Path
) -> None:
    change(folder, edit)
    with pytest.raises(ValueError, match=rf"\.metadata: .*{reason}.*to start anew") as error:
        find_state(folder.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".metadata", b"", r"\.metadata is damaged"),
        (".metadata", b"junk", r"\.metadata is damaged"),
        (".metadata", pickle.dumps([1, 2]), "is a list, not a description"),
        (".metadata", None, "not a complete state"),
        ("about.json", None, "no such file"),
        ("about.json", b"[]", "expected an object"),
        ("about.json", b'{"step": -1}', "step is -1"),
        ("about.json", b'{"step": "3"}', "step is '3'"),
        ("__0_0.distcp", b"short", "cut off"),
        ("__0_0.distcp", None, "is missing"),
    ],
)
def test_damaged_folders(name: str, content: bytes | None, reason: str, folder: Path) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        find_state(folder.parent)


def test_cut_descriptions(folder: Path) -> None:
    whole = (folder / ".metadata").read_bytes()
    for size in range(0, len(whole), 37):
        (folder / ".metadata").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"\.metadata is damaged"):
            find_state(folder.parent)


def test_damaged_tensors(folder: Path) -> None:
    path = folder / "__0_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=r"state-3 is damaged .* to start anew") as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_states_of_other_models_are_named(folder: Path) -> None:
    saved = find_state(folder.parent)
    assert saved is not None
    with pytest.raises(ValueError, match=r"another model: model/a is \[2\] here, \[3, 4\] there"):
        saved.read({"model/a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"another model: model/c is \[2\] here, missing there"):
        saved.read({"model/c": torch.zeros(2)})
