"""Files that name classes, in the forms that data sets ship them in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fluxvit.data.class_names import read_class_names

ABC = ("archery", "brush hair", "catch, then throw")


def names(folder: Path, file: str, content: str | bytes | list | dict) -> tuple[str, ...]:
    path = folder / file
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_class_names(path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.txt", "archery\nbrush hair\n  catch, then throw\n\n\n"),
        ("x.txt", "\ufeffarchery\r\nbrush hair\r\ncatch, then throw"),
        ("x.txt", "archery\nbrush hair\ncatch, then throw\n".encode("utf-16")),
        ("x.txt", "2 catch, then throw\n0 archery\n\n1 brush hair\n"),
        ("x.txt", "0: archery\n1: brush hair\n2: catch, then throw\n"),
        ("x.csv", 'id,name\n0,archery\n2,"catch, then throw"\n1,brush hair\n'),
        ("x.csv", '0,archery\n1,brush hair\n\n2,"catch, then throw"\n'),
        ("x.csv", 'class,label_id,videos\narchery,0,many\nbrush hair,1,few\n"catch, then throw",2,few\n'),
        ("x.csv", "id;name\n0;archery\n1;brush hair\n2;catch, then throw\n"),
        (
            "x.csv",
            ',name,id\n0,brush hair,1.0\n1,archery,0.0\n2,"catch, then throw",2.0\n',
        ),
        ("x.tsv", "0\tarchery\n1\tbrush hair\n2\tcatch, then throw\n"),
        ("x.json", list(ABC)),
        ("x.json", {"0": ABC[0], "1": ABC[1], "2": ABC[2]}),
        ("x.json", {ABC[2]: "2", ABC[0]: "0", ABC[1]: "1"}),
        ("x.json", {ABC[0]: 0, f'"{ABC[1]}"': 1, ABC[2]: 2}),
        ("x.json", {"model_type": "x", "id2label": {"0": ABC[0], "1": ABC[1], "2": ABC[2]}}),
        ("x.jsonl", json.dumps({"manifest": 1, "classes": ABC}) + '\n{"path": "x"}'),
    ],
)  # fmt: skip
def test_forms(file: str, content: str | bytes | list | dict, tmp_path: Path) -> None:
    assert names(tmp_path, file, content) == ABC


def test_numbers_may_belong_to_names(tmp_path: Path) -> None:
    assert names(tmp_path, "x.txt", "Route 66\nArea 51\n") == ("Route 66", "Area 51")
    assert names(tmp_path, "x.txt", "100 metres\nhurdles\n") == ("100 metres", "hurdles")
    assert names(tmp_path, "x.json", ["100 metres", "200 metres"]) == ("100 metres", "200 metres")


def test_a_checkpoint_names_classes(checkpoint: Path) -> None:
    assert read_class_names(checkpoint) == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.txt", "a\n\nb\n", "the name of class 1 is ''"),
        ("x.txt", "a\nb\na\n", "classes 0 and 2 are both 'a'"),
        ("x.txt", "\n \n", "names no classes"),
        ("x.txt", b"\xff\xfe\xff", "not UTF-8 text"),
        ("x.txt", "1 a\n2 b\n", "there is no class 0; classes are numbered from 0"),
        ("x.txt", "0 a\n2 b\n", "indices go up to 2, but there is no class 1"),
        ("x.txt", "0 a\n0 b\n", "'a' and 'b' both have the index 0"),
        (
            "x.txt",
            "100 metres\n200 metres\n",
            "no class 0; classes are numbered from 0 without a gap, and where numbers belong to the names",
        ),
        ("x.csv", "a,b\nc,d\n", "no columns of indices and names, as in id,name"),
        ("x.csv", "id,name\n0,a\n1,b,c\n", "expected 2 cells"),
        ("x.json", [], "names no classes"),
        ("x.json", ["a", 3], "the name of class 1 is 3, not a text"),
        ("x.json", ["a", " "], "the name of class 1 is ' '"),
        ("x.json", "a", "expected a list"),
        ("x.json", {"a": "b"}, "the index of 'a' is 'b', not a number of a class"),
        ("x.json", {"0": "a", "1": None}, "the name of class 1 is None"),
    ],
)
def test_what_is_no_list_of_names(
    file: str, content: str | bytes | list, message: str, tmp_path: Path
) -> None:
    if file.endswith("json") and isinstance(content, str):
        content = json.dumps(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        names(tmp_path, file, content)
    assert str(tmp_path / file) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt: no such file of class names"):
        read_class_names(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"config\.json: no such file of class names"):
        read_class_names(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.csv", 'id,name\n0,a\n1,"b\n', "x.csv, line 3: a quotation mark that is never closed"),
        (
            "x.csv",
            f"id,name\n0,a\n1,{'b' * 200_000}\n",
            "x.csv, line 3: a quotation mark that is never closed or lies within a cell (field larger",
        ),
        ("x.yaml", "- a\n- b\n", "x.yaml: class names are not read from YAML"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        names(tmp_path, file, content)
