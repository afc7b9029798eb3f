"""The files of the page: complete, self-contained, and without text that becomes markup."""

from __future__ import annotations

import re
from pathlib import Path

import fluxvit

PAGE = Path(fluxvit.__file__).parent / "serving" / "page"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir()}


def test_the_page_refers_only_to_its_own_files() -> None:
    markup = TEXTS["index.html"]
    links = re.findall(r'(?:src|href)="([^"#]+)"', markup)
    assert {"page/page.css", "page/page.js"} <= set(links)
    imports = [f"page/{name}" for text in TEXTS.values() for name in re.findall(r'from "\./(.*)"', text)]
    for link in (*links, *imports):
        assert link.removeprefix("page/") in TEXTS, f"{link} is not there"
    for name, text in TEXTS.items():
        addresses = {*re.findall(r"https?://[^\s\"']+", text), *re.findall(r"url\(.*?\)|@import.*", text)}
        assert addresses <= {"http://www.w3.org/2000/svg"}, f"{name} loads something else"


def test_text_of_the_server_never_becomes_markup() -> None:
    for name, text in TEXTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


def test_every_element_that_the_script_names_is_in_the_markup() -> None:
    named = set(re.findall(r'\$\("#([\w-]+)', TEXTS["page.js"]))
    assert named
    assert named <= set(re.findall(r'id="([\w-]+)"', TEXTS["index.html"]))
