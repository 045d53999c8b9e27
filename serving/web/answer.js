// Draws one answer: verdict, bars, entities in the text, rules, time, curl. Text reaches the page as text nodes only.

import { drawWindows } from "./windows.js";

const FEW = 10; // bars that are shown before a reader asks for more
const HUES = 8; // colours that style.css knows

// An element; properties that start with "aria" or "data", and role, become attributes.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (/^(aria|data)-|^(role|for|lang|tabindex)$/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const percent = (score) => `${(100 * score).toFixed(score > 0.9995 || score < 0.0005 ? 0 : 1)}%`;

// A label keeps its colour wherever it is drawn.
export function hueOf(target, label) {
  const at = target.labels.indexOf(label);
  return `hue${(at < 0 ? 0 : at) % HUES}`;
}

const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toString());

export function drawAnswer(target, asked, result, words) {
  const { answer, ms } = result;
  const prediction = answer.predictions[0];
  const card = el("article", { className: "card result", "aria-label": target.title });
  card.append(
    el("header", { className: "line" },
      el("h2", {}, answer.model),
      el("span", { className: "hint" }, `${words.version(answer.version)} · ${answer.format}`)),
    verdict(target, prediction, words));
  if (prediction.scores) card.append(bars(target, prediction, words));
  if (prediction.entities) card.append(entities(target, asked.text, prediction.entities, words));
  if (prediction.rules) card.append(rules(prediction.rules, words));
  card.append(howRead(target, asked, prediction, words), timings(answer.timing_ms, ms, words));
  card.append(curl(asked.curl, words), el("details", { className: "more" },
    el("summary", {}, words.json), el("pre", { tabindex: "0" }, JSON.stringify(answer, null, 2))));
  return card;
}

// What a reader without eyes on the page is told.
export function inWords(prediction, words) {
  const said = [];
  if (prediction.label) said.push(`${prediction.label} ${percent(prediction.score)}`);
  if (prediction.labels) said.push(prediction.labels.map((item) => `${item.label} ${percent(item.score)}`).join(", ") || words.noLabel);
  if (prediction.entities) said.push(words.entities(prediction.entities.length));
  return said.join("; ");
}

function verdict(target, prediction, words) {
  const box = el("div", { className: "verdict" });
  const chip = (item) => el("strong", { className: `chip ${hueOf(target, item.label)}` }, item.label,
    el("span", { className: "number" }, percent(item.score)));
  if (prediction.label) box.append(chip(prediction));
  if (prediction.labels) box.append(...prediction.labels.map(chip));
  if (prediction.labels?.length === 0) box.append(el("span", { className: "hint" }, words.noLabel));
  if (!prediction.scores) box.append(el("span", { className: "hint" }, words.entities(prediction.entities.length)));
  return box;
}

function bars(target, prediction, words) {
  const thresholds = target.thresholds || {};
  const given = new Set((prediction.labels || [prediction]).map((item) => item.label));
  const list = el("ul", { className: "bars" });
  prediction.scores.forEach(({ label, score }, at) => {
    const fill = el("span", { className: `fill ${hueOf(target, label)}` });
    fill.style.width = `${100 * score}%`;
    const track = el("span", {
      className: "track", role: "meter", "aria-label": label, "aria-valuenow": score, "aria-valuemin": 0, "aria-valuemax": 1,
      "aria-valuetext": given.has(label) ? `${percent(score)}, ${words.given}` : percent(score),
    }, fill);
    if (label in thresholds) {
      const tick = el("span", { className: "tick", title: `${words.threshold} ${thresholds[label]}` });
      tick.style.left = `${100 * thresholds[label]}%`;
      track.append(tick);
    }
    list.append(el("li", { className: given.has(label) ? "given" : "", hidden: at >= FEW },
      el("span", { className: "label", title: label }, label), track, el("span", { className: "number" }, percent(score))));
  });
  if (prediction.scores.length <= FEW) return list;
  const all = el("button", { type: "button", className: "quiet" }, words.allLabels(prediction.scores.length));
  all.addEventListener("click", () => {
    for (const row of list.children) row.hidden = false;
    all.remove();
  });
  return el("div", {}, list, all);
}

// The text with its entities; offsets count UTF-16 units, as slice does.
function entities(target, text, found, words) {
  const shown = el("p", { className: "marked", lang: "" });
  let at = 0;
  for (const item of found) {
    if (item.start < at) continue; // a rule may add one that overlaps another
    shown.append(text.slice(at, item.start), el("mark", {
      className: hueOf(target, item.label), title: `${item.label} · ${words.score} ${percent(item.score)}`, "data-label": item.label,
    }, text.slice(item.start, item.end), el("span", { className: "kind" }, item.label)));
    at = item.end;
  }
  shown.append(text.slice(at));
  if (!found.length) return el("div", {}, shown, el("p", { className: "hint" }, words.noEntity));
  const rows = found.map((item) => el("tr", {},
    el("td", {}, item.text), el("td", {}, el("span", { className: `chip little ${hueOf(target, item.label)}` }, item.label)),
    el("td", { className: "number" }, percent(item.score)), el("td", { className: "number" }, `${item.start}–${item.end}`)));
  return el("div", {}, shown, el("details", { className: "more" },
    el("summary", {}, words.entities(found.length)), el("div", { className: "scroll" }, el("table", {}, el("tbody", {}, ...rows)))));
}

function rules(fired, words) {
  return el("div", { className: "note" }, el("h3", {}, words.rules), el("ul", {}, ...fired.map((rule) =>
    el("li", {}, el("b", {}, rule.rule), ` (${rule.action} ${rule.label}): ${rule.reason}`))));
}

function howRead(target, asked, prediction, words) {
  const section = el("section", { className: "read", "aria-label": words.howRead });
  const line = [words.reading(prediction.tokens, prediction.windows)];
  if (prediction.truncated) line.push(words.readPart(percent(prediction.covered)));
  section.append(el("h3", {}, words.howRead), el("p", { className: prediction.truncated ? "note" : "hint" }, line.join(" · ")));
  if (prediction.window_list?.length > 1) section.append(drawWindows(target, asked, prediction, words));
  return section;
}

function timings(server, ms, words) {
  const parts = { tokenize: server.tokenize, infer: server.infer, decode: server.decode };
  parts.elsewhere = Math.max(0, ms - server.total);
  const whole = Object.values(parts).reduce((sum, value) => sum + value, 0) || 1;
  const bar = el("div", { className: "stages", "aria-hidden": "true" });
  const list = el("ul", { className: "legend" });
  Object.entries(parts).forEach(([stage, value], at) => {
    const part = el("span", { className: `hue${at}` });
    part.style.width = `${(100 * value) / whole}%`;
    bar.append(part);
    list.append(el("li", {}, el("span", { className: `dot hue${at}`, "aria-hidden": "true" }), `${words.stages[stage]} ${milliseconds(value)} ms`));
  });
  return el("section", { className: "time", "aria-label": words.timings }, el("h3", {}, words.timings), bar, list,
    el("p", { className: "hint" }, `${words.total(milliseconds(ms))} · ${words.serverTotal(milliseconds(server.total))}`));
}

function curl(line, words) {
  const copy = el("button", { type: "button", className: "quiet" }, words.copy);
  const shown = el("pre", { className: "curl", tabindex: "0" }, line);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(line);
      copy.textContent = words.copied;
    } catch {
      // Over plain HTTP from another machine there is no clipboard; the selected line can be copied by hand.
      getSelection().selectAllChildren(shown);
    }
  });
  return el("details", { className: "more", open: line.length < 700 }, el("summary", {}, words.curl), el("div", { className: "copyable" }, shown, copy));
}

// What two answers have in common, and where they differ.
export function drawDifference(targets, predictions, words) {
  const [a, b] = predictions;
  const lines = [];
  if (a.label) lines.push(a.label === b.label ? words.sameLabel(a.label) : words.otherLabel(a.label, b.label));
  if (a.labels) {
    const [left, right] = [a, b].map((item) => item.labels.map(({ label }) => label).sort().join(", ") || "–");
    lines.push(left === right ? words.sameLabels : words.otherLabel(left, right));
  }
  if (a.scores && b.scores) {
    const theirs = new Map(b.scores.map(({ label, score }) => [label, score]));
    const deltas = a.scores.filter(({ label }) => theirs.has(label)).map(({ label, score }) => [Math.abs(score - theirs.get(label)), label]);
    if (deltas.length) {
      const [delta, label] = deltas.reduce((most, item) => (item[0] > most[0] ? item : most));
      lines.push(words.largest(delta.toFixed(4), label));
    }
  }
  const list = el("ul", {});
  if (a.entities && b.entities) {
    const keys = (items) => new Map(items.map((item) => [`${item.start}:${item.end}:${item.label}`, item]));
    const [left, right] = [keys(a.entities), keys(b.entities)];
    const only = (these, those) => [...these].filter(([key]) => !those.has(key)).map(([, item]) => item);
    const [onlyA, onlyB] = [only(left, right), only(right, left)];
    lines.push(words.entityDifference(left.size - onlyA.length, onlyA.length, onlyB.length));
    [onlyA, onlyB].forEach((items, side) => items.forEach((item) =>
      list.append(el("li", {}, `${words.onlyIn(targets[side].title)}: ${item.text} (${item.label})`))));
  }
  const box = el("article", { className: "card difference" }, el("h2", {}, words.difference), ...lines.map((line) => el("p", {}, line)));
  if (list.children.length) box.append(list);
  return box;
}

export function drawProblem(result, words, actions) {
  const problem = result.problem || {};
  const kind = (problem.type || "").split(":").pop();
  const title = result.status === 0 ? words.unreachable : words.problems[kind] || problem.title || words.odd(result.status);
  const facts = el("dl", {});
  const fact = (name, value) => value !== undefined && facts.append(el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
  fact(words.problemField, problem.field);
  fact(words.problemLimit, problem.limit);
  fact(words.problemValue, problem.value);
  fact(words.problemId, problem.instance?.split(":").pop());
  const box = el("article", { className: "card problem", role: "alert" }, el("h2", {}, title),
    el("p", { lang: problem.detail ? "en" : undefined }, problem.detail || (result.status === 0 ? words.unreachableMore : "")), facts);
  if (result.retryAfter) box.append(el("p", {}, words.retryAfter(result.retryAfter)));
  const row = el("div", { className: "actions" });
  if (kind === "text-too-long") row.append(button(words.readBeginning, actions.truncate));
  if (result.status === 0 || result.status >= 500 || result.status === 429) row.append(button(words.again, actions.again));
  if (row.children.length) box.append(row);
  return box;
}

function button(name, action) {
  const node = el("button", { type: "button" }, name);
  node.addEventListener("click", action);
  return node;
}
