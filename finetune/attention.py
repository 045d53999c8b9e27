"""Where a model looks in a text: attention of every head, and rollout, as one HTML page.

Reads a bundle's own Paddle checkpoint. Attention is no explanation (Jain and Wallace 2019): a page like this shows what
was looked at, not why an answer was given.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from bundle.decode import FloatArray
from bundle.encode import Encoded, Encoder, pad
from bundle.errors import BundleError, DataError, InvalidText
from bundle.folder import Bundle, open_bundle, write_atomic
from bundle.manifest import Joining
from bundle.predict import Predicted, answer_of, of_window, readable
from finetune.curve.signals import attention_entropy
from finetune.report.markup import STYLE, escaped, table, tile, words
from finetune.terminal import say

# Pixels of a head's picture, about.
SIDE = 220


@dataclass(frozen=True)
class Look:
    """One window of a text and what the model looked at.

    Attributes:
        weights: float32 (layers, heads, tokens, tokens); a row is a token that looks, and sums to 1.
        names: of each token as the model's input has it, special tokens included.
        spans: code points of each token in the windowed text, None for special tokens and those of a pair's other side.
        answer: what the model says of the whole text, in words.
    """

    encoded: Encoded
    window: int
    weights: FloatArray
    names: list[str]
    spans: list[tuple[int, int] | None]
    answer: str


def rollout(weights: FloatArray) -> FloatArray:
    """Attention rollout (Abnar and Zuidema 2020): how much of each input token reaches each token of the last layer, if
    every layer passes on half of what it has (its residual) and mixes the rest by the mean of its heads.

    Args:
        weights: (layers, heads, tokens, tokens).

    Returns:
        float32 (tokens, tokens), rows sum to 1.
    """
    tokens = weights.shape[-1]
    reached = np.eye(tokens, dtype=np.float64)
    for layer in weights.astype(np.float64).mean(axis=1):
        mixed = layer + np.eye(tokens)
        reached = (mixed / mixed.sum(axis=-1, keepdims=True)) @ reached
    return reached.astype(np.float32)


def load_model(bundle: Bundle) -> Any:
    """The bundle's checkpoint as a PaddleNLP model in evaluation mode, head included.

    Raises:
        BundleError: the bundle has no checkpoint.
    """
    from finetune.machine import quiet_paddle
    from finetune.model.base import BaseModel, read_config
    from finetune.model.paddle_weights import read_paddle_state

    artifact = bundle.manifest.artifacts.get("paddle")
    if artifact is None:
        raise BundleError(f"{bundle.root}: holds no Paddle checkpoint; attention is read from one")
    quiet_paddle()
    import paddle

    file = bundle.path(artifact.file)
    family, config = read_config(file.parent)
    model = BaseModel(file.parent, family, config, bundle.manifest.made.base).build(bundle.manifest.task)
    saved = read_paddle_state(file)
    for name, tensor in model.state_dict().items():
        if name in saved:
            tensor.set_value(paddle.to_tensor(saved[name]))
    model.eval()
    return model


def look(bundle: Bundle, model: Any, text: str, pair: str | None = None, window: int = 0) -> Look:
    """Reads a text and keeps what one window's heads looked at.

    Raises:
        InvalidText: nothing to read, or no such window.
    """
    import paddle

    manifest, encoder = bundle.manifest, Encoder.of(bundle)
    encoded = encoder.encode(text, pair, truncate=True)
    if not 0 <= window < len(encoded.windows):
        raise InvalidText("window", f"there is no window {window}; the text has {len(encoded.windows)}, from 0")
    outputs = []
    with paddle.no_grad():
        for number in range(len(encoded.windows)):
            row = encoder.row(encoded, number)
            ids, types = pad([row], encoder.spec.pad_id)
            found = model(paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(types))
            arrays = [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]
            outputs.append(of_window(arrays, 0, row.content))
        row = encoder.row(encoded, window)
        ids, types = pad([row], encoder.spec.pad_id)
        inner = getattr(model, model.base_model_prefix)
        seen = inner(
            paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(types), output_attentions=True, return_dict=True
        )
    predicted = Predicted(encoded, *([own[place] for own in outputs] for place in range(len(outputs[0]))))
    joining = Joining(pooling=manifest.text.pooling)
    place = encoded.windows[window]
    spans: list[tuple[int, int] | None] = [None] * len(row.ids)
    own = encoded.spans[place.first : place.last]
    spans[row.content] = [(int(start), int(end)) for start, end in own]
    return Look(
        encoded,
        window,
        np.stack([weights.numpy()[0] for weights in seen.attentions]).astype(np.float32),
        [encoder.tokenizer.id_to_token(int(number)) or "?" for number in row.ids],
        spans,
        words(readable(answer_of(predicted, manifest.task, joining), manifest.task)),
    )


def page(found: Look, name: str, tags: bool) -> str:
    """The HTML page: self-contained, without a script.

    Args:
        tags: a tagger is read from every token, a classifier from [CLS].
    """
    flow = rollout(found.weights)
    source = flow.mean(axis=0) if tags else flow[0]
    reader = "all tokens" if tags else "[CLS]"
    layers, heads = found.weights.shape[:2]
    entropies = [
        attention_entropy(layer[None], np.ones((1, found.weights.shape[-1]), dtype=bool)) for layer in found.weights
    ]
    encoded = found.encoded
    window = encoded.windows[found.window]
    shown = f"window {found.window} of 0 to {len(encoded.windows) - 1}, characters {window.start}–{window.end}"
    parts = [
        f"<h2>Rollout</h2><p>The text, darker where more of it reaches {reader} in the last layer: attention of all "
        "layers multiplied, half of each token passed on as it is (Abnar and Zuidema 2020).</p>",
        marked(found, source),
        "<h3>What reaches it most</h3>",
        _strongest(found, source),
        "<h2>Layer by layer</h2><p>What "
        + ("tokens look at on average" if tags else "[CLS] looks at")
        + ", mean of the layer's heads. Lower layers often look at neighbours, upper ones at what tells.</p>",
    ]
    for number, layer in enumerate(found.weights):
        mean = layer.mean(axis=0)
        parts.append(f"<h3>layer {number}</h3>" + marked(found, mean.mean(axis=0) if tags else mean[0]))
    parts.append(
        "<h2>Head by head</h2><p>Each square is a head: a row is a token that looks, a column one that is looked "
        "at, in "
        "the order of the input, dark is much. A diagonal looks at itself, a stripe beside it at a neighbour, a "
        "vertical "
        "line at one token (often [CLS] or [SEP], which is how a head rests). Entropy: 0 one token, 1 all alike.</p>"
    )
    for number in range(layers):
        images = "".join(
            f'<figure style="margin:.3rem"><img alt="layer {number}, head {head}" style="image-rendering:pixelated" '
            f'src="{picture(found.weights[number, head])}"><figcaption class="soft">head {head}, entropy '
            f"{entropies[number][head]:.2f}</figcaption></figure>"
            for head in range(heads)
        )
        parts.append(f'<h3>layer {number}</h3><div class="heads">{images}</div>')
    parts.append(
        '<p class="soft">Attention shows where the model looked, which is not why it answered as it did (Jain '
        "and Wallace "
        "2019).</p>"
    )
    tiles = "".join(
        tile(*one) for one in (("answer for the whole text", found.answer), ("layers × heads", f"{layers} × {heads}"))
    )
    style = STYLE + ".marked{font-size:1.15rem;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere}"
    style += ".marked span{border-radius:3px;padding:.1rem 0}.heads{display:grid;gap:.6rem"
    style += ";grid-template-columns:repeat(auto-fill,minmax(225px,1fr))}.heads img{background:#fff;max-width:100%}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(name)}: attention</title><style>{style}</style></head><body><main>"
        f'<h1>Where {escaped(name)} looks</h1><p class="soft">{escaped(shown)}</p><div class="tiles">{tiles}</div>'
        f"{''.join(parts)}</main></body></html>\n"
    )


def marked(found: Look, values: FloatArray) -> str:
    """The window's own text, each token on a ground as strong as its value; characters of no token as they are."""
    own = [(span, float(values[place])) for place, span in enumerate(found.spans) if span is not None]
    most = max((value for _, value in own), default=1.0) or 1.0
    text, window = found.encoded.text, found.encoded.windows[found.window]
    position, parts = window.start, []
    for (start, end), value in own:
        parts.append(escaped(text[position:start]))
        position = max(position, end)
        share = round(100 * value / most)
        parts.append(
            f'<span style="background:color-mix(in srgb,var(--series-2) {share * 7 // 10}%,transparent)" '
            f'title="{start}–{end}: {value:.3f}">{escaped(text[start:end])}</span>'
        )
    parts.append(escaped(text[position : window.end]))
    rest = sum(float(values[place]) for place, span in enumerate(found.spans) if span is None)
    where = "special tokens" + (" and the other text" if found.encoded.is_pair else "")
    return f'<div class="marked">{"".join(parts)}</div><p class="soft">{rest:.0%} of it on {where}.</p>'


def _strongest(found: Look, values: FloatArray, count: int = 10) -> str:
    order = sorted((place for place, span in enumerate(found.spans) if span), key=lambda place: -values[place])[:count]
    rows = []
    for place in order:
        start, end = found.spans[place] or (0, 0)
        rows.append([found.encoded.text[start:end], f"{start}–{end}", found.names[place], f"{values[place]:.3f}"])
    return table(["text", "characters", "token", "share"], rows)


def picture(weights: npt.NDArray[Any]) -> str:
    """A head as a data URI: a PNG of (tokens, tokens) squares, dark is much."""
    from PIL import Image

    shade = 255 - np.round(255 * np.sqrt(weights / max(float(weights.max()), 1e-9))).astype(np.uint8)
    size = max(1, SIDE // len(weights))
    image = Image.fromarray(shade.repeat(size, axis=0).repeat(size, axis=1))
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def content_of(text: str) -> str:
    """The text that a command line gives: itself, or what a file holds that it names by ``@FILE``.

    Raises:
        DataError: the file cannot be read.
    """
    if not text.startswith("@") or text == "@":
        return text
    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; @FILE reads the text from a file") from error


def attention(
    text: Annotated[str, typer.Argument(help="The text; @FILE reads it from a file.")],
    bundle: Annotated[str, typer.Option(help="A bundle's folder, or a name under artifacts/.")] = "news",
    pair: Annotated[str | None, typer.Option(help="The second text, of a text-pair model.")] = None,
    window: Annotated[int, typer.Option(min=0, help="Which window of a long text, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("attention.html"),
) -> None:
    """Where a trained model looks in a text: rollout on the real text, every layer, every head, as an HTML page.

    Example: python -m finetune attention "公司净利润同比增长三成" --bundle news
    """
    tried = [Path(bundle), Path(bundle) / "bundle", Path("artifacts") / bundle / "bundle"]
    root = next((path for path in tried if (path / "bundle.json").is_file()), None)
    if root is None:
        raise BundleError(f"{bundle}: no bundle.json in {', '.join(map(str, tried))}")
    content = content_of(text)
    opened = open_bundle(root)
    found = look(opened, load_model(opened), content, pair, window)
    write_atomic(out, page(found, opened.manifest.name, tags=opened.manifest.task.kind == "token-classification"))
    say(found.answer)
    say(f"wrote {out} ({len(found.encoded.windows)} windows; shown: {window})")
