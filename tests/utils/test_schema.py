"""Types and ranges, read from files and given in code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import pytest
import torch

from fluxvit.utils import schema


@dataclass(frozen=True)
class Setting:
    count: Annotated[int, msgspec.Meta(ge=1, le=9)]
    rate: schema.Finite = 0.5
    sides: tuple[int, int] = (1, 2)
    names: tuple[schema.Name, ...] = ()
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    on: bool = False

    def __post_init__(self) -> None:
        schema.check(self)
        if self.count == 7:
            raise ValueError("seven is taken")


class File(msgspec.Struct, forbid_unknown_fields=True):
    settings: list[Setting]
    by_name: dict[str, Setting] = {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 4.0}, "count is 4.0, expected an integer from 1 to 9"),
        ({"count": "4"}, "count is '4', expected an integer from 1 to 9"),
        ({"count": True}, "count is True, expected an integer"),
        ({"count": None}, "count is None, expected an integer"),
        ({"count": 10**50}, "count is an integer of 167 bits, expected an integer"),
        ({"count": 7}, "seven is taken"),
        ({"count": 1, "rate": float("nan")}, "rate is nan, expected a finite number"),
        ({"count": 1, "rate": float("inf")}, "rate is inf, expected a finite number"),
        ({"count": 1, "rate": 10**400}, "rate is an integer of 1329 bits, expected a finite number"),
        ({"count": 1, "sides": [1]}, r"sides is \[1\], expected a list of 2, each an integer"),
        ({"count": 1, "sides": [1, "x"]}, r"sides\[1\] is 'x', expected an integer"),
        ({"count": 1, "names": "abc"}, "names is 'abc', expected a list, each text that is not empty"),
        ({"count": 1, "names": ["a", ""]}, r"names\[1\] is '', expected text that is not empty"),
        ({"count": 1, "kind": "c"}, "kind is 'c', expected one of 'a', 'b'"),
        ({"count": 1, "limit": "x"}, "limit is 'x', expected an integer"),
        ({"count": 1, "on": 1}, "on is 1, expected true or false"),
    ],
)
def test_files_and_code_get_the_same_errors(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Setting(**values)
    with pytest.raises(ValueError, match=rf"^x\.json: (\w+\.)?(\w+: )?{message}") as error:
        schema.convert(values, Setting, "x.json")
    assert "\n" not in str(error.value)


def test_the_place_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        (
            {"settings": [{"count": 1}, {"count": 0}]},
            r"settings\[1\]\.count is 0, expected an integer from 1",
        ),
        ({"settings": [{"count": 7}]}, r"settings\[0\]: seven is taken"),
        ({"settings": [{}]}, r"settings\[0\]\.count is missing"),
        ({}, "settings is missing"),
        ({"settings": 3}, "settings is 3, expected a list, each an object"),
        ({"settings": [], "speed": 3}, "it has no setting called 'speed'"),
        ({"settings": [], "by_name": {"x": {"count": 0}}}, "by_name"),
        ([], r"it is \[\], expected an object"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"a\.json: {message}"):
            schema.read(path, File)
    with pytest.raises(ValueError, match=r"^x: model has no setting called 'speed'"):
        schema.convert({"count": 1, "speed": 2}, Setting, "x", "model")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"1" * 5000, "too many digits"),
        (b'{"count": NaN}', "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b'"\\ud800"', "not a Unicode character"),
        (b"<html>", "Expecting value"),
    ],
)
def test_text_that_is_no_json_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: cannot be read as JSON \(.*{reason}") as error:
        schema.read(path, File)
    assert "\n" not in str(error.value)


def test_only_files_of_a_sane_size_are_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a folder"):
        schema.load(tmp_path)
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(schema.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="more than 256 MiB"):
        schema.load(tmp_path / "a.json")


def test_nothing_is_lost_when_values_are_taken_over() -> None:
    made = Setting(
        np.int64(3), np.float32(2), [1, torch.tensor(2)], ["x"], limit=np.uint8(4), on=np.bool_(True)
    )
    assert made == Setting(3, 2.0, (1, 2), ("x",), limit=4, on=True)
    assert [type(value) for value in (made.count, made.rate, made.sides[1], made.on)] == [
        int,
        float,
        int,
        bool,
    ]
    assert schema.convert({"count": 3, "sides": [1, 2], "rate": 2}, Setting) == Setting(3, 2.0)


def test_keys_that_stand_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": {"count": 1, "count": 2}}')
    with pytest.raises(ValueError, match=r"x\.json: cannot be read as JSON \(the key 'count' stands twice\)"):
        schema.load(tmp_path / "x.json")
