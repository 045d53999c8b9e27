"""Text → tokens → overlapping windows → arrays: one implementation for training, evaluation and serving.

A text is tokenized once, whole; windows are then cut over its tokens here. The tokenizer's own overflow feature is
not used: releases 0.23.1 and 0.23.2 of `tokenizers` lose text between windows. Each window knows the tokens and the
code points that it reads, and `encode` asserts that together they read all of the text.

"overlap" is what Hugging Face calls stride: the number of tokens that two neighbouring windows share.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Tokenizer

from bundle.errors import BundleError, CoverageLost, InvalidText, TextTooLong

if TYPE_CHECKING:
    from bundle.folder import Bundle
    from bundle.manifest import TextSpec

IntArray = npt.NDArray[np.int64]

# Releases that drop text; see the module docstring.
LOSING_TOKENIZERS = ("0.23.1", "0.23.2")

# Where a cut hurts least: after a sentence, else after a clause. Chinese and Latin punctuation, line breaks.
SENTENCE_ENDS = frozenset("。！？.!?…\n\r；;．")
CLAUSE_ENDS = frozenset("，,、：:）)】》」』”’ \t—")
_ENDS = SENTENCE_ENDS | CLAUSE_ENDS
# Characters beyond which a text is tokenized piece by piece, each without holding the GIL.
PIECE_CHARACTERS = 10_000
# Where a BERT pre-tokenizer splits whatever stands around it: after white space or punctuation, before a character
# that nothing before it can join; and between two Chinese characters, so that a text without punctuation is cut too.
# Tokenizing the pieces gives the tokens of the whole.
_PIECE_ENDS = re.compile(r"[\n ,.!?;:，。！？；：、](?=[0-9A-Za-z\u4e00-\u9fff])|[\u4e00-\u9fff](?=[\u4e00-\u9fff])")
# The last part of a window in which a cut may be moved forward to such an end.
CUT_ZONE = 0.25

# What a BERT tokenizer drops by design: white space, control and format characters, combining marks, unassigned. Of
# marks with a width of their own (Mc) it drops one (U+1734, which was without one in its older tables of Unicode), and
# one that normalization moves before another mark it counts at the other's place.
_DROPPABLE = frozenset({"Cc", "Cf", "Cn", "Co", "Mc", "Mn", "Zs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a text.

    Attributes:
        first, last: its tokens, ``tokens[first:last]`` of the windowed side.
        start, end: the code points it reads, end-exclusive; neighbouring windows leave no gap between them.
    """

    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text that was cut into windows.

    Attributes:
        text: the side that the windows run over (the text; for a pair, the longer side).
        ids: int64 (tokens,), without special tokens.
        spans: int64 (tokens, 2), code point offsets of each token into ``text``.
        windows: in reading order, at least one.
        tokens: tokens of the request's text(s), special tokens not counted.
        truncated: whether windows were left out because the caller asked for it.
        other: int64 (m,), the ids of a pair's shorter side, repeated in every window; empty without a pair.
        other_first: whether that shorter side stands first in the model's input.
    """

    text: str
    ids: IntArray
    spans: IntArray
    windows: tuple[Window, ...]
    tokens: int
    truncated: bool
    other: IntArray
    other_first: bool
    is_pair: bool

    @property
    def window_tokens(self) -> IntArray:
        """int64 (windows,): how many tokens of the text each window reads."""
        return np.array([window.last - window.first for window in self.windows], dtype=np.int64)

    @property
    def covered(self) -> float:
        """Share of the windowed side's code points that a window reads: 1.0 unless truncated (`encode` asserts it)."""
        return self.windows[-1].end / len(self.text)

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The code points that the tokens ``[first, last)`` stand for, end-exclusive.

        What belongs to the last character for a reader belongs to it here, though an uncased tokenizer drops it:
        accents, variation selectors, joiners, the tags of a flag.
        """
        end = int(self.spans[last - 1, 1])
        following = int(self.spans[last, 0]) if last < len(self.ids) else len(self.text)
        while end < following and _joins(self.text[end]):
            end += 1
        return int(self.spans[first, 0]), end


@dataclass(frozen=True, slots=True)
class WindowRow:
    """The model's input for one window.

    Attributes:
        ids: int64 (length,), special tokens included, not padded.
        types: int64 (length,), token type ids.
        content: where the window's own tokens stand in ``ids``.
    """

    ids: IntArray
    types: IntArray
    content: slice


class Encoder:
    """Cuts texts into windows as a bundle's manifest says.

    Thread-safe: nothing here is changed by a call, and a long text does not keep other threads from running.
    """

    def __init__(self, tokenizer: Tokenizer, spec: TextSpec) -> None:
        if tokenizers.__version__ in LOSING_TOKENIZERS:
            raise BundleError(
                f"tokenizers {tokenizers.__version__} loses text between windows; install another version"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.spec = spec
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        # bool (vocabulary,): pieces that continue a word, so that a cut before them would split it.
        self._continues = np.zeros(size, dtype=bool)
        for piece, index in tokenizer.get_vocab(with_added_tokens=True).items():
            if piece.startswith("##") and index < size:
                self._continues[index] = True

    @classmethod
    def of(cls, bundle: Bundle) -> Encoder:
        """The encoder of a bundle."""
        return cls(load_tokenizer(bundle.path(bundle.manifest.text.tokenizer.file)), bundle.manifest.text)

    def tokenize(self, text: str, field: str = "text") -> tuple[IntArray, IntArray]:
        """Tokens of a whole text.

        A long text goes through the tokenizer in pieces: its own record of a token takes hundreds of bytes, which a
        novel would multiply by a million.

        Returns:
            ids int64 (tokens,) and code point spans int64 (tokens, 2), no special tokens.

        Raises:
            InvalidText: the text holds a lone surrogate, which no encoding can carry.
        """
        if len(text) <= PIECE_CHARACTERS:
            return self._tokens(text, 0, field)
        parts = []
        start = 0
        while start < len(text):
            cut = _PIECE_ENDS.search(text, start + PIECE_CHARACTERS)
            end = cut.end() if cut else len(text)
            parts.append(self._tokens(text[start:end], start, field))
            start = end
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([spans for _, spans in parts])

    def _tokens(self, piece: str, start: int, field: str) -> tuple[IntArray, IntArray]:
        """Tokens of a piece of a text that begins at code point ``start``."""
        try:
            if len(piece) < PIECE_CHARACTERS:
                encoding = self.tokenizer.encode(piece, add_special_tokens=False)
            else:
                # The only call of `tokenizers` 0.21 that releases the GIL: a megabyte takes seconds, during which
                # a server's other requests must go on.
                (encoding,) = self.tokenizer.encode_batch([piece], add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidText(field, f"{field} holds a lone surrogate, which is not text; remove it") from error
        count = len(encoding)
        ids = np.fromiter(encoding.ids, dtype=np.int64, count=count)
        spans = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64, count=2 * count).reshape(-1, 2)
        return ids, spans + start if start else spans

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        truncate: bool = False,
        field: str = "text",
        max_windows: int | None = None,
    ) -> Encoded:
        """Tokenizes and cuts one text (or pair) into windows.

        Args:
            text: any string; it is never changed, offsets point into it.
            pair: the second text of a pair task. Windows run over the longer side, the other is in each of them.
            truncate: read only the first ``max_windows`` windows of a longer text instead of refusing it.
            field: how an error names the text.
            max_windows: in the place of the bundle's own limit.

        Raises:
            InvalidText: nothing but white space and control characters, or lone surrogates.
            TextTooLong: more than ``max_windows`` windows and ``truncate`` is false.
            CoverageLost: part of the text is in no window (a bug, not the caller's fault).
        """
        limit = self.spec.max_windows if max_windows is None else max_windows
        ids, spans = self._side(text, field)
        if pair is None:
            return self._cut(text, ids, spans, None, False, truncate, field, field, limit)
        pair_field = f"{field.removesuffix('.text')}.pair"
        pair_ids, pair_spans = self._side(pair, pair_field)
        if len(pair_ids) > len(ids):
            return self._cut(pair, pair_ids, pair_spans, ids, True, truncate, pair_field, field, limit)
        return self._cut(text, ids, spans, pair_ids, False, truncate, field, pair_field, limit)

    def _side(self, text: str, field: str) -> tuple[IntArray, IntArray]:
        ids, spans = self.tokenize(text, field)
        if not len(ids):
            raise InvalidText(field, f"{field} is empty or holds only white space and control characters")
        assert_covered(text, spans)
        return ids, spans

    def _cut(
        self,
        text: str,
        ids: IntArray,
        spans: IntArray,
        other: IntArray | None,
        other_first: bool,
        truncate: bool,
        field: str,
        other_field: str,
        limit: int,
    ) -> Encoded:
        spec = self.spec
        tokens, truncated = len(ids), False
        room = spec.max_tokens - (2 if other is None else 3)
        if other is not None:
            tokens += len(other)
            if len(ids) + len(other) > room and len(other) > room // 2:
                # Both sides are long: the shorter one does not fit beside a window of the other.
                if not truncate:
                    raise TextTooLong(other_field, len(other), -(-len(other) // (room // 2)), 1)
                other, truncated = other[: room // 2], True
            room -= len(other)
        cuts = self._plan(text, ids, spans, room)
        if len(cuts) > limit:
            if not truncate:
                raise TextTooLong(field, len(ids), len(cuts), limit)
            cuts, truncated = cuts[:limit], True
        windows = tuple(
            Window(
                first,
                last,
                # Characters between two tokens belong to the token before them; so no window leaves a gap.
                int(spans[first, 0]) if first else 0,
                int(spans[last, 0]) if last < len(ids) else len(text),
            )
            for first, last in cuts
        )
        empty = np.empty(0, dtype=np.int64)
        return Encoded(
            text,
            ids,
            spans,
            windows,
            tokens,
            truncated,
            empty if other is None else other,
            other_first,
            other is not None,
        )

    def _plan(self, text: str, ids: IntArray, spans: IntArray, room: int) -> list[tuple[int, int]]:
        """Token ranges of the windows, each at most ``room`` long, neighbours sharing ``overlap`` tokens."""
        count = len(ids)
        # A pair's shorter side can leave so little room that the full overlap would stop all progress.
        overlap = min(self.spec.overlap, max(room - 1, 0) // 2)
        cuts: list[tuple[int, int]] = []
        first = 0
        while True:
            last = first + room
            if last >= count:
                cuts.append((first, count))
                return cuts
            last = self._best_end(text, ids, spans, max(first + overlap + 1, last - int(room * CUT_ZONE)), last)
            cuts.append((first, last))
            first = last - overlap

    def _best_end(self, text: str, ids: IntArray, spans: IntArray, lowest: int, highest: int) -> int:
        """The best place in [lowest, highest] to end a window that cannot reach the end of the text."""
        clause = word = 0
        # As lists: reading single numbers out of arrays takes longer than looking at the text.
        lefts, rights = spans[lowest - 1 : highest, 1].tolist(), spans[lowest : highest + 1, 0].tolist()
        for last in range(highest, lowest - 1, -1):
            if not word and not self._continues[ids[last]]:
                word = last
            left, right = lefts[last - lowest], rights[last - lowest]
            if _ENDS.isdisjoint(text[left - 1 : right]):
                continue
            seam = _between(text, left, right)
            if not SENTENCE_ENDS.isdisjoint(seam):
                return last
            if not clause and not CLAUSE_ENDS.isdisjoint(seam):
                clause = last
        return clause or word or highest

    def row(self, encoded: Encoded, index: int) -> WindowRow:
        """The model's input for window ``index`` of an encoded text."""
        spec, window = self.spec, encoded.windows[index]
        own = encoded.ids[window.first : window.last]
        if not encoded.is_pair:
            ids = np.empty(len(own) + 2, dtype=np.int64)
            ids[0], ids[1:-1], ids[-1] = spec.cls_id, own, spec.sep_id
            return WindowRow(ids, np.zeros(len(ids), dtype=np.int64), slice(1, 1 + len(own)))
        cls = np.array([spec.cls_id], dtype=np.int64)
        sep = np.array([spec.sep_id], dtype=np.int64)
        left, right = (encoded.other, own) if encoded.other_first else (own, encoded.other)
        ids = np.concatenate([cls, left, sep, right, sep])
        types = np.zeros_like(ids)
        types[len(left) + 2 :] = 1
        start = len(left) + 2 if encoded.other_first else 1
        return WindowRow(ids, types, slice(start, start + len(own)))

    def lengths(self, encoded: Encoded) -> IntArray:
        """int64 (windows,): how long the model's input for each window is, special tokens included."""
        return encoded.window_tokens + (3 + len(encoded.other) if encoded.is_pair else 2)

    def rows(self, encoded: Encoded) -> list[WindowRow]:
        """The model's inputs for all windows of an encoded text."""
        return [self.row(encoded, index) for index in range(len(encoded.windows))]


def _between(text: str, left: int, right: int) -> str:
    """What stands where a window would end: from the last character of a token, before ``left``, to the next token.

    Nothing where a cut would part a character, or what is written as one word: 3.14, 12:30, example.com. Spaces and
    tabs count between Chinese characters only; elsewhere they part any two words.
    """
    if right < left:
        return ""
    around = text[max(left - 2, 0) : left - 1] + text[right : right + 1]
    if left == right and text[left - 1].isascii() and len(around) == 2 and around.isascii() and around.isalnum():
        return ""
    found = text[left - 1 : right]
    return found if _is_chinese(found[0]) and _is_chinese(text[right]) else found.replace(" ", "").replace("\t", "")


def _is_chinese(character: str) -> bool:
    return "\u2e80" <= character < "\uac00" or character >= "\U00020000"


def pad(rows: Sequence[WindowRow], pad_id: int) -> tuple[IntArray, IntArray]:
    """Stacks windows of different lengths.

    Returns:
        input_ids and token_type_ids, int64 (windows, longest), of one window views of its own arrays; the mask
        follows from ``pad_id``.
    """
    if len(rows) == 1:
        return rows[0].ids[None], rows[0].types[None]
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    types = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        types[index, : len(row.types)] = row.types
    return ids, types


def assert_covered(text: str, spans: IntArray) -> None:
    """Raises `CoverageLost` if a character that a reader could see is in no token.

    What lies between tokens must be something that the tokenizer drops by design: white space, control and format
    characters, combining marks.
    """
    position = 0
    if len(spans):
        reach = np.maximum.accumulate(spans[:, 1])
        _assert_droppable(text, 0, int(spans[0, 0]))
        for index in (spans[1:, 0] > reach[:-1]).nonzero()[0]:
            _assert_droppable(text, int(reach[index]), int(spans[index + 1, 0]))
        position = int(reach[-1])
    _assert_droppable(text, position, len(text))


def _joins(character: str) -> bool:
    """Whether a character is read as part of the one before it."""
    return (
        unicodedata.category(character) in ("Mn", "Mc", "Me")
        or character in "\u200c\u200d"
        or "\U000e0020" <= character <= "\U000e007f"
    )


def _assert_droppable(text: str, start: int, end: int) -> None:
    for position in range(start, end):
        character = text[position]
        # U+FFFD is what a decoder writes for bytes it could not read; BERT's cleaning removes it.
        if not (character.isspace() or character == "\ufffd" or unicodedata.category(character) in _DROPPABLE):
            raise CoverageLost(position, character)


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a ``tokenizer.json``.

    Raises:
        BundleError: it is not one.
    """
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises a bare Exception
        raise BundleError(f"{path}: not a tokenizer file: {error}") from error


def wordpiece_tokenizer(vocab: Sequence[str], *, lowercase: bool = True) -> Tokenizer:
    """The tokenizer of a BERT- or ERNIE-like model that has only a ``vocab.txt``.

    Args:
        vocab: the pieces in the order of their ids.
        lowercase: fold case and strip accents, as uncased models expect.

    Raises:
        BundleError: a special token is missing.
    """
    # A piece that stands twice (published vocabularies have some) keeps its later id, as in every BERT reader.
    index = {piece: number for number, piece in enumerate(vocab)}
    missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if piece not in index]
    if missing:
        raise BundleError(f"the vocabulary lacks {', '.join(missing)}")
    model: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # No added tokens: "[SEP]" typed by a caller is text and must not become the model's separator.
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": index,
        },
    }
    return Tokenizer.from_str(json.dumps(model, ensure_ascii=False))
