"""Three pictures of a bench: latency against length, throughput against batch, accuracy against speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.bench_cells import MANY_TEXTS

# Told apart without colour vision by marker as well; Slipway's own forms have solid lines and filled markers,
# references dashed and hollow ones.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")


def draw(record: dict[str, Any], results: Path) -> list[Path]:
    """Draws what a results file holds, beside it.

    Args:
        record: a results file of the bench.
        results: its path; the pictures are called ``<its stem>-by-length.png``, ``…-by-batch.png`` and
            ``…-by-accuracy.png``.

    Returns:
        the pictures that could be drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    for name, paint in (("by-length", _by_length), ("by-batch", _by_batch), ("by-accuracy", _by_accuracy)):
        figure, axes = plt.subplots(figsize=(8.4, 5.2), dpi=110, layout="constrained")
        if paint(axes, record):
            machine = record["hardware"]
            note = f"{record['base']}, {machine['cpu']}, {record['threads']} threads, commit {record['commit']}"
            figure.supxlabel(note, fontsize=8, color="#555555")
            target = results.with_name(f"{results.stem}-{name}.png")
            figure.savefig(target, metadata={"Software": None})
            drawn.append(target)
        plt.close(figure)
    return drawn


def _style(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Colour by place among its own kind, so that a form looks the same in all pictures."""
    own = record["candidates"][name]["environment"] is None
    peers = [key for key, item in record["candidates"].items() if (item["environment"] is None) == own]
    place = peers.index(name)
    served = name in (record.get("served") or [record["published"]])
    return {
        "color": COLOURS[place % len(COLOURS)],
        "markerfacecolor": COLOURS[place % len(COLOURS)] if own else "white",
        "marker": MARKERS[place % len(MARKERS)] if own else MARKERS[-1 - place % len(MARKERS)],
        "linestyle": "-" if own else "--",
        "linewidth": 2.4 if served else 1.3,
        "markersize": 6,
        "label": f"{name} (served)" if served else name,
    }


def _by_length(axes: Any, record: dict[str, Any]) -> bool:
    return _lines(
        axes,
        record,
        [cell for cell in record["cells"] if cell["batch"] == 1],
        lambda cell: int(cell["tokens"]),
        "median_ms",
        ("Latency of one window", "tokens in the window", "milliseconds, median (logarithmic)"),
    )


def _by_batch(axes: Any, record: dict[str, Any]) -> bool:
    longest = max((cell["tokens"] for cell in record["cells"]), default=0)
    return _lines(
        axes,
        record,
        [cell for cell in record["cells"] if cell["batch"] and cell["tokens"] == longest],
        lambda cell: int(cell["batch"]),
        "texts_per_second",
        (f"Throughput at {longest} tokens", "windows in a batch", "windows a second (logarithmic)"),
    )


def _lines(
    axes: Any,
    record: dict[str, Any],
    cells: Sequence[dict[str, Any]],
    place: Callable[[dict[str, Any]], int],
    figure: str,
    words: tuple[str, str, str],
) -> bool:
    """One line per candidate over fixed shapes; false where there is nothing to draw."""
    if not cells:
        return False
    for name in record["candidates"]:
        points = [(place(cell), cell["results"][name][figure]) for cell in cells if name in cell["results"]]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), **_style(record, name))
    places = sorted({place(cell) for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(places, [str(number) for number in places])
    axes.minorticks_off()
    _ticks(axes.yaxis)
    _finish(axes, *words)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return True


def _by_accuracy(axes: Any, record: dict[str, Any]) -> bool:
    cell = next((item for item in record["cells"] if item["label"] == MANY_TEXTS), None)
    points = []
    for name, facts in record["candidates"].items():
        metrics = (facts["quality"] or {}).get("metrics") or {}
        speed = cell["results"].get(name) if cell else None
        if metrics and speed:
            figure = next(iter(metrics))
            points.append((name, figure, speed["texts_per_second"], metrics[figure] * 100))
    if not points:
        return False
    for name, _, speed, score in points:
        style = _style(record, name) | {"linestyle": "", "markersize": 9}
        axes.plot([speed], [score], **style)
    rows = next(iter(record["candidates"].values()))["quality"]["rows"]
    figure = points[0][1].replace("_", " ")
    axes.set_xscale("log")
    _ticks(axes.xaxis)
    scores = [score for *_, score in points]
    margin = max(0.5, (max(scores) - min(scores)) * 0.3)
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    _finish(
        axes,
        "Accuracy against speed, many real texts in length-sorted batches",
        "texts a second (logarithmic)",
        f"{figure} on {rows} dev rows, percent",
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return True


def _ticks(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _finish(axes: Any, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
