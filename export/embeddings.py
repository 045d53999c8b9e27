"""Smaller embeddings: rows that no text will ask for are left out, and those that stay are kept in fewer bits.

A small encoder is mostly its word table (21,128 × 512 floats are 43 of 58 MB of a quantized four-layer model). Two
savings, both off unless asked for:

    vocabulary  The table keeps the tokens that a corpus uses and every single character. The tokenizer stays as it is:
                a small table in the graph says which row a token has, and that of a token that was left out is the
                unknown token's. Exact for every text of kept tokens, so it is one of the exact passes.
    precision   The word table in half precision, or in 8 bits with a scale per row, turned back into float32 as rows
                are read. Not exact; the gate judges the quantized graph that has it.

Which texts' tokens are kept is said by the bundle's dev and calibration rows and by a corpus of the user's; the test
rows are not looked at for that, so the share of their tokens that is kept is an honest figure of coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from bundle.encode import Encoder, IntArray
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.manifest import Embeddings
from bundle.rows import read_rows
from export.graph import CONTRIB, Graph, NoMatch, attribute
from export.passes import Facts, Pass

if TYPE_CHECKING:
    import onnx

BoolArray = npt.NDArray[np.bool_]

# Splits whose rows say which tokens are kept.
KEEPING = ("dev", "dev_long", "calibration")
TEST = "test"
LIMIT = 127.0
# ONNX's numbers for element types.
FLOAT, INT32 = 1, 6


@dataclass(frozen=True)
class Kept:
    """The tokens that keep their row; each token of the corpus is among them.

    Attributes:
        tokens: bool (vocabulary,).
        unknown: id of the token that stands for those that are left out.
        held_out: share of the test rows' tokens that are kept, 0 to 1; None without test rows.
    """

    tokens: BoolArray
    unknown: int
    held_out: float | None

    def facts(self) -> dict[str, JsonValue]:
        """What the manifest tells about it."""
        return {
            "tokens": int(self.tokens.size),
            "kept": int(self.tokens.sum()),
            "test_coverage": self.held_out,
        }

    @property
    def told(self) -> str:
        """The same in a line."""
        share = "" if self.held_out is None else f"; {self.held_out:.3%} of the test rows' tokens are kept"
        return f"vocabulary: {int(self.tokens.sum()):,} of {self.tokens.size:,} tokens keep their row{share}"


def kept_tokens(bundle: Bundle, encoder: Encoder, ids: Iterable[IntArray], corpus: Path | None = None) -> Kept:
    """Which tokens keep their row.

    Args:
        ids: token ids that must be kept whatever the rows say: those of the golden rows.
        corpus: a text a line, UTF-8, read beside the bundle's own rows.

    Raises:
        ExportError: the corpus cannot be read, or the vocabulary has no token for what is unknown.
    """
    vocabulary: dict[str, int] = encoder.tokenizer.get_vocab()
    tokens = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
    unknown = vocabulary.get(str(getattr(encoder.tokenizer.model, "unk_token", "[UNK]")))
    if unknown is None:
        raise ExportError(f"{bundle.root}: the vocabulary has no token for what is unknown, so none can be left out")
    for token, number in vocabulary.items():
        tokens[number] = _always(token)
    tokens[[unknown, bundle.manifest.text.pad_id]] = True
    for item in ids:
        tokens[item] = True
    for text in (*_texts(bundle, KEEPING), *(_lines(corpus) if corpus else ())):
        tokens[encoder.tokenize(text)[0]] = True
    counted = [tokens[encoder.tokenize(text)[0]] for text in _texts(bundle, (TEST,))]
    held_out = float(np.concatenate(counted).mean()) if counted else None
    return Kept(tokens, unknown, held_out)


def _always(token: str) -> bool:
    """Special tokens, single characters, and a word's single last letters of a script that has words."""
    if len(token) > 2 and token[0] == "[" and token[-1] == "]":
        return True
    if len(token) == 1:
        return True
    return len(token) == 3 and token.startswith("##") and not "\u2e80" <= token[2] <= "\U0003ffff"


def _texts(bundle: Bundle, splits: Iterable[str]) -> Iterator[str]:
    for name in splits:
        if ref := bundle.manifest.splits.get(name):
            for row in read_rows(bundle.path(ref.file)):
                yield row.text
                if row.pair:
                    yield row.pair


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise ExportError(f"{path}:{number}: holds the character NUL; a corpus is a text a line")
                if text := line.strip():
                    yield text
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}; a corpus is a text a line") from error


def vocabulary_pass(kept: Kept) -> Pass:
    """The exact pass that leaves out the rows of other tokens."""

    def trim(graph: Graph, facts: Facts) -> None:
        embed = _embedding(graph)
        table = graph.constant(embed.input[2])  # (vocabulary, hidden)
        # A tokenizer may know fewer tokens than the table has rows; no text asks for those.
        tokens = np.zeros(len(table), dtype=bool)
        tokens[: kept.tokens.size] = kept.tokens[: len(table)]
        rows = np.cumsum(tokens, dtype=np.int32) - 1
        rows = np.where(tokens, rows, rows[kept.unknown]).astype(np.int32)
        # The mask of padding goes on reading the ids as they came.
        embed.input[0] = graph.add("Gather", [graph.add_constant("row_of_token", rows), embed.input[0]])
        embed.input[2] = graph.add_constant("kept_words", table[tokens])

    return Pass("vocabulary", "a word table", trim, lambda facts: True)


def shrink(model: onnx.ModelProto, precision: Embeddings) -> onnx.ModelProto:
    """The word table in fewer bits.

    Args:
        model: with an EmbedLayerNormalization.
        precision: ``fp32`` leaves the model as it is; ``fp16``; ``int8`` with one scale per row.

    Raises:
        NoMatch: the model has no such operator.
    """
    if precision == "fp32":
        return model
    graph = Graph(model)
    embed = _embedding(graph)
    ids, types, table, positions, segments, scale, shift = [*embed.input, *[""] * 7][:7]
    words = graph.constant(table)
    if precision == "fp16":
        if np.abs(words).max() > np.finfo(np.float16).max:
            raise NoMatch
        rows = graph.add("Gather", [graph.add_constant("words_fp16", words.astype(np.float16)), ids])
        found = graph.add("Cast", [rows], to=FLOAT)
    else:
        largest = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-12)
        scales = (largest / LIMIT).astype(np.float32)
        small = np.clip(np.rint(words / scales), -LIMIT, LIMIT).astype(np.int8)
        rows = graph.add("Cast", [graph.add("Gather", [graph.add_constant("words_int8", small), ids])], to=FLOAT)
        found = graph.add("Mul", [rows, graph.add("Gather", [graph.add_constant("words_scale", scales), ids])])
    zero, one = (graph.add_constant(name, np.array([value], np.int64)) for name, value in (("zero", 0), ("one", 1)))
    tokens = graph.add("Shape", [ids], start=1, end=2)
    parts = [found, graph.add("Slice", [positions, zero, tokens, zero, one])]
    if types:
        parts.append(graph.add("Gather", [segments, types]))
    total = graph.add("Sum", parts)
    epsilon = attribute(embed, "epsilon", 1e-12)
    graph.remove([embed])
    graph.add("LayerNormalization", [total, scale, shift], [embed.output[0]], axis=-1, epsilon=epsilon)
    return graph.finish()


def _embedding(graph: Graph) -> onnx.NodeProto:
    found = [node for node in graph.nodes if node.op_type == "EmbedLayerNormalization" and node.domain == CONTRIB]
    if len(found) != 1:
        raise NoMatch
    return found[0]
