// Talks to the server that the page came from: models, one prediction, and the curl line that does the same.

// A model, or a version of one, as the page offers it: {id, name, title, version, format, task, labels, …}.
export async function listModels() {
  const response = await fetch("/v1/models");
  if (!response.ok) throw new Error(String(response.status));
  return (await response.json()).models.map((model) => ({ ...model, id: model.name, title: model.name }));
}

// What is sent: JavaScript counts UTF-16 units, so those are asked for.
export function bodyOf(target, { text, pair, windows, truncate, top }) {
  const body = { inputs: target.task === "text-pair" ? [{ text, pair }] : text };
  if (top) body.top_k = top;
  if (windows) body.return_windows = true;
  if (truncate) body.truncate = true;
  body.offset_unit = "utf16";
  return body;
}

export const pathOf = (target) => `/v1/models/${encodeURIComponent(target.name)}/predict`;

// Resolves to {answer, ms} or {problem, status, retryAfter}; rejects only where the caller stopped it.
export async function ask(target, body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const begun = performance.now();
  let response;
  let said;
  try {
    response = await fetch(pathOf(target), { method: "POST", headers, body: JSON.stringify(body), signal });
    said = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { problem: null, status: 0 };
  }
  const ms = performance.now() - begun;
  let parsed = null;
  try {
    parsed = JSON.parse(said);
  } catch {
    // A proxy in between may answer in HTML; the status still says something.
  }
  if (response.ok && parsed) return { answer: parsed, ms };
  const seconds = Number(response.headers.get("Retry-After"));
  return { problem: parsed, status: response.status, retryAfter: seconds || 0 };
}

// For a POSIX shell: in single quotes nothing has a meaning but the quote itself.
export function curlOf(target, body, withKey) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const key = withKey ? ' \\\n  -H "Authorization: Bearer $SLIPWAY_KEY"' : "";
  return `curl -s ${location.origin}${pathOf(target)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted}`;
}
