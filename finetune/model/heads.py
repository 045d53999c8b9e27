"""The first weights of a model's new heads, where a recipe does not leave them to PaddleNLP."""

from __future__ import annotations

from typing import Any

from finetune.train_settings import Train


def draw_head(model: Any, settings: Train) -> None:
    """Draws the heads' weight matrices anew and sets their biases to zero; ``default`` touches nothing.

    Xavier is the uniform one of Glorot and Bengio 2010, in which the variance of a layer's inputs and of its gradients
    stays the same; normal has the standard deviation ``head_init_std`` (0.02 in Devlin et al. 2019).
    """
    if settings.head_init == "default":
        return
    import paddle

    init = paddle.nn.initializer
    draw = init.XavierUniform() if settings.head_init == "xavier" else init.Normal(std=settings.head_init_std)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "token_classifier")):
            (draw if parameter.ndim > 1 else init.Constant(0.0))(parameter)
