"""What can go wrong between a caller and a gateway.

ClientError
├── Refused       the server answered, with a problem: the caller's to mend, or it was busy for too long
└── Unreachable   no answer: nobody listens, the connection broke, or it took too long
"""

from __future__ import annotations

import httpx

from slipway_client.answers import Problem, problem_of


class ClientError(Exception):
    """Root of the tree."""


class Refused(ClientError):
    """The server answered with a problem.

    Attributes:
        problem: what it said; see `slipway_client.answers.Problem`.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.status} {problem.kind}: {problem.detail}")

    @classmethod
    def of(cls, response: httpx.Response) -> Refused:
        """The error of a response whose body was read; of anything in between that speaks no problem+json as well."""
        try:
            return cls(problem_of(response.json()))
        except (ValueError, TypeError, AttributeError):
            return cls(Problem(response.status_code, "http", response.reason_phrase, response.text[:200]))


class Unreachable(ClientError):
    """No answer came."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(f"{url} does not answer: {reason}")
