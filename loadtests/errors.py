"""What can stop a load test before or after it ran. A constructor takes the facts and writes the sentence."""

from __future__ import annotations

from pathlib import Path


class LoadTestError(Exception):
    """Root of this room's errors; catching it catches every error raised on purpose."""


class RemoteRefused(LoadTestError):
    """The target is not this machine, and nobody said that this is meant."""

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(
            f"{host} is not this machine. A load test of somebody else's server is an attack: "
            "pass --allow-remote if the server is yours"
        )


class GatewayUnreachable(LoadTestError):
    """Nothing useful answers at the address."""

    def __init__(self, host: str, reason: str) -> None:
        self.host, self.reason = host, reason
        super().__init__(f"no gateway at {host}: {reason}. Start one with `make serve`, or name another with --host")


class ModelMissing(LoadTestError):
    """The gateway does not serve that model."""

    def __init__(self, host: str, name: str, known: list[str]) -> None:
        self.name, self.known = name, known
        super().__init__(f"{host} does not serve {name!r}; it serves {', '.join(known) or 'no model'}")


class TextsUnusable(LoadTestError):
    """The file of texts is missing or is not what it should be."""

    def __init__(self, file: str | Path, reason: str, line: int | None = None) -> None:
        self.file, self.reason, self.line = str(file), reason, line
        where = f"{file}:{line}" if line else f"{file}"
        super().__init__(
            f"{where}: {reason}; pass --texts FILE.jsonl with one object per line, "
            '{"text": "…"} (and "pair" where the model compares two texts)'
        )


class AnswerWrong(LoadTestError):
    """The gateway refuses or garbles a request before any load is put on it."""

    def __init__(self, what: str, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(f"{what} is not answered as it should be: {kind}{f' ({detail})' if detail else ''}")


class LocustFailed(LoadTestError):
    """Locust itself ended with an error; the last lines of its log follow."""

    def __init__(self, code: int, log: str) -> None:
        self.code = code
        super().__init__(f"locust ended with exit code {code}; the end of its log:\n{log}")
