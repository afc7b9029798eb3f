"""Annotations as they arrive: other encodings, packed, cut short, or with the faults of hand-made JSON."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fluxvit.data.formats.registry import read_source
from fluxvit.data.formats.text_files import read_annotations, read_text, text_lines

ROWS = [{"video": "a.mp4", "caption": "A dog."}, {"video": "b.mp4", "caption": "A cat."}]


def test_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("é\r\nb\rc\n\n d ".encode(encoding))
        assert read_text(path) == "é\nb\nc\n\n d "
        assert list(text_lines(path)) == ["é", "b", "c", "d"]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS, indent=1),
        "\n".join(map(json.dumps, ROWS)),
        "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    ],
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_json_and_json_lines(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert read_annotations(tmp_path / name) == ROWS
    (tmp_path / name).write_bytes(content.removeprefix("\ufeff").encode("utf-16"))
    assert read_annotations(tmp_path / name) == ROWS


def test_numbers_that_json_does_not_have_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"video": "a.mp4", "caption": NaN, "score": -Infinity}]')
    assert read_annotations(tmp_path / "x.json") == [{"video": "a.mp4", "caption": None, "score": None}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        (json.dumps(ROWS)[:-20], "line 1, column 6.: not JSON: Unterminated string"),
        (json.dumps(ROWS)[:-1], "line 1, column 8.: not JSON: Expecting ',' delimiter"),
        ('[{"video": "a.mp4",\n "caption": "x"},\n]', "line [23], column .*: not JSON"),
        (str(ROWS), "line 1, column 3: not JSON: Expecting property name enclosed in double quotes"),
        ('[{"video": a.mp4}]', "line 1, column 12: not JSON: Expecting value"),
        ("[" * 100_000, "recursion|not JSON"),
        (json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:-4], "line 2: not JSON: Unterminated string"),
        (gzip.compress(json.dumps(ROWS).encode(), mtime=0), "unpack the file if it is compressed"),
        ("\n<!DOCTYPE html><html><body>404", "line 1, column 1: not JSON: .* .'<!DOCTYPE html>"),
        (json.dumps(ROWS).replace("dog", "caf\xe9").encode("latin-1"), "line 1: not UTF-8 text"),
        (json.dumps(ROWS).encode("utf-16-be"), "line 1: not UTF-8 text"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for format in ("auto", "pairs"):
        with pytest.raises(ValueError, match=message) as error:
            read_source(path, format)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        [{"clip": "a.mp4", "sentence": "A dog."}],
        [{"id": "1", "messages": "none", "prompt": "x"}][:0],
        ["a.mp4", "b.mp4"],
        [[1, 2]],
        {"a.mp4": 3},
        7,
    ],
)
def test_a_list_that_nobody_knows_is_not_taken_for_another(tmp_path: Path, content: object) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"format is not recognised; .* caption, conversations.* SSv2"
    ) as error:
        read_source(path)
    if content and isinstance(content, list) and isinstance(content[0], dict):
        assert str(error.value).endswith("its rows have the keys clip, sentence")


def test_names_from_files_cannot_break_a_message(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"clip\n\x1b[2J": "a.mp4"}]))
    with pytest.raises(ValueError, match=r"its rows have the keys clip\\n\\x1b\[2J$"):
        read_source(path)
    path.write_text(json.dumps([{"video": "a\n.mp4", "caption": "x"}]))
    with pytest.raises(ValueError, match=r"such as .*a\\n\.mp4; say with"):
        read_source(path)
