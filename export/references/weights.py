"""The bundle's Paddle checkpoint as transformers reads it: ``python -m export.references.weights BUNDLE FOLDER``.

BERT and ERNIE have the same weights in both libraries under other names; Paddle keeps the matrix of a linear layer as
(in, out), PyTorch as (out, in). Whether the result is the same model is proved by the golden rows, not here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import ExportError

Array = npt.NDArray[Any]

# Paddle's class → transformers' class; the latter has no class with two heads.
CLASSES = {
    f"{base}For{head}": f"{base}For{head}"
    for base in ("Bert", "Ernie")
    for head in ("SequenceClassification", "TokenClassification")
}
# Inside of a layer: Paddle → transformers.
_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
_IN_LAYER = re.compile(r"(\w+)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EMBEDDING = re.compile(r"(\w+)\.embeddings\.(\w+_embeddings)\.weight")
_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    # ERNIE's alone
    "task_type_vocab_size",
    "use_task_id",
)


def transformers_class(architecture: str) -> str:
    """The class of transformers for a class of PaddleNLP.

    Raises:
        ExportError: there is none, or this converter does not know it.
    """
    try:
        return CLASSES[architecture]
    except KeyError:
        known = ", ".join(CLASSES)
        raise ExportError(f"{architecture} cannot be converted for transformers; known are {known}") from None


def transformers_state(state: Mapping[str, Array], architecture: str) -> dict[str, Array]:
    """Weights by PaddleNLP's names → by transformers' names, float32, linear layers as (out, in).

    A tagger's pooler is left out: nothing reads it, and transformers' taggers have none.

    Raises:
        ExportError: a name that has no counterpart.
    """
    named = {transformers_name(key): (key, value) for key, value in state.items()}
    tagger = architecture.endswith("TokenClassification")
    return {
        name: _turned(key, name, value) for name, (key, value) in named.items() if not (tagger and ".pooler." in name)
    }


def transformers_name(name: str) -> str:
    """One name; see `transformers_state`."""
    if match := _IN_LAYER.fullmatch(name):
        base, number, part, kind = match.groups()
        if part in _LAYER:
            return f"{base}.encoder.layer.{number}.{_LAYER[part]}.{kind}"
    elif _EMBEDDING.fullmatch(name) or re.fullmatch(r"(\w+\.pooler\.dense|classifier)\.(weight|bias)", name):
        return name
    elif match := re.fullmatch(r"(\w+)\.embeddings\.layer_norm\.(weight|bias)", name):
        return f"{match[1]}.embeddings.LayerNorm.{match[2]}"
    raise ExportError(f"the weight {name!r} has no counterpart in transformers")


def _turned(key: str, name: str, value: Array) -> Array:
    linear = key.endswith(".weight") and value.ndim == 2 and "embeddings." not in name
    return np.ascontiguousarray(value.T if linear else value, dtype=np.float32)


def transformers_config(config: Mapping[str, Any], architecture: str, labels: int) -> dict[str, Any]:
    """The ``config.json`` of transformers for a configuration of PaddleNLP.

    Raises:
        ExportError: the model has no counterpart.
    """
    name = transformers_class(architecture)
    kept = {key: config[key] for key in _KEYS if config.get(key) is not None}
    ids = {str(number): f"LABEL_{number}" for number in range(labels)}
    return kept | {
        "architectures": [name],
        "model_type": "ernie" if name.startswith("Ernie") else "bert",
        "id2label": ids,
        "label2id": {label: int(number) for number, label in ids.items()},
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def main(bundle: str, folder: str) -> None:
    """Writes ``config.json`` and ``model.safetensors`` into a folder."""
    import paddle
    from safetensors.numpy import save_file

    from bundle.folder import open_bundle

    source, target = open_bundle(Path(bundle)), Path(folder)
    manifest = source.manifest
    weights = source.path(manifest.artifacts["paddle"].file)
    config = json.loads((weights.parent / "config.json").read_text(encoding="utf-8"))
    made = transformers_config(config, manifest.made.architecture, len(manifest.task.labels))
    state = {name: value.numpy() for name, value in paddle.load(str(weights)).items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(
        transformers_state(state, manifest.made.architecture), target / "model.safetensors", metadata={"format": "pt"}
    )
    (target / "config.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ExportError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")
