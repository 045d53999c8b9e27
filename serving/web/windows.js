// Draws the windows of a long text over the text: a map with one bar per window, the text itself, and a table.

import { el, hueOf, percent } from "./answer.js";

export function drawWindows(target, asked, prediction, words) {
  const windows = prediction.window_list;
  const text = windows[0].side === "pair" ? asked.pair : asked.text;
  const best = (view) => view.scores?.[0];
  // Of a multi-label task each label has a weight of its own.
  const weightOf = (view) => view.weight ?? best(view)?.weight;
  const heaviest = Math.max(...windows.map((view) => weightOf(view) ?? 0)) || 1;
  const length = Math.max(1, windows.at(-1).end);

  const map = el("div", { className: "map", role: "toolbar", "aria-label": words.windowMap });
  const shown = el("p", { className: "windowed", tabindex: "0", lang: "" });
  const told = el("p", { className: "told", "aria-live": "polite" });
  const body = el("tbody", {});
  const pieces = cut(text, windows);
  shown.append(...pieces.map((piece) => piece.node));

  const bars = windows.map((view, at) => {
    const weight = weightOf(view);
    const says = best(view);
    const name = [words.windowName(at + 1, windows.length)];
    if (says) name.push(words.windowSays(says.label, percent(says.score)));
    if (weight !== undefined) name.push(words.windowWeight(weight.toFixed(3)));
    name.push(words.windowTokens(view.tokens, view.start, view.end));
    const bar = el("button", { type: "button", className: "bar", tabindex: "-1", title: name.join(words.comma), "aria-label": name.join(words.comma), "aria-pressed": "false" });
    const fill = el("span", { className: `fill ${says ? hueOf(target, says.label) : "plain"}` });
    bar.style.left = `${(100 * view.start) / length}%`;
    bar.style.width = `${(100 * (view.end - view.start)) / length}%`;
    bar.style.top = at % 2 ? "50%" : "0";
    fill.style.height = says ? `${Math.max(8, 100 * says.score)}%` : "100%";
    fill.style.opacity = weight === undefined ? 0.6 : 0.25 + (0.75 * weight) / heaviest;
    bar.append(fill, el("span", { className: "nth" }, String(at + 1)));
    bar.addEventListener("click", () => choose(at));
    map.append(bar);
    body.append(el("tr", {}, el("th", { scope: "row" }, String(at + 1)),
      el("td", { className: "edges" }, view.begins, " … ", view.ends),
      ...(says ? [el("td", {}, el("span", { className: `chip little ${hueOf(target, says.label)}` }, says.label)),
        el("td", { className: "number" }, percent(says.score))] : []),
      ...(weight === undefined ? [] : [el("td", { className: "number" }, weight.toFixed(3))])));
    return { bar, name };
  });
  bars[0].bar.tabIndex = 0;

  function choose(at, focus = false) {
    bars.forEach(({ bar }, other) => {
      bar.setAttribute("aria-pressed", String(other === at));
      bar.tabIndex = other === at ? 0 : -1;
      body.children[other].classList.toggle("on", other === at);
    });
    pieces.forEach((piece) => piece.node.classList.toggle("on", piece.covers.includes(at)));
    told.textContent = bars[at].name.join(words.comma);
    const first = pieces.find((piece) => piece.covers.includes(at));
    if (first) shown.scrollTop = Math.max(0, first.node.offsetTop - shown.offsetTop - 40);
    if (focus) bars[at].bar.focus();
  }

  map.addEventListener("keydown", (event) => {
    const now = bars.findIndex(({ bar }) => bar === document.activeElement);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: bars.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.min(bars.length - 1, Math.max(0, to)), true);
  });

  const first = windows[0];
  const columns = [words.colWindow, words.colText];
  if (best(first)) columns.push(words.colSays, words.colScore);
  if (weightOf(first) !== undefined) columns.push(words.colWeight);
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...columns.map((name, at) => el("th", { scope: "col", className: at === 1 ? "edges" : at > 2 || (at === 2 && !best(first)) ? "number" : "" }, name)))), body);
  return el("div", { className: "windows" }, el("p", { className: "hint" }, words.windowHint), map, told, shown,
    el("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": words.windowMap }, table));
}

// The text in pieces, cut wherever a window begins or ends; each with the windows that read it.
function cut(text, windows) {
  const starts = new Map(windows.map((view, at) => [view.start, at + 1]));
  const places = [...new Set([0, ...windows.flatMap((view) => [view.start, view.end]), text.length])].sort((a, b) => a - b);
  return places.slice(0, -1).map((from, at) => {
    const to = places[at + 1];
    const covers = windows.flatMap((view, number) => (view.start <= from && view.end >= to ? [number] : []));
    const node = el("span", { className: covers.length > 1 ? "piece shared" : covers.length ? "piece" : "piece unread" }, text.slice(from, to));
    if (starts.has(from)) node.dataset.begins = starts.get(from);
    return { node, covers };
  });
}
