"""The recipe's table ``[search]``: which keys of ``[train]`` and ``[text]`` are tried, and in which range."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from finetune.strict import Strict

TABLES = ("train", "text")


class Range(Strict):
    """What one key may be: a range, or a list of choices."""

    low: float | None = None
    high: float | None = None
    log: bool = Field(default=False, description="even over orders of magnitude, as rates should be")
    step: float | None = Field(default=None, gt=0, description="only low, low + step, …")
    choices: tuple[bool | int | float | str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("give either choices, or low and high")
        if self.choices is None and not (self.low or 0) < (self.high or 0):
            raise ValueError("low must be below high")
        if self.log and (self.step is not None or (self.low is not None and self.low <= 0)):
            raise ValueError("log needs a low above 0 and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        numbers = (self.low, self.high, self.step if self.step is not None else 1.0)
        return not self.log and self.step is not None and all(float(one or 0).is_integer() for one in numbers)

    def ends(self) -> list[Any]:
        """Values that must be allowed if all of them are."""
        if self.choices is not None:
            return list(self.choices)
        return [int(one) if self.whole else one for one in (self.low or 0.0, self.high or 0.0)]


class Search(Strict):
    """How a recipe's keys are searched by ``python -m finetune search``."""

    trials: int = Field(default=20, ge=1, description="trainings in all, over all processes and interruptions")
    unpruned: int = Field(default=4, ge=1, description="first trials that are never cut short")
    warmup: float = Field(
        default=0.25, ge=0, lt=1, description="share of a trial that passes before it may be cut short"
    )
    space: dict[str, Range] = Field(min_length=1, description="by dotted key, such as train.learning_rate")

    @model_validator(mode="after")
    def _known_tables(self) -> Self:
        for key in self.space:
            table, _, name = key.partition(".")
            if table not in TABLES or not name:
                raise ValueError(f"search.space.{key}: only keys of {' and '.join(TABLES)} can be searched")
            if key in ("train.seed", "train.metric", "train.watch_rows", "train.eval_every"):
                raise ValueError(f"search.space.{key}: decides how trials are measured and must be the same in all")
        return self
