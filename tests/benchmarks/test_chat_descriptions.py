"""The judge of free descriptions of MotionWorld."""

from __future__ import annotations

from chat_descriptions import judge

VIDEO = {
    "object_name": "teapot",
    "acts": [
        {"act": "depth", "orientation": "recede"},
        {"act": "slide", "orientation": "left"},
        {"act": "pass", "orientation": "right to left"},
    ],
}
TELLS = "First the grassy teapot gets smaller and smaller, then it slides to the left, and finally {}."
PASSES = "an axe crosses behind it, going left"


def test_a_right_description_has_everything() -> None:
    assert judge(TELLS.format(PASSES), VIDEO) == {
        "object": (1, 1),
        "recall": (3, 3),
        "precision": (3, 3),
        "order": (2, 2),
        "all of it": (1, 1),
    }


def test_wrong_parts_count_where_they_are() -> None:
    wrong = judge(TELLS.format("it spins clockwise").replace("teapot", "axe"), VIDEO)
    assert wrong["object"] == (0, 1)
    assert wrong["recall"] == wrong["precision"] == (2, 3)
    assert wrong["all of it"] == (0, 1)
    opposite = judge(TELLS.format(PASSES).replace("to the left", "to the right"), VIDEO)
    assert opposite["recall"] == opposite["precision"] == (2, 3)
    late = judge(
        f"At first {PASSES}; after that the teapot moves away; at last it slides to the left.", VIDEO
    )
    assert (late["recall"], late["order"]) == ((3, 3), (1, 2))
    assert late["all of it"] == (0, 1)
    assert judge("nothing happens", VIDEO)["precision"] == (0, 0)
