// Talks to the server that the page came from: models, one prediction, and the curl line that does the same.

// What can be asked: each model as the server chooses its version, and, where several are loaded, each by its number.
// {id, name, title, version, format, task, labels, …}; `pinned` is the version that is asked for.
export async function listTargets() {
  const { models } = await read("/v1/models");
  const listed = await Promise.all(models.map(async (model) => {
    const { versions = [] } = await read(`/v1/models/${encodeURIComponent(model.name)}`);
    const pinned = versions.length < 2 ? [] : versions.map(({ version, roles }) => ({
      ...model, id: `${model.name}@${version}`, title: `${model.name} @ ${version}${roles.length ? ` (${roles.join(", ")})` : ""}`,
      version, format: version === model.version ? model.format : "", pinned: version,
    }));
    return [{ ...model, id: model.name, title: model.name }, ...pinned];
  }));
  return listed.flat();
}

async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(String(response.status));
  return response.json();
}

// What is sent: JavaScript counts UTF-16 units, so those are asked for.
export function bodyOf(target, { text, pair, windows, truncate, top }) {
  const body = { inputs: target.task === "text-pair" ? [{ text, pair }] : text };
  if (top) body.top_k = top;
  if (windows) body.return_windows = true;
  if (truncate) body.truncate = true;
  if (target.pinned) body.version = target.pinned;
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
