"""Real texts → a seeded sequence of short and long requests.

A short request is one sentence cut from a text, a long one is the whole text. The same seed gives the same sequence
on every run: per user in a closed loop, per arrival in an open one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import TextsUnusable

# A sentence with its closing mark; line breaks end one too.
_SENTENCE = re.compile(r"[^。！？!?\n\r]+[。！？!?]*")
# Shorter pieces are headings, dates and debris; longer ones are not short.
SENTENCE_CHARS = (8, 120)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: ``kind`` is ``short`` or ``long``; ``place`` is its number in the pool of its kind."""

    kind: str
    place: int
    text: str
    pair: str | None

    @property
    def chars(self) -> int:
        return len(self.text) + len(self.pair or "")

    @property
    def body(self) -> bytes:
        """The body of the request to the native route."""
        inputs: object = self.text if self.pair is None else [{"text": self.text, "pair": self.pair}]
        return json.dumps({"inputs": inputs}, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Mix:
    """The pools that requests are drawn from.

    Attributes:
        left_out: texts longer than ``max_chars``.
    """

    short: tuple[Ask, ...]
    long: tuple[Ask, ...]
    short_share: float
    seed: int
    left_out: int

    def stream(self, who: int | str) -> Iterator[Ask]:
        """Requests without end; the same for the same seed and ``who``."""
        dice = random.Random(f"{self.seed}/{who}")
        while True:
            pool = self.short if dice.random() < self.short_share else self.long
            yield pool[dice.randrange(len(pool))]


def read_mix(file: Path, *, short_share: float, seed: int, max_chars: int, pairs: bool = False) -> Mix:
    """Reads a JSONL file of rows with ``text`` (and ``pair``); other keys are not looked at.

    Args:
        short_share: share of short requests, 0 to 1.
        max_chars: texts with more code points are left out and counted.
        pairs: whether the model compares two texts, so that every row needs ``pair``.

    Raises:
        TextsUnusable: with the file, and the line where one is at fault.
    """
    short: list[Ask] = []
    long: list[Ask] = []
    left_out = 0
    for text, pair in _read(file, pairs):
        if len(text) + len(pair or "") > max_chars:
            left_out += 1
            continue
        long.append(Ask("long", len(long), text, pair))
        if pair is None:
            short += [Ask("short", len(short) + more, piece, None) for more, piece in enumerate(sentences(text))]
        else:
            short.append(Ask("short", len(short), _first_sentence(text), _first_sentence(pair)))
    if not long:
        raise TextsUnusable(file, f"holds no text of at most {max_chars} characters")
    # Texts without a sentence of fitting length (headlines, say) are themselves the short requests.
    return Mix(tuple(short or (Ask("short", a.place, a.text, a.pair) for a in long)), tuple(long), short_share, seed,
               left_out)  # fmt: skip


def sentences(text: str) -> list[str]:
    """The sentences of a text that are neither debris nor long."""
    low, high = SENTENCE_CHARS
    return [piece for match in _SENTENCE.finditer(text) if low <= len(piece := match.group().strip()) <= high]


def _first_sentence(text: str) -> str:
    found = sentences(text)
    return found[0] if found else text[: SENTENCE_CHARS[1]]


def _read(file: Path, pairs: bool) -> Iterator[tuple[str, str | None]]:
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise TextsUnusable(file, f"not JSON: {error}", number) from error
                text = row.get("text") if isinstance(row, dict) else None
                if not isinstance(text, str) or not text.strip():
                    raise TextsUnusable(file, 'has no "text"', number)
                pair = row.get("pair") if pairs else None
                if pairs and (not isinstance(pair, str) or not pair.strip()):
                    raise TextsUnusable(file, 'has no "pair", and the model compares two texts', number)
                yield text, pair
    except (OSError, UnicodeDecodeError) as error:
        raise TextsUnusable(file, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
