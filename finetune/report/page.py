"""One or several runs → one HTML page that needs nothing else: no script, no outside file, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundle.folder import write_atomic
from finetune.curve.intervention import deeds
from finetune.report import curves, scores
from finetune.report.drawing import Figure
from finetune.report.markup import STYLE, differences, duration, escaped, number, table, text, tile, toml, words
from finetune.report.source import Run, named_apart


def write_page(runs: Sequence[Run], path: Path) -> list[Path]:
    """Writes the page, and its pictures as PNGs into a folder beside it.

    Returns:
        what was written, the page first.
    """
    page = _Page(runs)
    content = page.render()
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [figure.png(folder) for figure in page.drawn]
    write_atomic(path, content)
    return [path, *pictures]


class _Page:
    """Collects sections; knows each run's parts and says of missing ones how to get them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.names = list(runs), named_apart(list(runs))
        self.sections: list[tuple[str, str, str]] = []  # (id, title, content)
        self.drawn: list[Figure] = []

    def render(self) -> str:
        if len(self.runs) > 1:
            self._compare()
        run = self.runs[0]
        self._training(run)
        self._inside(run)
        self._answers(run)
        self._examples(run)
        self._recipe(run)
        title = " · ".join(self.names)
        links = "".join(f'<a href="#{key}">{escaped(name)}</a>' for key, name, _ in self.sections)
        body = "".join(
            f'<section id="{key}"><h2>{escaped(name)}</h2>{own}</section>' for key, name, own in self.sections
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escaped(title)}: training report</title><style>{STYLE}</style></head><body><main>"
            f"<h1>{escaped(title)}</h1>{self._head(run)}<nav>{links}</nav>{body}</main></body></html>\n"
        )

    def _section(self, key: str, title: str, *parts: str) -> None:
        self.sections.append((key, title, "".join(parts)))

    def _figure(self, figure: Figure) -> str:
        self.drawn.append(figure)
        width = f"max-width:{figure.size[0] * 1.05:.1f}in"
        look = f'<p class="soft"><b>Look for:</b> {escaped(figure.look)}</p>'
        return (
            f'<figure style="{width}" aria-label="{escaped(figure.title)}">{figure.svg()}'
            f"<figcaption><p>{escaped(figure.shows)}</p>{look}</figcaption></figure>"
        )

    # Parts

    def _head(self, run: Run) -> str:
        about, history = run.about, run.history.run
        kind = f"{history['task']}, {history['steps']:,} steps of {history['batch']} windows"
        base = f", base {about['base']['name']}" if about else ""
        summary = about.get("recipe", {}).get("summary", "")
        only = f" Details below are of {escaped(self.names[0])}, the first." if len(self.runs) > 1 else ""
        return (
            f'<p class="soft">{escaped(summary)}{". " if summary else ""}{escaped(kind + base)}.{only}</p>'
            f'<div class="tiles">{"".join(tile(*one) for one in _tiles(run))}</div>'
            f"<p>{'<br>'.join(escaped(sentence) for sentence in _story(run))}</p>"
        )

    def _compare(self) -> None:
        rows = []
        for run, name in zip(self.runs, self.names, strict=True):
            best, test = run.best, run.split("test").get("metrics", {})
            score = best["scores"][run.metric] if best else None
            rows.append(
                [
                    name,
                    run.metric,
                    number(score),
                    f"{best['step']:,}" if best else "–",
                    number(test.get(run.metric)),
                    f"{run.history.step:,} of {run.history.run['steps']:,}",
                    duration(run.about.get("seconds")),
                    ", ".join(dict.fromkeys(spell.finding.name for spell in run.spells)) or "none",
                    ", ".join(dict.fromkeys(event["strategy"] for event in run.events)) or "none",
                ]
            )
        head = ["run", "metric", "best dev", "at step", "test", "steps", "time", "findings", "interventions"]
        changed = differences([run.about.get("recipe", {}) for run in self.runs])
        keys = table(["key", *self.names], [[key, *values] for key, values in changed]) if changed else ""
        note = (
            "<p>Keys in which the recipes differ:</p>"
            if changed
            else "<p>The recipes differ in no key that is known.</p>"
        )
        self._section(
            "compare",
            "Comparison",
            self._figure(curves.overlay(self.runs, self.names)),
            table(head, rows),
            note,
            keys,
        )

    def _training(self, run: Run) -> None:
        spells = [
            [
                f"<b>{escaped(spell.finding.name)}</b>",
                f"{spell.first:,} – {'end' if spell.last is None else format(spell.last, ',')}",
                escaped(spell.finding.sentence),
            ]
            for spell in run.spells
        ]
        events = []
        for place, event in enumerate(run.events, 1):
            did = "would: " if event.get("dry_run") else ""
            events.append(
                [
                    str(place),
                    f"{event['step']:,}",
                    f"<b>{escaped(event['strategy'])}</b>",
                    escaped(did + "; ".join(deeds(event))),
                    escaped(event["reason"]),
                ]
            )
        parts = [self._figure(curves.curves(run))]
        parts.append(
            "<h3>Findings</h3>" + table(["finding", "steps", "what it means"], spells, raw=True) if spells else ""
        )
        parts.append(
            "<h3>Interventions</h3>" + table(["", "step", "strategy", "did", "because"], events, raw=True)
            if events
            else ""
        )
        if not events and run.about.get("recipe", {}).get("curve", {}).get("control", "off") == "off":
            parts.append('<p class="soft">The controller was off: <code>[curve] control = "on"</code> lets it act.</p>')
        self._section("training", "The training", *parts)

    def _inside(self, run: Run) -> None:
        level = run.history.run["level"]
        for key, title, figure, needed, gains in (
            ("layers", "Layers", curves.layers(run), 2, "gradients and updates of each layer"),
            ("attention", "Attention", curves.attention(run), 3, "attention entropy and how alike texts look"),
        ):
            if figure is not None:
                self._section(key, title, self._figure(figure))
            else:
                self._section(
                    key,
                    title,
                    f'<div class="how">Not recorded: this run was watched at level {level}, and {gains} need level '
                    f"{needed}. Put <code>[curve] level = {needed}</code> into the recipe and train again "
                    "(<code>make finetune RECIPE=… FORCE=1</code>); it costs about 3% of the time and changes no "
                    "bit of "
                    "the weights.</div>",
                )

    def _answers(self, run: Run) -> None:
        parts = []
        labels = run.about.get("labels") or run.evaluation.get("labels") or []
        for name in ("test", "dev"):
            split = run.split(name)
            if not split:
                continue
            matrix = scores.confusion(split, labels)
            drawn = [one for one in (matrix, scores.classes(split), scores.by_length(split)) if one is not None]
            if name == "dev":  # what is chosen on dev is flattered by it; its matrix only helps to read the examples
                drawn = drawn[:1]
            if found := run.about.get("calibration", {}).get(name):
                drawn.append(scores.reliability(name, found))
            metrics = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in split["metrics"].items())
            tagger = run.history.run["task"] == "token-classification"
            joined = "" if tagger else f"; windows joined by {split['pooling']}"
            sample = "" if split["rows"] == split["of_rows"] else f" (a sample of {split['of_rows']:,})"
            parts.append(
                f"<h3>{name}: {split['rows']:,} rows{sample}</h3><p>{escaped(metrics + joined)}.</p>"
                f'<div class="pair">{"".join(self._figure(one) for one in drawn)}</div>'
            )
        if baselines := run.evaluation.get("baselines"):
            names = {"tfidf": "TF-IDF + logistic regression", "tfidf_balanced": "the same, balanced classes"}
            keys = list(next(iter(baselines.values())))
            model = run.split("test").get("metrics", {})
            rows = [["this model", *(number(model.get(key)) for key in keys)]]
            rows += [
                [names.get(name, name), *(number(one.get(key)) for key in keys)] for name, one in baselines.items()
            ]
            parts.append(
                "<h3>Beside a baseline, on test</h3>" + table(["", *(key.replace("_", " ") for key in keys)], rows)
            )
        if not parts:
            parts.append(
                '<div class="how">The run has no evaluation yet: it is still training, or was interrupted. '
                "The same command resumes it.</div>"
            )
        self._section("answers", "Answers", *parts)

    def _examples(self, run: Run) -> None:
        if not run.about:
            self._section(
                "examples",
                "Examples",
                '<div class="how">Not recorded: this run has no <code>report.json</code>, which a run writes at '
                "its end "
                "(earlier versions wrote none). Train again with <code>FORCE=1</code> to get the hardest and "
                "most suspicious "
                "rows, the calibration and the recipe.</div>",
            )
            return
        hardest = [
            [text(row), escaped(words(row["gold"])), escaped(words(row["answer"])), f"{row['loss']:.2f}"]
            for row in run.about["hardest"]
        ]
        parts = [
            "<h3>The hardest: dev rows that are answered wrong, surest first</h3>"
            '<p class="soft">Read ten of them. A pattern (one source, one length, one topic) says which rows to '
            "add; a wrong "
            "label says which rows to mend.</p>",
            table(["text", "label of the row", "the model says", "loss"], hardest, raw=True)
            if hardest
            else "<p>None.</p>",
        ]
        suspicious = [
            [
                text(row),
                escaped(words(row["gold"])),
                escaped(words(row.get("answer", "–"))) + (f" ({row['belief']:.0%})" if "belief" in row else ""),
            ]
            for row in run.about["suspicious"]
        ]
        parts.append(
            "<h3>The most suspicious: train rows whose own label the model would not learn</h3>"
            '<p class="soft">Confident learning (Northcutt et al. 2021) on what the model believed while it '
            "trained. Often the "
            "label is wrong.</p>"
        )
        if suspicious:
            parts.append(table(["text", "label of the row", "the model believed"], suspicious, raw=True))
        else:
            task = run.history.run["task"]
            tells = task in ("single-label", "text-pair", "multi-task")
            why = "no row was contradicted at the best evaluation" if tells else f"not told for {task} tasks"
            parts.append(f"<p>None: {why}.</p>")
        self._section("examples", "Examples", *parts)

    def _recipe(self, run: Run) -> None:
        about = run.about
        if not about:
            return
        machine = about["hardware"]
        facts = [
            ["base model", f"{about['base']['name']} ({about['base']['licence']})"],
            ["data", f"{about['data']['name']} ({about['data']['licence']}), sha256 {about['data']['sha256'][:16]}…"],
            ["rows", ", ".join(f"{name} {count:,}" for name, count in about["rows"].items())],
            ["machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"],
            ["versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())],
            ["commit", about["commit"]],
        ]
        self._section(
            "recipe",
            "Recipe and environment",
            table(["", ""], facts),
            "<h3>As it was given</h3>",
            f"<pre>{escaped(toml(about['given']))}</pre>",
            f"<details><summary>With every default</summary><pre>{escaped(toml(about['recipe']))}</pre></details>",
        )


def _tiles(run: Run) -> list[tuple[str, str]]:
    best, test = run.best, run.split("test").get("metrics", {})
    metric = run.metric.replace("_", " ")
    tiles = []
    if best:
        tiles.append((f"best dev {metric}, step {best['step']:,}", number(best["scores"][run.metric])))
    if run.metric in test:
        tiles.append((f"test {metric}", number(test[run.metric])))
    others = [one[run.metric] for one in run.evaluation.get("baselines", {}).values() if run.metric in one]
    if others:
        tiles.append(("best TF-IDF on test", number(max(others))))
    tiles.append(("steps made", f"{run.history.step:,} / {run.history.planned:,}"))
    if "seconds" in run.about:
        tiles.append(("training took", duration(run.about["seconds"])))
    tiles.append(("findings", str(len({spell.finding.name for spell in run.spells}))))
    tiles.append(("interventions", str(len([e for e in run.events if not e.get("dry_run")]))))
    return tiles


def _story(run: Run) -> list[str]:
    """What happened, in sentences."""
    sentences = []
    best, chance = run.best, run.history.run["dev_chance"]
    if best is None:
        return ["The run has no evaluation yet."]
    at = best["step"] / max(run.history.planned, 1)
    sentences.append(f"Dev was best after {at:.0%} of the planned steps, and that checkpoint was kept.")
    losses = [point["loss"] for point in run.dev if point["loss"] is not None]
    if losses:
        low = min(losses)
        learned = "it learned" if low < 0.85 * chance else "it learned little"
        sentences.append(
            f"The dev loss came down to {low:.3f}, where guessing by frequency gives {chance:.3f}: {learned}."
        )
    open_ = [spell.finding.name for spell in run.spells if spell.last is None]
    if open_:
        sentences.append(
            f"It ended with {', '.join(dict.fromkeys(open_))}: see the findings below for what usually helps."
        )
    else:
        sentences.append("Nothing was wrong at its end." if run.spells else "The diagnosis found nothing wrong.")
    if run.history.begun:
        sentences.append(f"At step {run.history.begun:,} it began anew, since nothing had been learned until then.")
    if run.history.step < run.history.planned:
        sentences.append(
            f"It stopped before its plan was over, at step {run.history.step:,} of {run.history.planned:,}."
        )
    return sentences
