"""Captions of a video, and questions about it with their answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fluxvit.synthetic.builder import SPLITS
from fluxvit.synthetic.motionworld.acts import ACTS, ORDER
from fluxvit.synthetic.motionworld.scene import Event, SampleSpec, Scene
from fluxvit.synthetic.motionworld.shapes import OBJECTS

# Clauses by act and orientation. {it} stands for the main object, {visitor} for the visitor of a pass.
CLAUSES: dict[tuple[str, int], tuple[str, ...]] = {
    ("slide", 0): ("{it} slides to the left", "{it} leaves on the left and comes back from the right"),
    ("slide", 1): ("{it} slides to the right", "{it} leaves on the right and comes back from the left"),
    ("lift", 0): ("{it} moves up", "{it} rises out of sight and returns from below"),
    ("lift", 1): ("{it} moves down", "{it} sinks out of sight and returns from above"),
    ("depth", 0): ("{it} comes closer", "{it} approaches the camera", "{it} grows larger and larger"),
    ("depth", 1): ("{it} moves away", "{it} recedes into the distance", "{it} gets smaller and smaller"),
    ("spin", 0): ("{it} spins clockwise", "{it} makes a full turn clockwise"),
    ("spin", 1): ("{it} spins counter-clockwise", "{it} makes a full turn counter-clockwise"),
    ("pass", 0): (
        "{visitor} passes {where} {it} from left to right",
        "{visitor} crosses {where} {it}, going right",
    ),
    ("pass", 1): (
        "{visitor} passes {where} {it} from right to left",
        "{visitor} crosses {where} {it}, going left",
    ),
    ("hop", 0): ("{it} hops once", "{it} makes one slow hop"),
    ("hop", 1): ("{it} hops twice", "{it} makes two quick hops"),
    ("blink", 0): ("{it} vanishes once", "{it} disappears one time"),
    ("blink", 1): ("{it} vanishes twice", "{it} disappears two times"),
}

# A question, and the answers for orientations 0 and 1.
_QUESTIONS: dict[str, tuple[str, tuple[str, str]]] = {
    "slide": ("Which way does the {name} slide?", ("to the left", "to the right")),
    "lift": ("Does the {name} move up or down?", ("up", "down")),
    "depth": ("Does the {name} come closer or go away?", ("it comes closer", "it goes away")),
    "spin": ("Which way does the {name} spin?", ("clockwise", "counter-clockwise")),
    "pass": ("Which way does the {visitor} cross the picture?", ("from left to right", "from right to left")),
    "hop": ("How often does the {name} hop?", ("once", "twice")),
    "blink": ("How often does the {name} vanish?", ("once", "twice")),
}

# Descriptions of the acts without their orientation, for questions that must not reveal it.
_DESCRIPTIONS: dict[str, str] = {
    "slide": "it slides sideways",
    "lift": "it moves vertically",
    "depth": "it changes its distance",
    "spin": "it spins",
    "pass": "another object crosses",
    "hop": "it hops",
    "blink": "it vanishes for a moment",
}

_YES_NO: dict[str, str] = {
    "slide": "Does the {name} slide sideways?",
    "lift": "Does the {name} move up or down out of the picture?",
    "depth": "Does the {name} change its distance to the camera?",
    "spin": "Does the {name} spin?",
    "pass": "Does another object cross the picture?",
    "hop": "Does the {name} hop?",
    "blink": "Does the {name} vanish on the spot?",
}

# Words before the first, a middle and the last of several acts.
_JOINERS = (
    ("First ", ", then ", ", and finally "),
    ("At first ", "; after that ", "; at last "),
    ("", ", then ", ", then "),
)

MAX_QUESTIONS = 6
QUICK, SLOW = 0.55, 1.05
"""Seconds below which a caption may call an act quick, and above which it may call it slow."""


@dataclass(frozen=True)
class Question:
    """A question about a video.

    Attributes:
        question, answer: The texts. The answer is one of the choices.
        choices: At least two answers.
        task: ``object``, ``direction``, ``times``, ``order`` or ``presence``.
    """

    question: str
    answer: str
    choices: tuple[str, ...]
    task: str


def describe(spec: SampleSpec, scene: Scene) -> tuple[list[str], list[Question]]:
    """One to three captions of a video, and three to six questions about it."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(spec.split), spec.index, 1])
    joiners = rng.permutation(len(_JOINERS))[: rng.integers(1, 4)]
    captions = [_caption(rng, scene, _JOINERS[choice]) for choice in joiners]
    return captions, _questions(rng, spec, scene)


def _article(noun: str) -> str:
    # "F" is pronounced "eff", but the noun is "letter F".
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _caption(rng: np.random.Generator, scene: Scene, joiner: tuple[str, str, str]) -> str:
    main = scene.main
    noun = f"{main.texture.adjective} {main.shape}" if rng.random() < 0.5 else main.shape
    opening, middle, final = joiner
    if opening and len(scene.events) > 1:
        text = opening + _clause(rng, scene, scene.events[0], f"the {noun}")
    else:
        text = _clause(rng, scene, scene.events[0], _article(noun))
    for number, event in enumerate(scene.events[1:], 2):
        text += (final if number == len(scene.events) else middle) + _clause(rng, scene, event, "it")
    if rng.random() < 0.3:
        text += f", in front of a {scene.background[0].adjective} background"
    return text[0].upper() + text[1:] + "."


def _clause(rng: np.random.Generator, scene: Scene, event: Event, it: str) -> str:
    wording = str(rng.choice(CLAUSES[event.act, event.orientation]))
    where = "in front of" if scene.visitor_in_front else "behind"
    clause = wording.format(it=it, visitor=_article(scene.visitor.shape), where=where)
    seconds = event.frames / scene.fps
    # The clauses of hops and blinks name their speed already.
    if ACTS[event.act].second == "reverse" and rng.random() < 0.3:
        if seconds < QUICK:
            clause += " quickly"
        elif seconds > SLOW:
            clause += " slowly"
    return clause


def _questions(rng: np.random.Generator, spec: SampleSpec, scene: Scene) -> list[Question]:
    """A question about the object, questions that the label answers, and further ones, in random order."""
    words = {"name": scene.main.shape, "visitor": scene.visitor.shape}
    acts = [event.act for event in scene.events]
    labelled: list[Question] = []
    extra: list[Question] = []
    for event in scene.events:
        question, answers = _QUESTIONS[event.act]
        task = "direction" if ACTS[event.act].second == "reverse" else "times"
        question_of_act = Question(question.format(**words), answers[event.orientation], answers, task)
        (labelled if event.act in spec.factors else extra).append(question_of_act)
    if "order" in spec.factors:
        what = f"Which does the {scene.main.shape} do first: slide sideways or move up or down?"
        choices = tuple(_DESCRIPTIONS[name.removesuffix(" first")] for name in ORDER)
        first = min(acts.index("slide"), acts.index("lift"))
        labelled.append(Question(what, _DESCRIPTIONS[acts[first]], choices, "order"))
    doings = tuple(_DESCRIPTIONS[act] for act in acts)
    if "order" not in spec.factors and len(acts) > 1:
        extra.append(Question("What happens first?", doings[0], doings, "order"))
    if len(acts) > 2:
        extra.append(Question("What happens last?", doings[-1], doings, "order"))

    wrong = rng.choice([name for name in OBJECTS if name != scene.main.shape], 3, replace=False)
    choices = (scene.main.shape, *map(str, wrong))
    what_object = Question("What object is moving?", scene.main.shape, choices, "object")
    absent = [act for act in ACTS if act not in acts]
    present = rng.random() < 0.5 or not absent
    asked_act = str(rng.choice(acts if present else absent))
    whether = Question(
        _YES_NO[asked_act].format(**words), "yes" if present else "no", ("yes", "no"), "presence"
    )

    extra = [whether, *(extra[i] for i in rng.permutation(len(extra)))]
    # Where the acts have too many questions, a random choice is kept, so that a data set asks all of them.
    labelled = [labelled[i] for i in rng.permutation(len(labelled))][: MAX_QUESTIONS - 1]
    count = int(rng.integers(max(3, len(labelled) + 1), MAX_QUESTIONS + 1))
    chosen = [what_object, *labelled, *extra][:count]
    return [_shuffled(rng, chosen[i]) for i in rng.permutation(len(chosen))]


def _shuffled(rng: np.random.Generator, question: Question) -> Question:
    choices = tuple(question.choices[i] for i in rng.permutation(len(question.choices)))
    return replace(question, choices=choices)
