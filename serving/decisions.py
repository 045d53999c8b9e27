"""Which version of each model was promoted, kept in a small file, so that a restart serves what was decided.

A promotion that a crash at night undoes would be worse than none. Canaries and shadows are trials that somebody
watches, and end with the process.

    {"news": {"serving": 2, "previous": 1}}
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bundle.errors import BundleError
from bundle.folder import MANIFEST, write_atomic

log = logging.getLogger("slipway.versions")

NAME = "versions.json"


class Decision(BaseModel):
    """What was decided about one model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    serving: int = Field(ge=1)
    previous: int | None = Field(default=None, ge=1, description="what a rollback serves")


_FILE: TypeAdapter[dict[str, Decision]] = TypeAdapter(dict[str, Decision])


class Decisions:
    """The file of decisions.

    Args:
        file: its path; None keeps decisions for this process only.

    Attributes:
        made: the last decision about each model.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.made: dict[str, Decision] = {}

    def read(self) -> None:
        """Fills ``made`` with what was decided so far; with nothing where there is no file.

        Raises:
            BundleError: the file cannot be read or is none of ours.
        """
        if self.file is not None and self.file.exists():
            try:
                self.made = _FILE.validate_json(self.file.read_bytes())
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise BundleError(f"{self.file}: {where or 'document'}: {first['msg']}") from error
            except OSError as error:
                raise BundleError(f"{self.file}: cannot be read: {error.strerror}") from error

    def keep(self, name: str, decision: Decision) -> bool:
        """Writes a decision down; False, with a line in the log, where it will not survive this process."""
        with contextlib.suppress(BundleError):
            # Another gateway may serve the same bundles, and have decided about other models.
            self.read()
        self.made[name] = decision
        if self.file is None:
            return False
        content = {model: made.model_dump(exclude_none=True) for model, made in sorted(self.made.items())}
        try:
            write_atomic(self.file, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            log.warning("%s cannot be written (%s): a restart will not know of this", self.file, error.strerror)
            return False
        return True


def file_of(setting: str, bundles: Path) -> Path | None:
    """Where decisions are kept: as set, else beside the bundles; a bundle that is served by itself has no versions."""
    if setting:
        return Path(setting)
    return None if (bundles / MANIFEST).is_file() else bundles / NAME
