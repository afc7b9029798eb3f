"""The classes of ``metaworld``: what the robot arm does, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Task:
    """One task of Meta-World, which is one class.

    Attributes:
        name: Its name there, without the version.
        clauses: What the arm does, as said after "a robot arm".
        opposite: The task that undoes it, if there is one.
    """

    name: str
    clauses: tuple[str, ...]
    opposite: str | None = None


TASKS: tuple[Task, ...] = (
    Task("assembly", ("puts a ring over a peg", "fits a ring with a handle onto a peg"), "disassemble"),
    Task("basketball", ("puts a ball through a hoop", "drops a basketball into the hoop")),
    Task(
        "bin-picking",
        ("moves a cube from one bin into another", "takes a cube out of a bin for the next bin"),
    ),
    Task("box-close", ("puts a lid on a box", "closes a box with its lid")),
    Task("button-press", ("presses a button on the side of a box", "pushes a button in from the front")),
    Task("button-press-topdown", ("presses a button from above", "pushes a button down")),
    Task(
        "button-press-topdown-wall",
        ("presses a button from above, past a wall", "reaches over a wall and pushes a button down"),
    ),
    Task(
        "button-press-wall",
        ("presses a button behind a wall", "reaches around a wall and pushes a button in"),
    ),
    Task("coffee-button", ("presses the button of a coffee machine", "starts a coffee machine")),
    Task(
        "coffee-pull",
        ("pulls a mug away from a coffee machine", "takes a mug back from under a coffee machine"),
        "coffee-push",
    ),
    Task(
        "coffee-push",
        ("pushes a mug under a coffee machine", "moves a mug up to a coffee machine"),
        "coffee-pull",
    ),
    Task("dial-turn", ("turns a dial", "rotates a dial on the table")),
    Task("disassemble", ("takes a ring off a peg", "lifts a ring with a handle from a peg"), "assembly"),
    Task("door-close", ("closes a door", "pushes a door shut"), "door-open"),
    Task("door-lock", ("locks a door", "turns the knob of a door to lock it"), "door-unlock"),
    Task("door-open", ("opens a door", "pulls a door open"), "door-close"),
    Task("door-unlock", ("unlocks a door", "turns the knob of a door to unlock it"), "door-lock"),
    Task("drawer-close", ("closes a drawer", "pushes a drawer in"), "drawer-open"),
    Task("drawer-open", ("opens a drawer", "pulls a drawer out"), "drawer-close"),
    Task("faucet-close", ("closes a faucet", "turns a faucet off"), "faucet-open"),
    Task("faucet-open", ("opens a faucet", "turns a faucet on"), "faucet-close"),
    Task("hammer", ("hammers a nail into a block", "drives a nail in with a hammer")),
    Task("hand-insert", ("lowers its gripper into a hole", "reaches down into a hole in the table")),
    Task("handle-press", ("presses a handle down", "pushes a handle down"), "handle-pull"),
    Task(
        "handle-press-side",
        ("presses a handle down from the side", "pushes a sideways handle down"),
        "handle-pull-side",
    ),
    Task("handle-pull", ("pulls a handle up", "lifts a handle"), "handle-press"),
    Task(
        "handle-pull-side",
        ("pulls a handle up from the side", "lifts a sideways handle"),
        "handle-press-side",
    ),
    Task("lever-pull", ("pulls a lever up", "swings a lever upwards")),
    Task(
        "peg-insert-side",
        ("inserts a peg sideways into a hole", "plugs a peg into the side of a block"),
        "peg-unplug-side",
    ),
    Task(
        "peg-unplug-side",
        ("pulls a peg out of a hole sideways", "unplugs a peg from the side of a block"),
        "peg-insert-side",
    ),
    Task("pick-out-of-hole", ("lifts a puck out of a hole", "picks something up from inside a hole")),
    Task("pick-place", ("picks up a puck and holds it elsewhere", "lifts a puck and carries it off")),
    Task(
        "pick-place-wall",
        ("picks up a block and carries it over a wall", "lifts a block to the other side of a wall"),
    ),
    Task(
        "plate-slide",
        ("slides a plate into a goal", "pushes a plate forwards into a goal"),
        "plate-slide-back",
    ),
    Task(
        "plate-slide-back",
        ("slides a plate back out of a goal", "drags a plate backwards from a goal"),
        "plate-slide",
    ),
    Task(
        "plate-slide-back-side",
        ("slides a plate sideways out of a goal", "drags a plate out of a goal to the side"),
        "plate-slide-side",
    ),
    Task(
        "plate-slide-side",
        ("slides a plate sideways into a goal", "pushes a plate to the side into a goal"),
        "plate-slide-back-side",
    ),
    Task("push", ("pushes a puck forwards", "pushes a puck across the table"), "push-back"),
    Task("push-back", ("pulls a block back towards itself", "drags a block backwards"), "push"),
    Task("push-wall", ("pushes a block around a wall", "moves a block along the table past a wall")),
    Task("reach", ("reaches for a point in the air", "moves its gripper somewhere and touches nothing")),
    Task("reach-wall", ("reaches over a wall for a point in the air", "moves its gripper past a wall")),
    Task("shelf-place", ("puts a block on a shelf", "lifts a block onto a shelf")),
    Task("soccer", ("pushes a ball into a goal", "shoots a soccer ball into a goal")),
    Task("stick-pull", ("pulls a jug with a stick", "uses a stick to drag a jug closer"), "stick-push"),
    Task("stick-push", ("pushes a jug with a stick", "uses a stick to shove a jug away"), "stick-pull"),
    Task("sweep", ("sweeps a block off the table", "sweeps a block to the edge of the table")),
    Task("sweep-into", ("sweeps a block into a hole", "sweeps a block across the table into a hole")),
    Task("window-close", ("closes a window", "slides a window shut"), "window-open"),
    Task("window-open", ("opens a window", "slides a window open"), "window-close"),
)

TASK_NAMES: tuple[str, ...] = tuple(task.name for task in TASKS)
"""Class names; the class index is the place in this list."""

_TEMPLATES = (
    "A robot arm {clause}.",
    "A robot {clause}.",
    "The arm of a robot {clause}.",
    "A robotic gripper {clause}.",
    "On a table, a robot arm {clause}.",
)


def captions(task: Task, rng: np.random.Generator) -> list[str]:
    """One to three captions of a video of the task, no two alike."""
    count = int(rng.integers(1, 4))
    templates = rng.permutation(len(_TEMPLATES))[:count]
    return [_TEMPLATES[template].format(clause=str(rng.choice(task.clauses))) for template in templates]
