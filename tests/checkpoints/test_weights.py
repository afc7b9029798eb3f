"""Weights as other people save them, and as we do."""

from __future__ import annotations

import argparse
import collections
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.state_dicts import unwrap
from fluxvit.checkpoints.weights import read_tensors, read_weights
from fluxvit.models.fluxvit import FluxViT

STATE = {
    "patch_embed.proj.weight": torch.zeros(2, 3),
    "blocks.0.norm1.weight": torch.ones(3),
    "head.0.weight": torch.full((1, 3), 5.0),
}
MEAN = {name: value + 1 for name, value in STATE.items()}


def named(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def saved(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "weights.pth", **options)
    return folder / "weights.pth"


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"module": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        {"model": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"epoch": 1, "state_dict": {"model": {"module": named("net._orig_mod.")}}},
        named("module."),
        named("_orig_mod."),
        named("_orig_mod.module."),
        named("backbone.encoder."),
        {"model": STATE, "model_ema": MEAN},
        {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in STATE.items()},
        {"state_dict": named("model."), "hyper_parameters": {"lr": 1}, "pytorch-lightning_version": "2.5"},
        {**STATE, "layer._extra_state": None, "version": 2},
    ],
)
def test_wrappers_are_taken_away(content: dict, tmp_path: Path) -> None:
    found = read_weights(saved(tmp_path, content))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_prefixes_stay_where_they_belong_to_the_names() -> None:
    # Not all tensors have it, and no known tensor does; and a network may have a part of such a name.
    for state in (
        {"encoder.weight": torch.ones(1), "head.weight": torch.ones(1)},
        {"patch_embed.proj.weight": torch.ones(1), "encoder.blocks.0.norm1.weight": torch.ones(1)},
        {"vision_encoder.patch_embed.proj.weight": torch.ones(1), "text_encoder.a": torch.ones(1)},
        {"_orig_mod.a": torch.ones(1), "a": torch.ones(1)},
    ):
        assert unwrap(state, "x.pth").keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "no state dict among its entries"),
        ([1, 2], "a value of type list"),
        (torch.ones(2), "a single tensor"),
        ({"epoch": 3}, "no state dict among its entries \\('epoch'"),
        ({"first": STATE, "second": MEAN}, "no state dict among its entries \\('first', 'second'"),
        ({"a": torch.ones(1).expand(10**9)}, "larger than what the file holds"),
        ({"a": torch.ones(2, 2).to_sparse()}, "save plain tensors"),
    ],
)
def test_what_holds_no_weights_is_named(content: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"weights\.pth: .*{reason}") as error:
        read_weights(saved(tmp_path, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_data_beside_weights_is_no_obstacle(legacy: bool, tmp_path: Path) -> None:
    beside = {
        "loss": np.float32(1.5),
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=1, out="runs"),
        "size": torch.Size([2]),
        "ordered": collections.OrderedDict(a=1),
        "set": {1, 2},
        "complex": 1j,
        "bytes": b"ab",
        "dtype": torch.bfloat16,
    }
    path = saved(tmp_path, {"model": STATE, **beside}, _use_new_zipfile_serialization=not legacy)
    assert read_weights(path).keys() == STATE.keys()


class Trap:
    """Runs when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class Harmless:
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_classes_that_could_run_code_are_refused_by_name(legacy: bool, tmp_path: Path) -> None:
    for guest, name in (
        (Trap(tmp_path / "sprung"), "Path.touch|getattr"),
        (Harmless(), "Harmless"),
        (np.array([Harmless()], object), "_reconstruct"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (collections.defaultdict(Harmless), "defaultdict"),
    ):
        path = saved(tmp_path, {"model": STATE, "guest": guest}, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=rf"({name}).*(could run code|again).*") as error:
            read_weights(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.mkdir(), "is a folder, not a file"),
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b"\n <!DOCTYPE html><html>"), "a web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"), "git lfs pull"),
        (lambda p: p.write_text('{"a": 1}'), "JSON text"),
        (lambda p: p.write_bytes(pickle.dumps([1])), "a pickle that torch.save did not write"),
        (lambda p: p.write_text("weights"), "not a PyTorch file, and no other kind"),
        (lambda p: zipped(p, "x/code/a.py", "x/constants.pkl", "x/data.pkl"), "a TorchScript program"),
        (lambda p: zipped(p, "a.txt"), "zip archive without weights"),
        (lambda p: zipped(p, "x/data.pkl", "x/version"), "damaged"),
    ],
)
@pytest.mark.parametrize("read", [read_weights, read_tensors])
def test_other_files_are_told_apart(make: Any, reason: str, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    make(path)
    if read is read_tensors and reason == "damaged":
        reason = "not a safetensors file: PyTorch's torch.save wrote it"
    with pytest.raises(ValueError, match=rf"^\S*weights\.pth: .*({reason})") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_cut_file_is_called_so(tmp_path: Path) -> None:
    whole = saved(tmp_path, STATE).read_bytes()
    for size in (10, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut off or damaged: the end of its archive is missing"):
            read_weights(tmp_path / "cut.pth")
    safetensors.torch.save_file(STATE, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for size in (20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged or not complete"):
            read_weights(tmp_path / "cut.safetensors")


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").keys() == STATE.keys()
    torch.save(STATE, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").keys() == STATE.keys()
    with pytest.raises(ValueError, match=r"not a safetensors file: PyTorch's torch\.save wrote it"):
        read_tensors(tmp_path / "a.safetensors")


# Writing ---------------------------------------------------------------------------------------------------


class Average(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model


def compiled_blocks(model: FluxViT) -> FluxViT:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block)
    return model


def tied(model: FluxViT) -> FluxViT:
    model.heads[1] = model.heads[0]
    model.blocks[1].norm1.weight = model.blocks[0].norm1.weight
    return model


def strided(model: FluxViT) -> FluxViT:
    weight = model.head_norm.weight
    model.head_norm.weight = nn.Parameter(torch.ones(2 * len(weight))[::2])
    model.head_norm.bias = nn.Parameter(torch.ones(9 * len(weight))[: len(weight)])
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        compiled_blocks,
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model)),
        torch.optim.swa_utils.AveragedModel,
        Average,
        tied,
        strided,
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.requires_grad_(False),
    ],
)
def test_wrapped_models_are_written_so_that_they_can_be_read(wrap: Any, tmp_path: Path) -> None:
    model = wrap(small_model())
    wanted = {
        name.replace("_orig_mod.", "").replace("module.", ""): x for name, x in model.state_dict().items()
    }
    wanted.pop("n_averaged", None)
    loaded = Checkpoint.load(Checkpoint(model).save(tmp_path / "c")).model
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in wanted.items()
    )
    assert all(p.requires_grad for p in loaded.parameters())
    # Tied tensors do not swell the file, parts of larger ones do not bring these along.
    assert (tmp_path / "c/model.safetensors").stat().st_size < 10_000 + sum(x.nbytes for x in wanted.values())


def nan(model: FluxViT) -> FluxViT:
    with torch.no_grad():
        model.head_norm.weight[0] = float("nan")
    return model


def grown(model: FluxViT) -> FluxViT:
    model.blocks.append(model.blocks[0])
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nan, r"head_norm\.weight holds 1 numbers that are not finite"),
        (lambda model: model.to("meta"), "has no content"),
        (grown, r"model and configuration disagree: .* unexpected \(blocks\.2"),
        (lambda model: nn.Linear(2, 2), "Linear is not a FluxViT"),
        (lambda model: nn.DataParallel(nn.Linear(2, 2)), "Linear is not a FluxViT"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(change: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        Checkpoint(change(small_model())).save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "facts",
    [
        {"labels": [1, 2, 3, 4, 5]},
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (float("nan"), 0.0, 0.0)},
    ],
)
def test_facts_that_could_not_be_read_back_are_not_written(facts: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not written: "):
        Checkpoint(small_model(), **facts).save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_weights_of_a_wrapped_model_in_a_folder_are_read(tmp_path: Path) -> None:
    folder = Checkpoint(small_model()).save(tmp_path / "c")
    state = read_tensors(folder / "model.safetensors")
    safetensors.torch.save_file(named("_orig_mod.module.", state), folder / "model.safetensors")
    assert Checkpoint.load(folder).model.state_dict().keys() == state.keys()


def test_no_network_far_larger_than_its_weights_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Checkpoint(small_model()).save(tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["model"].update(depth=1000, embed_dim=1024, pool_dim=1024)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(FluxViT, "__init__", lambda *_: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=r"disagree: a network of [\d,]+ parameters, and weights of"):
        Checkpoint.load(folder)


def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    folder = Checkpoint(small_model()).save(tmp_path / "c")
    state = read_tensors(folder / "model.safetensors")
    state["head_norm.weight"] = state["head_norm.weight"].long()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"head_norm\.weight is torch\.int64"):
        Checkpoint.load(folder)


def test_dictionaries_that_hold_each_other_end() -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with pytest.raises(ValueError, match="holds no state dict among its entries"):
        unwrap(content, "x.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_of_other_types_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(dtype) for name, value in STATE.items()}
    with pytest.raises(
        ValueError, match=rf"weights\.pth: tensor .* is {dtype}; weights must be floating-point"
    ):
        read_weights(saved(tmp_path, {"model": state}))


def test_packed_weights_are_not_written(tmp_path: Path) -> None:
    class Packed(nn.Identity):
        def get_extra_state(self) -> torch.dtype:
            return torch.int8

    model = small_model()
    model.packed = Packed()
    with pytest.raises(ValueError, match=r"packed\._extra_state is .* no tensor"):
        Checkpoint(model).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        text = "Error while serializing: I/O error: No space left on device (os error 28)"
        raise safetensors.SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        Checkpoint(small_model()).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())
