"""What requests and answers hold; FastAPI makes the OpenAPI description of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _text(value: Any) -> Any:
    # A number of tokens may be a number in JSON.
    return str(value) if type(value) is int else value


class VideoRequest(BaseModel):
    """A video and what to do with it. Exactly one of the file ``video``, ``path`` and ``url`` is given."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, max_length=4096, description="A video below a folder that is allowed.")
    url: str | None = Field(None, max_length=4096, description="An http address, if the server opens them.")
    budget: Annotated[str, BeforeValidator(_text)] | None = Field(
        None, max_length=400, description="What to spend: 64 (tokens), 20gflops, 80ms or 64/s."
    )
    deadline_ms: float | None = Field(None, gt=0, le=3_600_000, description="Give up after this time.")
    explain: bool = Field(False, description="Also say which tokens were kept.")


class ClassifyRequest(VideoRequest):
    """A video to classify."""

    top: int = Field(5, ge=1, le=100_000, description="Number of classes in the answer.")


class ChatRequest(VideoRequest):
    """A question about a video."""

    question: str = Field(min_length=1, max_length=4096)


class SearchRequest(BaseModel):
    """A sentence to search in the indexed videos."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=4096)
    top: int = Field(5, ge=1, le=1000)


class Label(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class PlanAnswer(BaseModel):
    """How a budget was spent: the grid of each clip, and the tokens that were kept of its pool."""

    grid: str
    frames: int
    height: int
    width: int
    tokens: int
    pool: int
    selector: str
    clips: int


class Cost(BaseModel):
    """The cost of all clips; GFLOPs are 1e9 multiply-accumulates."""

    tokens: int
    gflops: float


class Milliseconds(BaseModel):
    """Where the time went. ``queue`` is the wait for the network, ``decode`` includes that for a decoder."""

    queue: float
    decode: float
    network: float
    total: float


class View(BaseModel):
    """The part of a frame that the network saw, as fractions of its width and height."""

    x: float
    y: float
    width: float
    height: float


class Kept(BaseModel):
    """The kept tokens: indices into a pool of ``shape`` (tubelets of all clips, rows, columns)."""

    shape: tuple[int, int, int]
    tubelet: int
    indices: list[int]
    view: View


class VideoAnswer(BaseModel):
    """What every answer about a video holds."""

    plan: PlanAnswer
    cost: Cost
    milliseconds: Milliseconds
    seconds: float = Field(description="Length of the video.")
    times: list[float] = Field(description="Seconds of the sampled frames.")
    kept: Kept | None = None


class ClassifyAnswer(VideoAnswer):
    """The most likely classes, most likely first."""

    labels: list[Label]


class EmbedAnswer(VideoAnswer):
    """The pooled vector of a video; a dual encoder's is a unit vector."""

    embedding: list[float]


class ChatAnswer(VideoAnswer):
    """What the language model says."""

    answer: str


class Hit(BaseModel):
    """A moment in an indexed video."""

    video: str
    start: float
    end: float
    score: float


class SearchAnswer(BaseModel):
    """The nearest moments, nearest first."""

    results: list[Hit]


class PlanRow(BaseModel):
    """A budget, and what its plan costs here."""

    budget: str
    tokens: int
    pool: int
    grid: str
    gflops: float
    milliseconds: float
    accuracy: float | None


class RequestLimits(BaseModel):
    """What a request may hold."""

    bytes: int
    seconds: float
    pixels: int
    frames: int
    tokens: int


class ModelAnswer(BaseModel):
    """What the server serves."""

    name: str
    tasks: list[str]
    labels: list[str]
    parameters: int
    device: str
    default_budget: str
    plans: list[PlanRow]
    limits: RequestLimits


class ErrorBody(BaseModel):
    """A short name for programs, and a sentence for people."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """An error."""

    error: ErrorBody
