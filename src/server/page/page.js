// Watches texts being denoised: two variants, or mixes, side by side from one seed. Speaks to /v1 and /metrics of its own server.
"use strict";

const at = (id) => document.getElementById(id);
const panes = [];
let running = null;

const headers = () => {
  const key = at("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
};
const say = (text) => (at("said").textContent = text);

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

async function models() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) return say(await failure(response));
  say("");
  const names = (await response.json()).data.map((model) => model.id);
  panes.forEach((pane, index) => {
    fill(pane.one, names, names[Math.min(index + 1, names.length - 1)]);
    fill(pane.other, ["", ...names.filter((name) => name !== "base")], "");
  });
}

function fill(select, names, wish) {
  const before = select.value || wish;
  select.replaceChildren(...names.map((name) => new Option(name || "nothing", name)));
  select.value = names.includes(before) ? before : wish;
}

function addPane() {
  const root = at("pane").content.firstElementChild.cloneNode(true);
  const pick = (name) => root.querySelector(`.${name}`);
  const pane = { one: pick("one"), other: pick("other"), share: pick("share"), text: pick("text"), figures: pick("figures") };
  pane.other.addEventListener("change", () => (pane.share.disabled = !pane.other.value));
  at("panes").append(root);
  panes.push(pane);
}

function model(pane) {
  const [one, other] = [pane.one.value, pane.other.value];
  if (!other || one === other) return one;
  const share = Number(pane.share.value);
  const part = (name, weight) => `${name}:${weight.toFixed(2)}`;
  return one === "base" ? part(other, share) : `${part(one, 1 - share)}+${part(other, share)}`;
}

// What the form asks for, as a completion's body.
function asked() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const choir = { want_steps: true, predictor: at("predictor").value || undefined, steps: number("steps"), threshold: number("threshold") };
  const body = { seed: number("seed"), stream: true, stream_options: { include_usage: true }, choir };
  const prompt = at("prompt").value;
  const pieces = prompt.split(/\[\[(\d+)\]\]/).map((piece, index) => (index % 2 ? Number(piece) : piece));
  if (pieces.length === 1) return { ...body, prompt, max_tokens: number("tokens") };
  choir.template = pieces.filter((piece) => piece !== "");
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function denoise(pane, body, signal) {
  const given = typeof body.prompt === "string" ? body.prompt : "";
  pane.text.replaceChildren();
  pane.figures.textContent = "waiting";
  const response = await fetch("v1/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, model: model(pane) }),
    signal,
  });
  if (!response.ok) throw new Error(await failure(response));
  const tokens = new Map();
  let step = 0;
  let settled = "";
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (event.usage) {
      const { completion_tokens, nfe } = event.usage;
      pane.figures.textContent = `${completion_tokens} tokens in ${nfe} network evaluations`;
    }
    if (!choice) continue;
    if (choice.choir?.revealed) {
      step += 1;
      for (const { position, text } of choice.choir.revealed) tokens.set(position, { text, step });
      pane.figures.textContent = `step ${step}`;
      draw(pane.text, given, tokens, step);
    }
    settled += choice.text ?? "";
    if (choice.finish_reason) pane.text.dataset.settled = settled;
  }
}

// Every token in the colour of the step that settled it, from blue (first) to red (last).
function draw(output, given, tokens, last) {
  const span = (text, name, colour) => {
    const made = document.createElement("span");
    made.textContent = text;
    if (name) made.className = name;
    if (colour) made.style.backgroundColor = colour;
    return made;
  };
  const parts = [span(given, "given")];
  const positions = [...tokens.keys()].sort((a, b) => a - b);
  positions.forEach((position, index) => {
    const hidden = index ? position - positions[index - 1] - 1 : 0;
    if (hidden > 0) parts.push(span("░".repeat(Math.min(hidden, 200)), "hidden"));
    const { text, step } = tokens.get(position);
    const made = span(text, "", `hsl(${230 - 230 * (step / last)} 70% 50% / .28)`);
    made.title = `step ${step}, position ${position}`;
    parts.push(made);
  });
  output.replaceChildren(...parts);
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  at("stop").disabled = false;
  say("");
  const body = asked();
  const ended = await Promise.allSettled(panes.map((pane) => denoise(pane, body, signal)));
  ended.forEach(({ reason }, index) => {
    if (reason && reason.name !== "AbortError") {
      panes[index].figures.textContent = reason.message;
      say(reason.message);
    }
  });
  if (!signal.aborted) at("stop").disabled = true;
});
at("stop").addEventListener("click", () => {
  running?.abort();
  at("stop").disabled = true;
});
at("key").addEventListener("change", models);

// Status: what Prometheus reads, drawn.
const PLOTS = [
  ["tokens/s", (now, before, seconds) => (now.choir_tokens_total - before.choir_tokens_total) / seconds],
  ["waiting", (now) => now.choir_requests_waiting],
  ["running", (now) => now.choir_requests_running],
];
const plots = PLOTS.map(([name, value]) => {
  const figure = document.createElement("figure");
  figure.innerHTML = '<figcaption></figcaption><svg viewBox="0 0 119 40" preserveAspectRatio="none" aria-hidden="true"><polyline></polyline></svg>';
  at("plots").append(figure);
  return { name, value, figure, past: [] };
});
let before = null;

async function status() {
  const response = await fetch("metrics", { headers: headers() });
  if (!response.ok) return;
  const now = { memory: [], at: performance.now() };
  for (const line of (await response.text()).split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    if (found[1] === "choir_memory_bytes") now.memory.push([/part="(.*)"/.exec(found[2])?.[1], Number(found[3])]);
    else if (!found[2]) now[found[1]] = Number(found[3]);
  }
  if (before) {
    for (const { name, value, figure, past } of plots) {
      past.push(value(now, before, (now.at - before.at) / 1000));
      if (past.length > 120) past.shift();
      const most = Math.max(1, ...past);
      figure.firstChild.textContent = `${name}: ${Math.round(past.at(-1))}`;
      const point = (one, index) => `${index},${39 - (38 * one) / most}`;
      figure.querySelector("polyline").setAttribute("points", past.map(point).join(" "));
    }
  }
  before = now;
  at("memory").tBodies[0].replaceChildren(
    ...now.memory.filter(([, bytes]) => bytes).map(([part, bytes]) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = part;
      row.insertCell().textContent = `${(bytes / 2 ** 20).toFixed(2)} MiB`;
      return row;
    }),
  );
}

addPane();
addPane();
models();
status().catch(() => {});
setInterval(() => document.hidden || status().catch(() => say("the server does not answer")), 2000);
