"""Rules after the model: what an operator knows for certain and does not want to retrain for.

One TOML file per model, ``<rules folder>/<model>.toml``. Each rule looks for keywords or a regular expression in the
text and then changes the answer; rules act in the order of the file, each on what those before it left. What fired is
in the response, with its reason and place, and is counted. The model's own scores are never changed.

A classifier's rule gives the text another label (``relabel``) or takes a label away, so that the next best stands
(``veto``). Where a text may have several labels, a rule gives one more (``add``), takes one away (``veto``), or puts
one in the place of those that were given, or of those in ``when`` (``relabel``). A tagger's rule marks each match as an
entity (``add``), gives entities that touch a match another type (``relabel``), or removes them (``veto``). A rule of a
multi-task model acts on the label or on the entities: its own label tells which.
"""

from __future__ import annotations

import logging
import re
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.decode import Classified, Tagged
from bundle.errors import RulesInvalid
from bundle.manifest import Task

log = logging.getLogger("slipway.rules")

Action = Literal["add", "veto", "relabel"]
# How often a rule file is looked at, in seconds.
LOOK_SECONDS = 1.0
# Matches of one rule in one text that are acted on; a rule that fires more often is a mistake.
MOST_MATCHES = 1000


class Rule(BaseModel):
    """One rule of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=64, description="how the response and the metrics call it")
    reason: str = Field(min_length=1, description="why, for whoever reads the response")
    action: Action
    label: str = Field(description="the label (or entity type) to set, to take away or to mark")
    keywords: tuple[str, ...] = Field(default=(), description="fires where one of them stands in the text")
    pattern: str = Field(default="", description="or where this regular expression matches (Python's re)")
    when: tuple[str, ...] = Field(default=(), description="only for answers (entities) that have one of these labels")
    ignore_case: bool = False

    @model_validator(mode="after")
    def _one_way_to_match(self) -> Self:
        if bool(self.keywords) == bool(self.pattern):
            raise ValueError("give either keywords or pattern")
        if not all(self.keywords):
            raise ValueError("an empty keyword stands everywhere")
        try:
            found = self.matcher()
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from None
        if found.match(""):
            raise ValueError("pattern matches an empty text, and so everywhere")
        return self

    def matcher(self) -> re.Pattern[str]:
        """The rule's keywords or pattern, compiled."""
        # Longest first, so that a keyword that begins with another one is found whole.
        words = "|".join(re.escape(word) for word in sorted(self.keywords, key=len, reverse=True))
        return re.compile(self.pattern or words, re.IGNORECASE if self.ignore_case else 0)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule that changed an answer: where it matched (code points of the text)."""

    rule: str
    action: Action
    label: str
    reason: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Ruled:
    """An answer after the rules: the indexes of the labels that are given, the entities, and what fired."""

    chosen: tuple[int, ...]
    tagged: tuple[Tagged, ...]
    fired: tuple[Fired, ...]


class RuleSet:
    """The rules of one model.

    Args:
        rules: in the order in which they act.
        task: what the model answers; every label must be one of its own.
    """

    def __init__(self, rules: Sequence[Rule], task: Task) -> None:
        self.rules = tuple(rules)
        self._task = task
        self._matchers = [rule.matcher() for rule in rules]

    def apply(self, text: str, classified: Classified | None, tagged: Sequence[Tagged]) -> Ruled:
        """Lets every rule act on one answer; ``classified`` is None of a tagger."""
        fired: list[Fired] = []
        entities = list(tagged)
        labels = _Labels(self._task, classified) if classified else None
        for rule, matcher in zip(self.rules, self._matchers, strict=True):
            if labels is None or _means_entities(rule, self._task):
                for start, end in _matches(matcher, text):
                    entities, changed = _on_entities(rule, entities, start, end)
                    if changed:
                        fired.append(_fired(rule, start, end))
            else:
                place = next(_matches(matcher, text), None)
                if place and labels.changed_by(rule):
                    fired.append(_fired(rule, *place))
        chosen = tuple(sorted(labels.given)) if labels else ()
        return Ruled(chosen, tuple(sorted(entities, key=lambda item: (item.start, item.end))), tuple(fired))


class _Labels:
    """The labels that are given to one text, while the rules act on them."""

    def __init__(self, task: Task, classified: Classified) -> None:
        self._names, self._several = task.labels, task.kind == "multi-label"
        self._scores = classified.scores
        self._vetoed: set[int] = set()
        self.given = set(classified.chosen)

    def changed_by(self, rule: Rule) -> bool:
        """Lets a rule that matched act; whether it changed anything."""
        before, index = set(self.given), self._names.index(rule.label)
        meant = {number for number in before if not rule.when or self._names[number] in rule.when}
        if rule.when and not meant:
            return False
        if rule.action == "add":
            self.given.add(index)
        elif rule.action == "relabel":
            if meant:
                self.given = (before - meant) | {index}
        elif self._several:
            self.given.discard(index)
        else:
            self._veto_the_only(index)
        return self.given != before

    def _veto_the_only(self, index: int) -> None:
        """Takes away the one label that a text has: the best one that no rule took away stands, if there is one."""
        self._vetoed.add(index)
        if index in self.given and len(self._vetoed) < len(self._names):
            left = [-np.inf if number in self._vetoed else score for number, score in enumerate(self._scores)]
            self.given = {int(np.argmax(left))}


def _means_entities(rule: Rule, task: Task) -> bool:
    """Whether a rule acts on the entities. A name that is also a label's is an entity type only where one is added."""
    return rule.label in task.entity_types and (rule.action == "add" or rule.label not in task.class_labels)


def _on_entities(rule: Rule, entities: list[Tagged], start: int, end: int) -> tuple[list[Tagged], bool]:
    if rule.action == "add":
        # What a rule marks is certain: what overlaps it gives way; what is marked already stays.
        if any((item.start, item.end, item.label) == (start, end, rule.label) for item in entities):
            return entities, False
        kept = [item for item in entities if item.end <= start or item.start >= end]
        return [*kept, Tagged(start, end, rule.label, 1.0)], True
    result, changed = [], False
    for item in entities:
        touched = item.start < end and item.end > start and (not rule.when or item.label in rule.when)
        if touched and rule.action == "veto" and item.label == rule.label:
            changed = True
        elif touched and rule.action == "relabel" and item.label != rule.label:
            result.append(Tagged(item.start, item.end, rule.label, item.score))
            changed = True
        else:
            result.append(item)
    return result, changed


def _matches(matcher: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for number, match in enumerate(matcher.finditer(text)):
        if number == MOST_MATCHES:
            return
        if match.end() > match.start():
            yield match.span()


def _fired(rule: Rule, start: int, end: int) -> Fired:
    return Fired(rule.name, rule.action, rule.label, rule.reason, start, end)


def read_rules(file: Path, task: Task) -> RuleSet:
    """Reads and checks a rule file.

    Raises:
        RulesInvalid: with the file, the rule and what is wrong with it.
    """
    try:
        parsed = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RulesInvalid(file, "", str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RulesInvalid(file, where, first["msg"].removeprefix("Value error, ")) from error
    names: set[str] = set()
    for rule in parsed.rule:
        if rule.name in names:
            raise RulesInvalid(file, rule.name, "two rules have this name")
        names.add(rule.name)
        if reason := _why_not(rule, task):
            raise RulesInvalid(file, rule.name, reason)
    return RuleSet(parsed.rule, task)


def _why_not(rule: Rule, task: Task) -> str:
    """What keeps a rule from acting on the answers of a task; empty when nothing does."""
    every = dict.fromkeys((*task.class_labels, *task.entity_types))
    for label in (rule.label, *rule.when):
        if label not in every:
            return f"the model has no label {label!r}; it has {', '.join(every)}"
    on_entities = _means_entities(rule, task)
    if rule.label in task.entity_types and not on_entities:
        return f"{rule.label!r} is a label and an entity type; which one is meant, only the action add tells"
    for label in rule.when:
        if label not in (task.entity_types if on_entities else task.class_labels):
            kind = "entities" if on_entities else "labels"
            return f"{rule.label!r} acts on {kind}, and {label!r} in when is none of them"
    if rule.action == "add" and not on_entities and task.kind != "multi-label":
        return "a classifier has nothing to add to; use relabel"
    return ""


class LiveRules:
    """A model's rule file, read again when it changes.

    A new version that is not valid is refused with a line in the log, and the last good one goes on acting.

    Raises:
        RulesInvalid: the file is not valid at the start.
    """

    def __init__(self, file: Path, task: Task) -> None:
        self.file, self._task = file, task
        self._stamp = self._now()
        self.rules = read_rules(file, task) if self._stamp else RuleSet((), task)
        self.invalid = ""
        self._looked = time.monotonic()

    def current(self) -> RuleSet:
        """The rules in force."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reload()
        return self.rules

    def _reload(self) -> None:
        try:
            self.rules = read_rules(self.file, self._task) if self._stamp else RuleSet((), self._task)
        except RulesInvalid as error:
            self.invalid = str(error)
            log.error("%s; the rules before it stay in force", error)
        else:
            self.invalid = ""
            log.warning("%s: %d rules are in force", self.file, len(self.rules.rules))

    def _now(self) -> tuple[int, int] | None:
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size
