"""What a model said of a text, kept for the next time that the same text comes: least recently used first out.

Kept is what the model computed, not what left the server: rules, thresholds and the form of an answer are applied anew
each time, so none of them can be out of date here. The key is a hash of everything that the computation depends on:
the graph, the tokenizer, how a text is cut, and the text. An error is never kept, since nothing was computed then.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from bundle.predict import Predicted
from serving.catalogue import ServedModel

# What Python and numpy take beside the numbers: for an entry, and for each of its windows and arrays.
_ENTRY_BYTES, _ARRAY_BYTES = 600, 200


class AnswerCache:
    """At most so many bytes of predictions.

    Args:
        most: bytes; 0 keeps nothing.

    Attributes:
        bytes: what the entries are reckoned at.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._entries: OrderedDict[bytes, tuple[Predicted, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Predicted | None:
        """What is kept under a key, which thereby becomes the one used last."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, predicted: Predicted) -> None:
        """Keeps a prediction; what was used least recently goes for it. One that is larger than all is not kept."""
        if not self.most or (size := size_of(predicted)) > self.most:
            return
        if old := self._entries.pop(key, None):
            self.bytes -= old[1]
        self._entries[key] = predicted, size
        self.bytes += size
        while self.bytes > self.most:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed


def key_of(model: ServedModel, text: str, pair: str | None, truncate: bool) -> bytes:
    """32 bytes that stand for a computation: SHA-256 of everything that its result depends on."""
    manifest = model.manifest
    parts = (
        model.id,
        model.artifact.sha256,
        manifest.text.model_dump_json(),
        f"{model.max_windows} {truncate}",
        text,
        *(() if pair is None else (pair,)),
    )
    digest = hashlib.sha256()
    for part in parts:
        said = part.encode("utf-8", "surrogatepass")
        # With its length, so that no two lists of parts give the same bytes.
        digest.update(len(said).to_bytes(8, "little") + said)
    return digest.digest()


def size_of(predicted: Predicted) -> int:
    """Bytes that a prediction is reckoned at: its arrays, its text, and what Python takes for the objects."""
    encoded = predicted.encoded
    tokens = (encoded.ids, encoded.spans, encoded.other)
    said = (*predicted.logits, *predicted.token_logits)
    return (
        _ENTRY_BYTES
        # A text of Chinese takes two bytes a character in memory, one with a rare character four.
        + 4 * len(encoded.text)
        + sum(_ARRAY_BYTES + values.nbytes for values in tokens)
        + sum(_ARRAY_BYTES + values.nbytes for values in said)
        + _ARRAY_BYTES * len(encoded.windows)
    )
