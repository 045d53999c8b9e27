"""How the log is written: lines for people, or one JSON object a line, each with the request that it belongs to.

What stands in a line is decided where it is logged. Texts of callers stand in none, unless the settings ask for them.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any, Literal

from serving.tracing import current

# One line for each request, where the settings ask for it.
requests = logging.getLogger("slipway.requests")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id and trace_id, and the record's facts."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := current.get():
            line |= {"request_id": call.request_id, "trace_id": call.trace_id}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Lines for people; the facts of a record stand behind its message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (a name of the standard library)
        line = super().formatMessage(record)
        facts = dict(getattr(record, "facts", {}))
        if facts and (call := current.get()):
            facts |= {"request_id": call.request_id}
        return " ".join([line, *(f"{name}={value}" for name, value in facts.items())])


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Sets the log up, on the standard error output; replaces what was set up before.

    Raises:
        ValueError: there is no such level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
