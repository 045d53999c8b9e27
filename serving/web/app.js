// The page: what is chosen, typed and asked, and what is shown for it.

import { ask, bodyOf, curlOf, listTargets } from "./api.js";
import { drawAnswer, drawDifference, drawProblem, el, inWords } from "./answer.js";
import { EXAMPLES, WORDS, pickLanguage } from "./words.js";

const $ = (id) => document.getElementById(id);
const FILE_MB = 4;

const state = { language: "en", theme: "auto", targets: [], asking: null, shown: null };
const words = () => WORDS[state.language];

// Storage may be forbidden; then the choice lasts as long as the page.
function kept(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`slipway.${name}`, value);
    return localStorage.getItem(`slipway.${name}`);
  } catch {
    return null;
  }
}

function setTheme(theme) {
  state.theme = theme;
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = words().themes[theme];
}

function setLanguage(language) {
  state.language = language;
  const w = words();
  document.documentElement.lang = w.lang;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = w[node.dataset.word];
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", w[node.dataset.label]);
  $("language").textContent = w.other;
  $("language").lang = w.otherLang;
  setTheme(state.theme);
  count();
  if (state.targets.length) showModel();
  redraw();
}

const chosen = () => state.targets.find((target) => target.id === $("model").value);
const rival = () => state.targets.find((target) => target.id === $("other").value);

function showModel() {
  const target = chosen();
  const w = words();
  const pairs = target.task === "text-pair";
  $("pair-field").hidden = !pairs;
  $("text-label").textContent = pairs ? w.firstText : w.text;
  $("about").textContent = w.about(
    { labels: target.labels.length, version: target.version, format: target.format, windows: target.max_windows, tokens: target.max_tokens },
    w.tasks[target.task] || target.task);
  // Only what answers the same question can be compared.
  const before = $("other").value;
  const others = state.targets.filter((other) => other.id !== target.id && other.task === target.task);
  $("other").replaceChildren(el("option", { value: "" }, w.nothing), ...others.map((other) => el("option", { value: other.id }, other.title)));
  $("other").value = others.some((other) => other.id === before) ? before : "";
  $("other").disabled = !others.length;
  const [short, long] = (EXAMPLES[state.language][target.task] || ["", ""]);
  const example = (name, value) => {
    const button = el("button", { type: "button", className: "quiet" }, name);
    button.addEventListener("click", () => {
      [$("text").value, $("pair").value] = pairs ? value : [value, ""];
      count();
      submit();
    });
    return button;
  };
  $("examples").replaceChildren(example(w.shortExample, short), example(w.longExample, long));
}

function count() {
  let characters = 0;
  for (const _ of $("text").value) characters += 1;
  $("count").textContent = characters ? words().characters(characters) : "";
}

function show(...nodes) {
  $("answer").replaceChildren(...nodes);
}

function say(sentence) {
  $("said").textContent = sentence;
}

// What is shown is drawn again in another language, without asking again.
function redraw() {
  const w = words();
  if (!state.shown) {
    const text = state.targets.length ? w.emptyMore : "";
    show(el("div", { className: "card empty" }, el("p", {}, w.empty), el("p", { className: "hint" }, text)));
    return;
  }
  if (state.shown.failed) {
    show(el("div", { className: "card problem", role: "alert" }, el("p", {}, w[state.shown.failed] || "")));
    return;
  }
  const { targets, asked, results } = state.shown;
  const cards = results.map((result, at) => result.answer
    ? drawAnswer(targets[at], asked[at], result, w)
    : drawProblem(result, w, { again: submit, truncate: () => { $("truncate").checked = true; submit(); } }));
  const answers = results.filter((result) => result.answer).map((result) => result.answer.predictions[0]);
  const both = answers.length === 2 ? [drawDifference(targets, answers, w)] : [];
  show(...both, el("div", { className: results.length > 1 ? "sides" : "one" }, ...cards));
  const wrong = results.find((result) => !result.answer);
  const field = wrong?.problem?.field || "";
  const second = /pair$/.test(field);
  $("text").setAttribute("aria-invalid", String(/^inputs/.test(field) && !second));
  $("pair").setAttribute("aria-invalid", String(/^inputs/.test(field) && second));
  if (wrong && (wrong.status === 401 || wrong.status === 403)) {
    document.querySelector(".options").open = true;
    $("key").focus();
  }
}

function waiting(targets) {
  const w = words();
  const line = el("p", { className: "hint" }, w.working);
  const bones = () => el("div", { className: "card bones", "aria-hidden": "true" }, el("i"), el("i"), el("i"), el("i"));
  show(line, el("div", { className: targets.length > 1 ? "sides" : "one" }, ...targets.map(bones)));
  const begun = performance.now();
  return setInterval(() => { line.textContent = w.workingFor(Math.round((performance.now() - begun) / 1000)); }, 1000);
}

async function submit() {
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  const targets = [chosen(), rival()].filter(Boolean);
  if (!targets.length) return;
  const wanted = {
    text: $("text").value, pair: $("pair").value, windows: $("windows").checked, truncate: $("truncate").checked,
    top: Math.max(0, Math.trunc(Number($("top").value))) || 0,
  };
  const key = $("key").value;
  const clock = waiting(targets);
  $("answer").setAttribute("aria-busy", "true");
  $("stop").hidden = false;
  say(words().working);
  try {
    const asked = [];
    const results = [];
    for (const target of targets) { // one after the other, so that neither slows the other down
      const body = bodyOf(target, wanted);
      asked.push({ ...wanted, curl: curlOf(target, body, Boolean(key)) });
      results.push(await ask(target, body, key, asking.signal));
    }
    state.shown = { targets, asked, results };
    say(results.map((result) => result.answer ? inWords(result.answer.predictions[0], words()) : result.problem?.title || words().unreachable).join(" / "));
  } catch (error) {
    if (asking !== state.asking) return; // a newer question took its place
    if (error.name !== "AbortError") throw error;
    state.shown = { failed: "stopped" };
    say(words().stopped);
  } finally {
    clearInterval(clock);
    if (asking === state.asking) {
      state.asking = null;
      $("answer").setAttribute("aria-busy", "false");
      $("stop").hidden = true;
    }
  }
  redraw();
}

async function readFile(file) {
  if (file.size > FILE_MB * 1024 * 1024) return say(words().tooLarge(FILE_MB)), words().tooLarge(FILE_MB);
  try {
    $("text").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    count();
    return "";
  } catch {
    say(words().notText);
    return words().notText;
  }
}

function wire() {
  const form = $("ask");
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); }
  });
  $("stop").addEventListener("click", () => state.asking?.abort());
  $("clear").addEventListener("click", () => {
    state.asking?.abort();
    state.shown = null;
    $("text").value = $("pair").value = "";
    count();
    redraw();
    $("text").focus();
  });
  $("text").addEventListener("input", count);
  $("model").addEventListener("change", () => { state.asking?.abort(); state.shown = null; showModel(); redraw(); });
  $("language").addEventListener("click", () => setLanguage(kept("language", state.language === "en" ? "zh" : "en") || (state.language === "en" ? "zh" : "en")));
  $("theme").addEventListener("click", () => {
    const next = { auto: "light", light: "dark", dark: "auto" }[state.theme];
    kept("theme", next);
    setTheme(next);
  });
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", async (event) => {
    form.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (!file) return; // dragged text falls into the field by itself
    event.preventDefault();
    $("drop-hint").textContent = (await readFile(file)) || words().dropHint;
  });
}

async function start() {
  wire();
  state.theme = ["light", "dark"].includes(kept("theme")) ? kept("theme") : "auto";
  setLanguage(pickLanguage(kept("language") || navigator.language));
  try {
    state.targets = await listTargets();
  } catch {
    state.shown = { failed: "unreachable" };
    redraw();
    return;
  }
  if (!state.targets.length) {
    state.shown = { failed: "noModels" };
    redraw();
    return;
  }
  $("model").replaceChildren(...state.targets.map((target) => el("option", { value: target.id }, target.title)));
  showModel();
  redraw();
  document.documentElement.dataset.ready = "yes";
}

start();
