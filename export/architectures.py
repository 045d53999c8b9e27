"""The trained classes that may be opened, and what they answer. Paddle's part is given, never imported here.

PaddleNLP has no model with two heads over one encoder; `finetune` trains the one of `bundle.two_heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.errors import ExportError
from bundle.two_heads import two_heads

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
    if name in TWO_HEADS:
        return two_heads(transformers, name.removesuffix("ForMultiTask"))
    return getattr(transformers, name)


def arrays_of(answer: Any, count: int) -> list[Any]:
    """The first ``count`` tensors of a layer's answer, as numpy arrays; some heads give one tensor, others a tuple."""
    tensors: Sequence[Any] = answer if isinstance(answer, (tuple, list)) else (answer,)
    if len(tensors) < count:
        raise ExportError(f"the model gave {len(tensors)} outputs, the manifest says {count}")
    return [tensor.numpy() for tensor in tensors[:count]]
