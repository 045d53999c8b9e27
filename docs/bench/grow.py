"""Makes a BERT of medium size of a smaller one: ``PYTHONPATH=. python docs/bench/grow.py m3e-small FOLDER``.

The bench asks for a nano and a medium-sized model, and pip brings no medium Chinese weights. Random ones would not do:
the gate compares answers, and an untrained model's are chance. So the small encoder is widened and stacked as bert2BERT
does it (Chen et al. 2022, arXiv:2110.07143, function-preserving initialisation): every new channel is a copy of an old
one, what is read from copies is divided by their number, new heads are whole copies of heads. LayerNorm sees some
channels twice, so it is near the small model and not equal; a fine-tuning levels that. Speed depends on the shape
alone. The recipe beside this file begins with such a folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
# Which of its two axes of a linear weight (out, in) is widened by what: attention's and the feed-forward's inner width.
LINEAR = {
    "attention.self.query": ("hidden", "hidden"),
    "attention.self.key": ("hidden", "hidden"),
    "attention.self.value": ("hidden", "hidden"),
    "attention.output.dense": ("hidden", "hidden"),
    "intermediate.dense": ("inner", "hidden"),
    "output.dense": ("hidden", "inner"),
}


def copies(old: int, new: int) -> npt.NDArray[np.intp]:
    """Which old channel each new one is a copy of: the old ones, then from the first on again."""
    return np.arange(new) % old


def widened(name: str, value: Array, places: dict[str, npt.NDArray[np.intp]]) -> Array:
    """One weight in its new width."""
    for part, (out, into) in LINEAR.items():
        if name.endswith(f"{part}.weight"):
            shares = np.bincount(places[into])[places[into]]
            return np.ascontiguousarray(value[places[out]][:, places[into]] / shares, dtype=np.float32)
        if name.endswith(f"{part}.bias"):
            return value[places[out]]
    # Embeddings (rows, hidden) and norms (hidden).
    return np.ascontiguousarray(value[..., places["hidden"]])


def grow(state: dict[str, Array], config: dict[str, int], layers: int, hidden: int) -> dict[str, Array]:
    """The weights of a wider and deeper encoder.

    Args:
        state: Hugging Face's names and (out, in) weights.
        hidden: its width; a multiple of the width of a head.
    """
    inner = hidden * config["intermediate_size"] // config["hidden_size"]
    places = {
        "hidden": copies(config["hidden_size"], hidden),
        "inner": copies(config["intermediate_size"], inner),
    }
    # Deeper from the top: the lower layers know characters, and are frozen in the recipes.
    order = list(range(config["num_hidden_layers"]))
    while len(order) < layers:
        missing = layers - len(order)
        order = [layer for layer in order for _ in range(2 if layer >= config["num_hidden_layers"] - missing else 1)][
            :layers
        ]
    grown: dict[str, Array] = {}
    for name, value in state.items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        if not name.startswith("encoder.layer."):
            grown[name] = widened(name, value.astype(np.float32), places)
            continue
        number, rest = name.removeprefix("encoder.layer.").split(".", 1)
        for new in [place for place, layer in enumerate(order) if layer == int(number)]:
            grown[f"encoder.layer.{new}.{rest}"] = widened(name, value.astype(np.float32), places)
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a BERT: a named pip asset or a folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=768)
    given = parser.parse_args()

    from safetensors.numpy import save_file

    from bundle.errors import SlipwayError
    from finetune.model.base import open_base
    from finetune.model.torch_weights import read_torch_state

    try:
        base = open_base(given.base)
        state = read_torch_state(base.folder / "pytorch_model.bin")
    except (SlipwayError, OSError) as error:
        sys.exit(f"grow: {error}")
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    head = config["hidden_size"] // config["num_attention_heads"]
    if given.hidden % head or given.hidden < config["hidden_size"] or given.layers < config["num_hidden_layers"]:
        sys.exit(f"grow: --hidden must be a multiple of {head}, and neither may be smaller than the base's")
    grown = grow(state, config, given.layers, given.hidden)
    given.folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in grown.items()}, given.folder / "model.safetensors")
    config |= {
        "num_hidden_layers": given.layers,
        "hidden_size": given.hidden,
        "num_attention_heads": given.hidden // head,
        "intermediate_size": given.hidden * config["intermediate_size"] // config["hidden_size"],
    }
    (given.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    base.tokenizer().save(str(given.folder / "tokenizer.json"))
    count = sum(value.size for value in grown.values())
    print(f"{given.folder}: {given.layers} layers × {given.hidden}, {count / 1e6:.1f} M parameters, of {given.base}")


if __name__ == "__main__":
    main()
