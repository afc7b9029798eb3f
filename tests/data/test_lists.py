"""Lists as spreadsheets, pandas, R and people write them. No file is opened as a video."""

from __future__ import annotations

import csv
import io
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sources import listed, touch, write

from fluxvit.data.check import _columns
from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.lists import ROLES
from fluxvit.data.formats.registry import read_source

VIDEOS = ("a.mp4", "b.mp4", "my video.mp4", "x, y.mp4", "d/e.mp4", "#h.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(*(tmp_path / name for name in VIDEOS))
    return tmp_path


def read(folder: Path, content: str | bytes, name: str = "train.csv", **options) -> VideoList:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_source(folder / name, **options)


AS_NUMBERS = {"a.mp4": 0, "b.mp4": 1}


@pytest.mark.parametrize(
    "content",
    [
        "video_path,target\na.mp4,0\nb.mp4,1\n",
        "Filename;Class ID;Comment\na.mp4;0;x\nb.mp4;1;\n",
        "label\tpath\n0\ta.mp4\n1\tb.mp4\n",
        "path|label\na.mp4|0\nb.mp4|1\n",
        "path label\na.mp4   0\nb.mp4 1\n",
        ",path,label\n0,a.mp4,0.0\n1,b.mp4,1.0\n",  # pandas' index
        "Unnamed: 0.1,Unnamed: 0,path,label\n0,0,a.mp4,0\n1,1,b.mp4,1\n",
        "path,label,split\na.mp4,0,train\nb.mp4,1,train\n",
        "path,label,subset\na.mp4,0,kinetics\nb.mp4,1,kinetics\n",
        "path,label,\na.mp4,0,\nb.mp4,1,\n",
        "path , label\n a.mp4 , 0\n b.mp4 , 1 \n",
        "# two clips\npath,label\na.mp4,0\n#c.mp4,7\nb.mp4,1\n",
        "path,label\r\n\r\na.mp4,0\r\n,\r\nb.mp4,1\r\n",
        "path,label\ra.mp4,0\rb.mp4,1",
        "\ufeffpath,label\na.mp4,0\nb.mp4,1\n",
        "path,label\na.mp4,0\nb.mp4,1\n".encode("utf-16"),
        'path,note,label\na.mp4,"two\n\nlines, and ""quotes""",0\nb.mp4,,1\n',
        "youtube_id,label\na,0\nb,1\n",
        "path,label\na.mp4,+0\nb.mp4,1.\n",
        "# a list of the release\na.mp4 0\n\nb.mp4 1\n",
    ],
)  # fmt: skip
def test_tables_of_all_kinds(folder: Path, content: str | bytes) -> None:
    videos = read(folder, content)
    assert (listed(videos), videos.labels, videos.name) == (AS_NUMBERS, (), "csv")


@pytest.mark.parametrize(
    "content",
    [
        'path,label\na.mp4,"fly, high"\nb.mp4,run\n',
        '"a.mp4","fly, high"\n"b.mp4","run"\n',
        "path\tlabel\na.mp4\tfly, high\nb.mp4\trun\n",
        "a.mp4;fly, high\nb.mp4;run\n",
    ],
)
def test_names_of_classes_may_hold_delimiters(folder: Path, content: str) -> None:
    videos = read(folder, content)
    assert (listed(videos), videos.labels) == (AS_NUMBERS, ("fly, high", "run"))


def test_columns_can_be_chosen(folder: Path) -> None:
    content = "id,path,label,Coarse Label\n7,a.mp4,3,0\n8,b.mp4,4,1\n"
    assert listed(read(folder, content)) == {"a.mp4": 3, "b.mp4": 4}
    for choice in (
        "label=Coarse Label",
        "path=path,label=coarse_label",
        " path = path , label = coarse label",
    ):
        assert listed(read(folder, content, columns=_columns(tuple(choice.split(","))))) == AS_NUMBERS
    videos = read(folder, "path,label,remark\na.mp4,0,A cat.\n", columns={"caption": "remark"})
    assert [(entry.label, entry.captions) for entry in videos.entries] == [(-1, ("A cat.",))]

    for columns, message in (
        ({"label": "fine"}, "train.csv: its first row does not name the columns fine"),
        ({"labels": "id"}, f"columns: no labels; choose {', '.join(ROLES)}"),
    ):
        with pytest.raises(ValueError, match=message):
            read(folder, content, columns=columns)
    with pytest.raises(ValueError, match="columns can be chosen for lists read as csv, not as mixture"):
        read(folder, "a 1 2\n", format="mixture", columns={"path": "1"})
    for text in ("path", "path=", "=x", "path=a,,label=b"):
        with pytest.raises(ValueError, match="give names of columns, such as path=video,label=class"):
            _columns(text)


def test_a_column_of_splits_chooses_rows_and_classes_are_numbered_over_all(folder: Path) -> None:
    content = "path,label,Split\na.mp4,run,Train\nb.mp4,jump,validation\nx.mp4,walk,test\ny.mp4,walk,\n"
    with pytest.raises(ValueError, match=r"which of its splits\? Choose with --split train or val or test"):
        read(folder, content, "all.csv")
    videos = read(folder, content, "all.csv", split="val")
    assert (listed(videos), videos.labels, videos.split) == ({"b.mp4": 0}, ("jump", "run", "walk"), "val")
    assert videos.notes == ("took the 1 of 4 rows that are of split val",)
    # The name of the list tells it, too.
    assert listed(read(folder, content, "train.csv")) == {"a.mp4": 1}
    with pytest.raises(ValueError, match=r"no split 'dev'; choose train or val or test"):
        read(folder, content, split="dev")


def test_suffixes_in_capital_letters(folder: Path) -> None:
    assert listed(read(folder, "path,label\na.mp4,0\nb.mp4,1\n", "TRAIN.CSV")) == AS_NUMBERS
    assert len(read(folder, '[{"video": "a.mp4", "caption": "x"}]', "TRAIN.JSON").entries) == 1


def test_captions_and_segments_are_read_by_their_columns(folder: Path) -> None:
    videos = read(folder, "filepath\ttitle\na.mp4\tA man, running\nb.mp4\tA cat\na.mp4\tA runner\n")
    assert [entry.captions for entry in videos.entries] == [("A man, running", "A runner"), ("A cat",)]
    videos = read(folder, "path,start,end,label\na.mp4,0.5,2,0\nb.mp4,-1,-1,1\n")
    assert listed(videos) == AS_NUMBERS
    assert [(entry.start, entry.end) for entry in videos.entries] == [(0.5, 2.0), (None, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.mp4,0\nb.mp4\n", r"line 3: expected 2 cells .* \(path, label\), not 1.*: 'b.mp4'"),
        ("path,label\na.mp4,0\nb.mp4,1,2\n", r"line 3: expected 2 cells .*, not 3; .* quotes: 'b.mp4,1,2'"),
        ("a.mp4,0\n\nthis is no row\n", r"line 3: expected a path and a label, .*: 'this is|not 'this is"),
        ("a.mp4,9,1,2,0\n", r"line 1: expected a path and a label, or names of the columns in the first row"),
        (
            "clip,kind\na.mp4,0\n",
            "line 1: expected a path and a label, .* such as path,label, not 'clip,kind'",
        ),
        ("path,label\na.mp4,0\nb.mp4,\n", "line 3: no label in the column label"),
        ("path,label\na.mp4,0\n,1\n", "line 3: no path in the column path"),
        ("path,label\na.mp4,0\nb.mp4,dog\n", "line 3: the label is 'dog', but others are numbers"),
        ("path,label\na.mp4,0\nb.mp4,nan\n", "line 3: the label is 'nan', but others are numbers"),
        ("path,label\na.mp4,0.5\nb.mp4,1.5\n", "line 2: the label is '0.5', .* integers from 0 to"),
        ('path,label\n"a.mp4,0\nb.mp4,1\n', "line 2: a quotation mark that is never closed"),
        ("path,start,label\na.mp4,soon,0\n", "line 2: 'soon' is not a number of seconds"),
        ("path,label\ncafé.mp4,0\n".encode("latin-1"), "line 2: not UTF-8 text; .* save .* iconv"),
        ("path,label\na.mp4,0\n".encode("utf-16-le"), "line 1: not UTF-8 text"),
        ("a.mp4,0\n".encode("utf-16")[:-1], "not UTF-8 text"),
        (b"\x1f\x8b\x08\0", "unpack the file if it is compressed"),
        (b"<!DOCTYPE html>\n<html>", "expected a path and a label, .*, not '<!DOCTYPE html>'"),
        (b"\n \n", "the list is empty"),
        (b"# nothing\n", "the list is empty"),
        ("path,label\n", "it lists no videos"),
    ],
)
def test_the_odd_line_is_named(folder: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(folder, content)
    assert str(folder / "train.csv") in str(error.value)
    assert "\n" not in str(error.value)


# Any names and labels, in any dialect -----------------------------------------------------------------------

LETTERS = string.ascii_letters + string.digits + " ,;\t|'\"()-_éß漢"
STEMS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda text: text == text.strip() and text[0] != '"')
CLASSES = st.text(LETTERS + "\n", min_size=1, max_size=12).filter(
    lambda text: (
        text == text.strip() and not text.replace(".", "").lstrip("+-").isdecimal() and text[0] != "#"
    )
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(STEMS, st.one_of(st.integers(0, 999), CLASSES)), min_size=1, max_size=8),
    as_numbers=st.booleans(),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    header=st.sampled_from([["path", "label"], ["", "video", "class"], ["label", "file name", "note"]]),
)
def test_what_any_program_writes_is_read_back(
    tmp_path: Path,
    rows: list[tuple[str, int | str]],
    as_numbers: bool,
    delimiter: str,
    quoting: int,
    ending: str,
    encoding: str,
    header: list[str],
) -> None:
    paths = [f"{stem}.mp4" for stem, _ in rows]
    labels = [len(str(label)) if as_numbers else f"c{label}" for _, label in rows]
    if ending == "\r":  # Before Python 3.13 the writer leaves other line ends without quotes.
        labels = [label if isinstance(label, int) else label.replace("\n", " ") for label in labels]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=ending)
    writer.writerow(header)
    for number, (path, label) in enumerate(zip(paths, labels, strict=True)):
        cells = {"path": path, "video": path, "file name": path, "label": label, "class": label, "": number}
        writer.writerow([cells.get(name, "a note, 7") for name in header])
    (tmp_path / "videos").mkdir(exist_ok=True)
    touch(tmp_path / "videos" / paths[0])
    (tmp_path / "list.csv").write_bytes(text.getvalue().encode(encoding))
    videos = read_source(tmp_path / "list.csv", root=tmp_path / "videos")
    assert [entry.path.name for entry in videos.entries] == paths
    if as_numbers:
        assert [entry.label for entry in videos.entries] == labels
    else:
        assert [videos.labels[entry.label] for entry in videos.entries] == labels


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stems=st.lists(st.text(LETTERS.replace('"', "").replace("\t", ""), min_size=1, max_size=12), min_size=1),
    delimiter=st.sampled_from(", ;\t"),
    count=st.integers(1, 9),
)
def test_lists_of_the_release_may_hold_delimiters_in_paths(
    tmp_path: Path, stems: list[str], delimiter: str, count: int
) -> None:
    names = [f"k{stem}.mp4" for stem in stems]
    (tmp_path / "videos").mkdir(exist_ok=True)
    touch(tmp_path / "videos" / names[0])
    lines = [f"{name}{delimiter}{label % count}" for label, name in enumerate(names)]
    videos = read_source(write(tmp_path / "list.txt", *lines), root=tmp_path / "videos")
    assert [(e.path.name, e.label) for e in videos.entries] == [(n, i % count) for i, n in enumerate(names)]


@pytest.mark.parametrize("label", ["10000000", "9" * 30, "9" * 5000])
def test_indices_that_no_class_has_are_refused(folder: Path, label: str) -> None:
    with pytest.raises(ValueError, match=r"train\.csv, line 1: the label is .* from 0 to 9999999"):
        read(folder, f"a.mp4,{label}\nb.mp4,1\n")


def test_file_urls_are_paths(folder: Path) -> None:
    videos = read(folder, f"path,label\nfile://{folder}/a.mp4,x\nb.mp4,y\n")
    assert listed(videos) == AS_NUMBERS
