// How the server is: what Prometheus reads, drawn.
import { at, get } from "./ask.js";
import { size } from "./variants.js";

const EVERY = 2000;
const POINTS = 120;
const PLOTS = [
  ["tokens a second", (now, before, seconds) => (now.choir_tokens_total - before.choir_tokens_total) / seconds],
  ["requests waiting", (now) => now.choir_requests_waiting],
  ["requests running", (now) => now.choir_requests_running],
];
let before = null;

// A figure that holds the last values; the highest is the top.
function plot([name, value]) {
  const figure = document.createElement("figure");
  figure.innerHTML = `<figcaption><span></span><span><b></b> <i></i></span></figcaption>
<svg viewBox="0 0 ${POINTS - 1} 40" preserveAspectRatio="none" role="img"><polygon></polygon><polyline></polyline></svg>`;
  figure.querySelector("span").textContent = name;
  at("plots").append(figure);
  return { name, value, figure, past: [] };
}

function draw({ name, figure, past }) {
  const most = Math.max(1, ...past);
  const points = past.map((one, index) => `${POINTS - past.length + index},${39 - (38 * one) / most}`).join(" ");
  const now = Math.round(past.at(-1));
  figure.querySelector("b").textContent = now;
  figure.querySelector("i").textContent = `most ${Math.round(Math.max(...past))}`;
  figure.querySelector("svg").setAttribute("aria-label", `${name}: ${now} now`);
  figure.querySelector("polyline").setAttribute("points", points);
  figure.querySelector("polygon").setAttribute("points", `${POINTS - past.length},40 ${points} ${POINTS - 1},40`);
}

function read(text) {
  const now = { memory: [], at: performance.now() };
  for (const line of text.split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    if (found[1] === "choir_memory_bytes") now.memory.push([/part="(.*)"/.exec(found[2])?.[1], Number(found[3])]);
    else if (!found[2]) now[found[1]] = Number(found[3]);
  }
  return now;
}

function memory(parts) {
  const held = parts.filter(([, bytes]) => bytes).sort((a, b) => b[1] - a[1]);
  const most = Math.max(...held.map(([, bytes]) => bytes));
  const cell = (row, tag, text) => {
    const made = document.createElement(tag);
    made.textContent = text;
    row.append(made);
    return made;
  };
  at("memory").replaceChildren(
    ...held.map(([part, bytes]) => {
      const row = document.createElement("div");
      row.className = "memory";
      cell(row, "span", part);
      cell(row, "i", "").style.width = `${(100 * bytes) / most}%`;
      cell(row, "span", size(bytes));
      return row;
    }),
  );
}

async function watch(plots) {
  const answer = await get("metrics");
  if (!answer.ok) return;
  const now = read(answer.text);
  if (before) {
    for (const one of plots) {
      one.past.push(one.value(now, before, (now.at - before.at) / 1000));
      if (one.past.length > POINTS) one.past.shift();
      draw(one);
    }
  }
  before = now;
  memory(now.memory);
}

export function begin(lost) {
  const plots = PLOTS.map(plot);
  const look = () => document.hidden || watch(plots).catch(lost);
  look();
  setInterval(look, EVERY);
}
