"""The errors that requests are answered with."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        kind: Short name for programs.
        message: One sentence that names the input and the cure.
        retry_after: Seconds after which the same request may succeed.
    """

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after
