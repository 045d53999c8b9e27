"""The trained classes that may be opened, and what they answer. Paddle's part is given, never imported here.

PaddleNLP has no model with two heads over one encoder; `finetune` trains one for multi-task recipes and saves the
state of the sequence classifier, which it extends, plus ``token_classifier``. The class is written here a second time
because rooms meet on disk alone; that both compute the same is proved on the golden rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.errors import ExportError

_HEADS = ("SequenceClassification", "TokenClassification")
TWO_HEADS = ("BertForMultiTask", "ErnieForMultiTask")
# A name from a file must not choose freely what is constructed.
ARCHITECTURES = (
    *(f"{base}For{head}" for base in ("Bert", "Ernie", "Roberta", "Electra") for head in _HEADS),
    *TWO_HEADS,
)


def class_of(transformers: Any, name: str) -> Any:
    """The class of a name on the list.

    Args:
        transformers: the module ``paddlenlp.transformers``.

    Raises:
        ExportError: another name.
    """
    if name not in ARCHITECTURES:
        raise ExportError(f"cannot export {name!r}; known: {', '.join(ARCHITECTURES)}")
    return _two_heads(transformers, name) if name in TWO_HEADS else getattr(transformers, name)


def _two_heads(transformers: Any, name: str) -> Any:
    """A sequence classifier with ``token_classifier`` beside ``classifier``; both read one pass of the encoder."""
    base = name.removesuffix("ForMultiTask")
    parent: Any = getattr(transformers, f"{base}ForSequenceClassification")

    class TwoHeads(parent):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            # The framework's own Linear, reached through the head that is there already.
            self.token_classifier = type(self.classifier)(config.hidden_size, config.num_token_labels)

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> tuple[Any, Any]:
            """Logits (windows, labels) and token logits (windows, tokens, token labels)."""
            outputs = getattr(self, base.lower())(input_ids, token_type_ids=token_type_ids)
            sequence, pooled = outputs[0], outputs[1]
            return self.classifier(self.dropout(pooled)), self.token_classifier(self.dropout(sequence))

    TwoHeads.__name__ = TwoHeads.__qualname__ = name
    return TwoHeads


def arrays_of(answer: Any, count: int) -> list[Any]:
    """The first ``count`` tensors of a layer's answer, as numpy arrays; some heads give one tensor, others a tuple."""
    tensors: Sequence[Any] = answer if isinstance(answer, (tuple, list)) else (answer,)
    if len(tensors) < count:
        raise ExportError(f"the model gave {len(tensors)} outputs, the manifest says {count}")
    return [tensor.numpy() for tensor in tensors[:count]]
