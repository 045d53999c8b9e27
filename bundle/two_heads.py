"""One encoder, two heads: a label for the text and a tag for each token, from one forward pass.

PaddleNLP has no such class. `finetune` trains it and `export` opens its checkpoint, so they must agree on it; PaddleNLP
itself is given by whoever calls and never imported here.
"""

from __future__ import annotations

from typing import Any


def two_heads(transformers: Any, family: str) -> Any:
    """The class ``<family>ForMultiTask``.

    Args:
        transformers: the module ``paddlenlp.transformers``.
        family: ``Bert`` or ``Ernie``.

    Returns:
        a subclass of PaddleNLP's sequence classifier whose configuration has ``num_token_labels`` too and whose
        forward returns logits (windows, labels) and token logits (windows, tokens, token labels).
    """
    classifier: Any = getattr(transformers, f"{family}ForSequenceClassification")
    encoder = family.lower()

    class TwoHeads(classifier):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            # The framework's own Linear, reached through the head that is there already.
            self.token_classifier = type(self.classifier)(config.hidden_size, config.num_token_labels)

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> tuple[Any, Any]:
            tokens, pooled = getattr(self, encoder)(input_ids, token_type_ids=token_type_ids)[:2]
            return self.classifier(self.dropout(pooled)), self.token_classifier(self.dropout(tokens))

    TwoHeads.__name__ = TwoHeads.__qualname__ = f"{family}ForMultiTask"
    return TwoHeads
