"""Smaller embeddings: what is left out, what stays exact, and what fewer bits cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.encode import Encoder, wordpiece_tokenizer
from bundle.errors import ExportError
from bundle.folder import Bundle
from bundle.manifest import Embeddings
from export.embeddings import Kept, kept_tokens, shrink, vocabulary_pass
from export.fuse import fuse
from export.gate import DevSplit
from export.journal import Journal
from export.parity import GoldenRows
from export.passes import Facts, apply_passes
from export.session import open_session, run_of
from export.to_int8 import How, to_int8

pytestmark = pytest.mark.slow

Copy = Callable[[str], Bundle]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "a", "##b", "##中", "bank", "##ing", "loan", "票"]


def tables(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The constants of two axes, by name."""
    return {item.name: tuple(item.dims) for item in model.graph.initializer if len(item.dims) == 2}


def fused_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(str(bundle.path("onnx/model_fused.onnx")))


def words_of(bundle: Bundle, corpus: Path | None = None) -> set[str]:
    """Which of `WORDS` keep their row, in a bundle whose rows have none of them but single characters."""
    encoder = Encoder(wordpiece_tokenizer(WORDS), bundle.manifest.text)
    kept = kept_tokens(bundle, encoder, [], corpus)
    return {word for number, word in enumerate(WORDS) if kept.tokens[number]}


def test_special_tokens_single_characters_and_the_last_letters_of_words_are_always_kept(exported: Copy) -> None:
    assert words_of(exported("bert-classes")) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "中", "a", "##b", "票"}


def test_a_corpus_keeps_the_tokens_of_its_texts(exported: Copy, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("banking 中\n\nloan", encoding="utf-8")
    assert {"bank", "##ing", "loan"} <= words_of(exported("bert-classes"), corpus)


def test_a_corpus_that_cannot_be_read_is_named_with_its_line(exported: Copy, tmp_path: Path) -> None:
    for content, reason in ((b"ab\nc\0d\n", r"corpus.txt:2: .*NUL"), (b"\xff\xfe", r"corpus.txt: is not UTF-8")):
        (tmp_path / "corpus.txt").write_bytes(content)
        with pytest.raises(ExportError, match=reason):
            words_of(exported("bert-classes"), tmp_path / "corpus.txt")
    with pytest.raises(ExportError, match=r"absent.txt: No such file"):
        words_of(exported("bert-classes"), tmp_path / "absent.txt")


@pytest.mark.parametrize("name", ["bert-classes", "ernie-pairs"])
def test_kept_tokens_answer_as_before_and_others_as_the_unknown_one(
    name: str, exported: Copy, journal: Journal
) -> None:
    bundle = exported(name)
    model, signature = fused_of(bundle), bundle.manifest.signature
    golden = GoldenRows(bundle)
    size = tables(model)[next(n.input[2] for n in model.graph.node if n.op_type == "EmbedLayerNormalization")][0]
    tokens = np.zeros(size, dtype=bool)
    tokens[[0, 1, 2, 3]] = True
    for row in golden.rows:
        for window in row.ids:
            tokens[np.array(window)] = True
    gone = int(np.flatnonzero(~tokens)[0])
    facts = Facts("input_ids", "token_type_ids", 0, bundle.manifest.task.kind)
    small, (record,) = apply_passes(model, facts, golden, journal, [vocabulary_pass(Kept(tokens, 1, None))])
    assert record["applied"] and float(str(record["max_abs"])) <= 1e-5
    assert (int(tokens.sum()), 48) in tables(small).values() and (size, 48) not in tables(small).values()
    before, after = (run_of(open_session(item.SerializeToString()), signature) for item in (model, small))
    ids = np.array([[2, gone, int(np.flatnonzero(tokens)[-1]), 3, 0]])
    unknown = np.where(ids == gone, 1, ids)
    np.testing.assert_allclose(after(ids, ids * 0)[0], before(unknown, ids * 0)[0], atol=1e-5)
    assert np.abs(before(ids, ids * 0)[0] - before(unknown, ids * 0)[0]).max() > 1e-2


def test_the_step_leaves_out_tokens_says_so_and_knows_that_it_did(copied: Copy, journal: Journal) -> None:
    bundle = fuse(copied("bert-classes"), journal, vocabulary="corpus")
    details = bundle.manifest.artifacts["onnx_fused"].details
    facts, passes = details["vocabulary"], details["passes"]
    assert isinstance(facts, dict) and isinstance(passes, list) and isinstance(passes[-1], dict)
    # The tiny vocabulary is one of single characters, of which each is kept.
    assert (facts["kept"], facts["test_coverage"], passes[-1]["name"]) == (facts["tokens"], 1.0, "vocabulary")
    assert fuse(bundle, journal, vocabulary="corpus") == bundle
    assert "vocabulary" not in fuse(bundle, journal).manifest.artifacts["onnx_fused"].details


@pytest.mark.parametrize(("precision", "element", "close"), [("fp16", 10, 0.02), ("int8", 3, 0.3)])
@pytest.mark.parametrize("name", ["bert-classes", "ernie-pairs"])
def test_fewer_bits_change_logits_little(
    name: str, precision: Embeddings, element: int, close: float, exported: Copy
) -> None:
    bundle = exported(name)
    model, golden = fused_of(bundle), GoldenRows(bundle)
    small = shrink(model, precision)
    assert element in {item.data_type for item in small.graph.initializer if len(item.dims) == 2}
    assert len(small.SerializeToString()) < len(model.SerializeToString())
    found = golden.predict(run_of(open_session(small.SerializeToString()), bundle.manifest.signature))
    assert golden.measure("small", found, close).max_abs > 0


def test_an_int8_graph_with_small_embeddings_passes_the_gate_and_says_what_it_has(
    copied: Copy, journal: Journal
) -> None:
    bundle = copied("bert-classes")
    before = bundle.manifest.artifacts["onnx_int8"]
    after = to_int8(bundle, journal, DevSplit(bundle), how=How(embeddings="int8")).manifest.artifacts["onnx_int8"]
    assert after.details["embeddings"] == "int8" and after.bytes < before.bytes
    model = onnx.load(str(bundle.path(after.file)))
    words = next(item for item in model.graph.initializer if item.name.startswith("words_int8"))
    assert numpy_helper.to_array(words).dtype == np.int8
    assert after.quality is not None and (after.quality.agreement or 0) >= 0.95
