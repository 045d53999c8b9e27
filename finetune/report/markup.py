"""HTML in small pieces: the style sheet, tables, tiles, and values in words. Knows nothing of a run."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from finetune.report.drawing import PAPER, SERIES

Json = dict[str, Any]

# The dark page's series: the same hues, lighter.
DARK = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#9ea7b3")
STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--card:#f6f8fa;--ink:#24292f;--faint:#d0d7de;--soft:#57606a;"
    + "".join(f"--series-{n}:{PAPER.series[n - 1]};" for n in range(1, SERIES + 1))
    + "}\n@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--card:#161b22;--ink:#e6edf3;--faint:#30363d;"
    "--soft:#9ea7b3;"
    + "".join(f"--series-{n}:{DARK[n - 1]};" for n in range(1, SERIES + 1))
    + """}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Noto Sans CJK SC",sans-serif}
main{max-width:1060px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;margin:.2rem 0}h2{font-size:1.25rem;margin:2.4rem 0 .4rem;border-bottom:1px solid var(--faint);
padding-bottom:.2rem}p{margin:.4rem 0;max-width:75ch}.soft{color:var(--soft)}nav a{margin-right:1rem}
a{color:var(--series-1)}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}.tile{background:var(--card);border:1px solid var(--faint);
border-radius:8px;padding:.5rem .9rem;min-width:7.5rem}.tile b{display:block;font-size:1.35rem}
figure{margin:.8rem 0}figure svg{display:block;width:100%;height:auto}figcaption{margin-top:.3rem}
figcaption p{margin:.15rem 0}.pair{display:flex;flex-wrap:wrap;gap:1.5rem;align-items:flex-start}
.pair figure{flex:1 1 420px;
min-width:300px}table{border-collapse:collapse;margin:.6rem 0;font-size:.92rem}
th,td{border-bottom:1px solid var(--faint);
padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}.text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:16rem}
.how{background:var(--card);border-left:4px solid var(--series-2);padding:.5rem .9rem;margin:.6rem 0;max-width:75ch}
code,pre{font:.88em/1.45 ui-monospace,monospace}
pre{background:var(--card);border:1px solid var(--faint);border-radius:8px;
padding:.7rem 1rem;overflow-x:auto}
"""
)


def differences(recipes: Sequence[Json]) -> list[tuple[str, list[str]]]:
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one if key not in ("name", "summary", "expect"))
    return [
        (key, [words(one.get(key)) for one in flat]) for key in keys if len({words(one.get(key)) for one in flat}) > 1
    ]


def _flat(table: Json, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def toml(recipe: Json) -> str:
    """A recipe's tables as TOML writes them; thresholds and strategies that are off are left out."""
    lines = [
        f"{key} = {_value(value)}" for key, value in recipe.items() if not isinstance(value, dict) and value is not None
    ]
    for name, table in recipe.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"]
            for key, value in table.items():
                if value is None or (name == "curve" and isinstance(value, dict) and not value.get("use")):
                    continue
                inner = (
                    f"{{ {', '.join(f'{k} = {_value(v)}' for k, v in value.items())} }}"
                    if isinstance(value, dict)
                    else ""
                )
                lines.append(f"{key} = {inner or _value(value)}")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    def cell(value: str, kind: str = "td") -> str:
        numeric = value.replace(",", "").replace(".", "").replace("–", "").strip().isdigit()
        text = value if raw or kind == "th" else escaped(value)
        return f"<{kind}{' class=n' if numeric else ''}>{text}</{kind}>"

    heads = f"<thead><tr>{''.join(cell(escaped(name), 'th') for name in head)}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{heads}<tbody>{body}</tbody></table></div>'


def text(row: Json) -> str:
    pair = f"\n— {row['pair']}" if row.get("pair") else ""
    count = f'<span class="soft">{row["characters"]:,} characters</span>'
    return f'<div class="text">{escaped(row["text"] + pair)}</div>{count}'


def words(value: Any) -> str:
    """A label, a list of labels, or entities, in a few words."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {words(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        parts = [
            f"{one[2]} {one[0]}–{one[1]}" if isinstance(one, list) and len(one) == 3 else str(one) for one in value
        ]
        return ", ".join(parts) or "none"
    return "–" if value is None else str(value)


def tile(what: str, value: str) -> str:
    return f'<div class="tile"><b>{escaped(value)}</b><span class="soft">{escaped(what)}</span></div>'


def number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "–"


def duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def escaped(text: str) -> str:
    return html.escape(text)
