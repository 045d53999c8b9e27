"""A picture of a run: a matplotlib figure, drawn once for the page (SVG) and once as a PNG.

Colours come from a `Palette`: on the page they are CSS variables, so that one picture is right on light and on dark.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERIES = 6


@dataclass(frozen=True)
class Palette:
    """Colours as matplotlib takes them."""

    ink: str
    faint: str
    series: tuple[str, ...]


# Colours that stand in an SVG for a variable; no colour map has them.
PAGE = Palette("#010102", "#010103", tuple(f"#01010{n}" for n in range(4, 4 + SERIES)))
VARIABLES = {
    PAGE.ink: "var(--ink)",
    PAGE.faint: "var(--faint)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(PAGE.series, 1)},
}
PAPER = Palette("#24292f", "#d0d7de", ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#6e7781"))

Draw = Callable[[Any, Palette], None]


@dataclass(frozen=True)
class Figure:
    """A picture and what it tells.

    Attributes:
        name: of its file.
        size: inches.
        shows: what is to be seen, a sentence or two.
        look: what to look for.
    """

    name: str
    title: str
    size: tuple[float, float]
    draw: Draw
    shows: str
    look: str

    def svg(self) -> str:
        """Its ``<svg>`` element, with variables for colours and the width of what it stands in."""
        content = self._saved(PAGE, "svg").decode("utf-8")
        content = content[content.index("<svg") :]
        content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
        content = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', content, count=1)
        content = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{self.name}-", content)
        for colour, variable in VARIABLES.items():
            content = content.replace(colour, variable)
        return content

    def png(self, folder: Path) -> Path:
        """Writes it on white."""
        path = folder / f"{self.name}.png"
        temporary = folder / f".{self.name}.tmp.png"
        temporary.write_bytes(self._saved(PAPER, "png"))
        return temporary.replace(path)

    def _saved(self, palette: Palette, kind: str) -> bytes:
        import logging

        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        # Chinese labels: a browser finds its own font; of a PNG's missing glyphs nobody needs a hundred warnings.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        style = {
            "svg.fonttype": "none",
            "svg.hashsalt": self.name,
            "font.family": ["DejaVu Sans", *_chinese_fonts()],
            "font.size": 9.0,
            "axes.titlesize": 10.0,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": palette.faint,
            "axes.grid": False,
            "axes.axisbelow": True,
            "grid.color": palette.faint,
            "grid.linewidth": 0.6,
            "text.color": palette.ink,
            "axes.labelcolor": palette.ink,
            "xtick.color": palette.ink,
            "ytick.color": palette.ink,
            "legend.frameon": False,
        }
        with matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
            figure = pyplot.figure(figsize=self.size, layout="constrained")
            self.draw(figure, palette)
            stream = io.BytesIO()
            more: dict[str, Any] = (
                {"metadata": {"Date": None, "Creator": None}} if kind == "svg" else {"facecolor": "white", "dpi": 110}
            )
            figure.savefig(stream, format=kind, transparent=kind == "svg", **more)
            pyplot.close(figure)
        return stream.getvalue()


def _chinese_fonts() -> list[str]:
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "SimHei") if name in known]
