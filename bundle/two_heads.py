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
        family: ``Bert``, ``Ernie``, ``Roberta`` or ``Electra``.

    Returns:
        a subclass of PaddleNLP's sequence classifier whose configuration has ``num_token_labels`` too and whose
        forward returns logits (windows, labels) and token logits (windows, tokens, token labels).
    """
    classifier: Any = getattr(transformers, f"{family}ForSequenceClassification")
    encoder = family.lower()
    # The classifiers of these two take all tokens and have a layer of their own before the last.
    whole = family in ("Roberta", "Electra")

    class TwoHeads(classifier):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            # The framework's own Linear, reached through the head that is there already.
            linear = type(self.classifier.out_proj if whole else self.classifier)
            self.token_classifier = linear(config.hidden_size, config.num_token_labels)

        def forward(self, input_ids: Any, token_type_ids: Any = None) -> tuple[Any, Any]:
            found = getattr(self, encoder)(input_ids, token_type_ids=token_type_ids)
            if whole:
                tokens = found[0] if isinstance(found, tuple) else found
                return self.classifier(tokens), self.token_classifier(self.classifier.dropout(tokens))
            tokens, pooled = found[:2]
            return self.classifier(self.dropout(pooled)), self.token_classifier(self.dropout(tokens))

    TwoHeads.__name__ = TwoHeads.__qualname__ = f"{family}ForMultiTask"
    return TwoHeads
