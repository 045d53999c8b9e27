"""Tiny bundles that are real in every part but training: tokenizer, ONNX graph, golden rows, checksums, parity.

The graph embeds ids, averages over what is not padding and multiplies by a matrix; a tagger multiplies each token, a
multi-task model does both in one pass.
So answers depend on the text, and neither on padding nor on what else is in a batch, as a real model's do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from bundle.encode import Encoder, wordpiece_tokenizer
from bundle.folder import Bundle, create_bundle, sha256_of
from bundle.golden import compare, golden_of, read_golden, write_golden
from bundle.manifest import (
    Artifact,
    FileRef,
    Machine,
    Manifest,
    Plan,
    Provenance,
    Setup,
    Signature,
    Source,
    Task,
    TextSpec,
    bio_labels,
    signature_of,
)
from bundle.plan import this_machine, usual
from bundle.predict import encode_rows, predict
from bundle.rows import Row

CHARACTERS = (
    "的一是了不在有人我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可"
    "京北海王明天好坏新闻股市涨跌大增长跌落，。！？、；：" + "abcdefghijklmnopqrstuvwxyz0123456789"
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(CHARACTERS), "##a", "##b", "##1"]
HIDDEN = 16
GOLDEN_TEXTS = ("大国新闻，股市增长。", "他说你好！" * 30, "abc 我们在北京")

_TAGS = bio_labels(["PER", "LOC"])
TASKS: dict[str, Task] = {
    task.kind: task
    for task in (
        Task(kind="single-label", labels=("负面", "中性", "正面")),
        Task(kind="multi-label", labels=("财经", "地方", "人物", "天气"), thresholds=(0.4, 0.5, 0.6, 0.5)),
        Task(kind="text-pair", labels=("different", "same")),
        Task(kind="token-classification", labels=_TAGS),
        Task(kind="multi-task", labels=("询问", "预订", "抱怨"), token_labels=_TAGS),
    )
}


def make_bundle(
    root: Path,
    name: str,
    kind: str,
    *,
    seed: int = 0,
    precision: Literal["fp32", "int8"] = "fp32",
    max_windows: int = 8,
    version: int = 1,
    published: bool = True,
) -> Bundle:
    """Writes a bundle into ``root``.

    Args:
        seed: of the weights.
        precision: ``int8`` quantizes dynamically, so that a window's logits depend on its batch.
    """
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = wordpiece_tokenizer(VOCABULARY)
    (root / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    task = TASKS[kind]
    signature = signature_of(task)
    graph = f"onnx_{precision}/model.onnx"
    (root / graph).parent.mkdir(exist_ok=True)
    onnx.save(_graph(signature, seed, precision == "int8"), root / graph)
    spec = TextSpec(
        tokenizer=_ref(root, "tokenizer.json"),
        max_tokens=32,
        overlap=8,
        max_windows=max_windows,
        pooling="mean",
        pad_id=0,
        cls_id=2,
        sep_id=3,
        length_buckets=(32, 128),
    )
    encoder = Encoder(tokenizer, spec)
    pair = "你是我们国家的人" if kind == "text-pair" else None
    rows = [Row(text, pair=pair) for text in GOLDEN_TEXTS]
    session = ort.InferenceSession(str(root / graph), providers=["CPUExecutionProvider"])
    predicted = predict(
        encode_rows(rows, encoder),
        encoder,
        lambda ids, types: session.run(None, {"input_ids": ids, "token_type_ids": types}),
        batch_tokens=1,
    )
    golden_rows = [golden_of(item, encoder, row.text, row.pair) for item, row in zip(predicted, rows, strict=True)]
    write_golden(root / "golden.jsonl", golden_rows)
    golden = read_golden(root / "golden.jsonl")
    artifact = Artifact(
        file=graph,
        sha256=sha256_of(root / graph),
        bytes=(root / graph).stat().st_size,
        format="onnx",
        precision=precision,
        batch_invariant=precision == "fp32",
        parity=compare(golden, predicted, task, spec.joining, reference="tiny", tolerance=1e-4),
    )
    manifest = Manifest(
        name=name,
        version=version,
        made=Provenance(
            recipe="tiny",
            recipe_sha256="0" * 64,
            commit="",
            created="2026-01-01T00:00:00Z",
            seed=seed,
            data=Source(name="made up", licence="CC0-1.0"),
            base=Source(name="random numbers", licence="CC0-1.0"),
            architecture="none",
            packages={},
        ),
        task=task,
        text=spec,
        signature=signature,
        golden=_ref(root, "golden.jsonl"),
        artifacts={f"onnx_{precision}": artifact},
        published=f"onnx_{precision}" if published else "",
    )
    return create_bundle(root, manifest)


def rebind(bundle: Bundle, graph: Path) -> Bundle:
    """The same bundle with another graph, whose checksum is right: what only golden rows can notice."""
    name = bundle.manifest.published
    old = bundle.manifest.artifacts[name]
    target = bundle.path(old.file)
    target.unlink()  # it may be hard-linked into a model repository
    target.write_bytes(graph.read_bytes())
    new = old.model_copy(update={"sha256": sha256_of(target), "bytes": target.stat().st_size})
    return bundle.add_artifact(name, new).publish(name)


def _ref(root: Path, file: str) -> FileRef:
    path = root / file
    return FileRef(file=file, sha256=sha256_of(path), bytes=path.stat().st_size)


def _graph(signature: Signature, seed: int, quantized: bool) -> onnx.ModelProto:
    """Each output is (embedding + type embedding) times a matrix: of each token, or of the mean over real tokens."""
    random = np.random.default_rng(seed)
    constants = {
        "words": random.normal(size=(len(VOCABULARY), HIDDEN)),
        "types": random.normal(size=(2, HIDDEN)),
    }
    for output in signature.outputs:
        constants[f"{output.name}_weights"] = random.normal(size=(HIDDEN, output.shape[-1])) * 2
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initializers += [
        numpy_helper.from_array(np.array(0, np.int64), "pad"),
        numpy_helper.from_array(np.array([1], np.int64), "tokens_axis"),
        numpy_helper.from_array(np.array([2], np.int64), "hidden_axis"),
    ]
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["word"]),
        node("Gather", ["types", "token_type_ids"], ["type"]),
        node("Add", ["word", "type"], ["token"]),
    ]
    if any(len(output.shape) == 2 for output in signature.outputs):
        nodes += [
            node("Equal", ["input_ids", "pad"], ["is_pad"]),
            node("Not", ["is_pad"], ["is_real"]),
            node("Cast", ["is_real"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "hidden_axis"], ["mask3"]),
            node("Mul", ["token", "mask3"], ["masked"]),
            node("ReduceSum", ["masked", "tokens_axis"], ["sum"], keepdims=0),
            node("ReduceSum", ["mask3", "tokens_axis"], ["count"], keepdims=0),
            node("Div", ["sum", "count"], ["mean"]),
        ]
    for output in signature.outputs:
        features, name = "token" if len(output.shape) == 3 else "mean", output.name
        if quantized:
            # The scale is taken over the whole batch: what makes dynamic quantization depend on companions.
            nodes += [
                node("DynamicQuantizeLinear", [features], [f"{name}_quantized", f"{name}_scale", f"{name}_zero"]),
                node("DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero"], [f"{name}_rounded"]),
            ]
            features = f"{name}_rounded"
        nodes.append(node("MatMul", [features, f"{name}_weights"], [name]))
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    inputs, outputs = (
        [helper.make_tensor_value_info(item.name, kinds[item.dtype], item.shape) for item in side]
        for side in (signature.inputs, signature.outputs)
    )
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def with_plan(bundle: Bundle, machine: Machine | None = None, **setup: object) -> Bundle:
    """The bundle with a plan for both aims, as `python -m export plan` would have written it.

    Args:
        machine: where it was measured; by default here.
        setup: fields of the chosen setup.
    """
    name = bundle.manifest.published
    here = this_machine()
    choice = Setup.model_validate({"artifact": name, "threads": 1, "sessions": 1, "windows": 1, **setup})
    plan = Plan(
        created="2026-01-02T00:00:00+00:00",
        commit="none",
        search="quick",
        machine=machine or here,
        artifacts={name: bundle.manifest.artifacts[name].identity},
        dev_sha256="",
        sample=1,
        windows_per_text=1,
        tokens_per_text=9,
        clients=8,
        p99_limit_ms=100,
        warmup=1,
        load_before=0,
        seconds=1,
        latency=choice,
        throughput=choice,
        defaults=usual(name, here.cores),
    )
    return bundle.save(bundle.manifest.model_copy(update={"plan": plan}))


def elsewhere() -> Machine:
    """Another machine than any that these tests run on."""
    return this_machine().model_copy(update={"cpu": "Abacus 3000", "cores": 77})
