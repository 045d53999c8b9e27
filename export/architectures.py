"""The trained classes that may be opened, and what they answer. Paddle's part is given, never imported here.

PaddleNLP has no model with two heads over one encoder; `finetune` trains the one of `bundle.two_heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.errors import ExportError
from bundle.two_heads import two_heads

_HEADS = ("SequenceClassification", "TokenClassification")
_BASES = ("Bert", "Ernie", "Roberta", "Electra")
TWO_HEADS = tuple(f"{base}ForMultiTask" for base in _BASES)
# A name from a file must not choose freely what is constructed.
ARCHITECTURES = (
    *(f"{base}For{head}" for base in _BASES for head in _HEADS),
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
    found = getattr(transformers, name)
    return _without_branches(found) if name == "RobertaForTokenClassification" else found


def _without_branches(tagger: Any) -> Any:
    """PaddleNLP's tagger with a forward that ``to_static`` can read.

    The one of 3.0.0b4 names its answer in one branch and measures its length in another, which Paddle's conversion of
    branches refuses ("object of type 'UndefinedVar' has no len()").
    """

    class Tagger(tagger):  # type: ignore[misc]
        def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
            return self.classifier(self.dropout(self.roberta(input_ids, token_type_ids=token_type_ids)[0]))

    Tagger.__name__ = Tagger.__qualname__ = tagger.__name__
    return Tagger


def arrays_of(answer: Any, count: int) -> list[Any]:
    """The first ``count`` tensors of a layer's answer, as numpy arrays; some heads give one tensor, others a tuple."""
    tensors: Sequence[Any] = answer if isinstance(answer, (tuple, list)) else (answer,)
    if len(tensors) < count:
        raise ExportError(f"the model gave {len(tensors)} outputs, the manifest says {count}")
    return [tensor.numpy() for tensor in tensors[:count]]
