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
    """

    name: str
    clauses: tuple[str, ...]

    @classmethod
    def parse(cls, line: str) -> Task:
        """A line such as ``door-close: closes a door | pushes a door shut``."""
        name, _, clauses = line.partition(": ")
        return cls(name, tuple(clauses.split(" | ")))


# What the arm does in each task, in two ways.
_TASKS = """
assembly: puts a ring over a peg | fits a ring with a handle onto a peg
basketball: puts a ball through a hoop | drops a basketball into the hoop
bin-picking: moves a cube from one bin into another | takes a cube out of a bin for the next bin
box-close: puts a lid on a box | closes a box with its lid
button-press: presses a button on the side of a box | pushes a button in from the front
button-press-topdown: presses a button from above | pushes a button down
button-press-topdown-wall: presses a button from above, past a wall | \
reaches over a wall and pushes a button down
button-press-wall: presses a button behind a wall | reaches around a wall and pushes a button in
coffee-button: presses the button of a coffee machine | starts a coffee machine
coffee-pull: pulls a mug away from a coffee machine | takes a mug back from under a coffee machine
coffee-push: pushes a mug under a coffee machine | moves a mug up to a coffee machine
dial-turn: turns a dial | rotates a dial on the table
disassemble: takes a ring off a peg | lifts a ring with a handle from a peg
door-close: closes a door | pushes a door shut
door-lock: locks a door | turns the knob of a door to lock it
door-open: opens a door | pulls a door open
door-unlock: unlocks a door | turns the knob of a door to unlock it
drawer-close: closes a drawer | pushes a drawer in
drawer-open: opens a drawer | pulls a drawer out
faucet-close: closes a faucet | turns a faucet off
faucet-open: opens a faucet | turns a faucet on
hammer: hammers a nail into a block | drives a nail in with a hammer
hand-insert: lowers its gripper into a hole | reaches down into a hole in the table
handle-press: presses a handle down | pushes a handle down
handle-press-side: presses a handle down from the side | pushes a sideways handle down
handle-pull: pulls a handle up | lifts a handle
handle-pull-side: pulls a handle up from the side | lifts a sideways handle
lever-pull: pulls a lever up | swings a lever upwards
peg-insert-side: inserts a peg sideways into a hole | plugs a peg into the side of a block
peg-unplug-side: pulls a peg out of a hole sideways | unplugs a peg from the side of a block
pick-out-of-hole: lifts a puck out of a hole | picks something up from inside a hole
pick-place: picks up a puck and holds it elsewhere | lifts a puck and carries it off
pick-place-wall: picks up a block and carries it over a wall | lifts a block to the other side of a wall
plate-slide: slides a plate into a goal | pushes a plate forwards into a goal
plate-slide-back: slides a plate back out of a goal | drags a plate backwards from a goal
plate-slide-back-side: slides a plate sideways out of a goal | drags a plate out of a goal to the side
plate-slide-side: slides a plate sideways into a goal | pushes a plate to the side into a goal
push: pushes a puck forwards | pushes a puck across the table
push-back: pulls a block back towards itself | drags a block backwards
push-wall: pushes a block around a wall | moves a block along the table past a wall
reach: reaches for a point in the air | moves its gripper somewhere and touches nothing
reach-wall: reaches over a wall for a point in the air | moves its gripper past a wall
shelf-place: puts a block on a shelf | lifts a block onto a shelf
soccer: pushes a ball into a goal | shoots a soccer ball into a goal
stick-pull: pulls a jug with a stick | uses a stick to drag a jug closer
stick-push: pushes a jug with a stick | uses a stick to shove a jug away
sweep: sweeps a block off the table | sweeps a block to the edge of the table
sweep-into: sweeps a block into a hole | sweeps a block across the table into a hole
window-close: closes a window | slides a window shut
window-open: opens a window | slides a window open
"""

TASKS = tuple(Task.parse(line) for line in _TASKS.split("\n") if line)
"""The tasks by class index."""

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
