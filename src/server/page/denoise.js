// Texts being denoised: two variants, or mixes, side by side from one seed, step by step.
import { at, events, failure, headers, say } from "./ask.js";

const HIDDEN = "░";
// Hidden places that are drawn at most, of those that are not known to be few.
const MOST_HIDDEN = 200;
const panes = [];
let names = ["base"];
let running = null;

class Pane {
  constructor(number) {
    const root = at("pane").content.firstElementChild.cloneNode(true);
    const pick = (selector) => root.querySelector(selector);
    pick("legend").textContent = `Text ${number}: a variant, or a mix`;
    [this.parts, this.more, this.text, this.range, this.figures] = [".parts", ".more", ".text", ".step input", ".figures"].map(pick);
    this.text.setAttribute("aria-label", `Text ${number}`);
    this.more.addEventListener("click", () => this.mix());
    this.range.addEventListener("input", () => {
      this.following = this.range.value === this.range.max;
      this.show(Number(this.range.value));
    });
    at("panes").append(root);
    this.part(1);
    this.begin("", []);
  }

  // One more variant in the mix.
  part(weight) {
    const root = at("part").content.firstElementChild.cloneNode(true);
    const [select, range, output, out] = root.children;
    range.value = weight;
    const told = () => (output.textContent = Number(range.value).toFixed(2));
    range.addEventListener("input", told);
    select.addEventListener("change", () => this.settle());
    out.addEventListener("click", () => {
      root.remove();
      this.settle();
      this.more.focus();
    });
    this.parts.append(root);
    fill(select, "");
    told();
    this.settle();
    return select;
  }

  // Mixes another in: shares are equal as long as nobody has moved a weight.
  mix() {
    const ranges = [...this.parts.querySelectorAll("input")];
    const count = ranges.length + 1;
    const select = this.part(Number((1 / count).toFixed(2)));
    const used = ranges.map((range) => range.previousElementSibling.value);
    select.value = names.find((name) => name !== "base" && !used.includes(name)) ?? select.value;
    if (ranges.every((range) => range.value === ranges[0].value)) {
      for (const range of ranges) {
        range.value = (1 / count).toFixed(2);
        range.dispatchEvent(new Event("input"));
      }
    }
    this.settle();
    select.focus();
  }

  // The base has no weight; the last part stays.
  settle() {
    const parts = [...this.parts.children];
    for (const part of parts) {
      const [select, range, output, out] = part.children;
      range.hidden = output.hidden = select.value === "base";
      out.hidden = parts.length === 1;
    }
  }

  model() {
    const parts = [...this.parts.children].map(({ children: [select, range] }) => [select.value, Number(range.value)]);
    const mixed = parts.filter(([name]) => name !== "base");
    if (mixed.length === 0) return "base";
    if (mixed.length === 1 && mixed[0][1] === 1) return mixed[0][0];
    return mixed.map(([name, weight]) => `${name}:${weight.toFixed(2)}`).join("+");
  }

  // Forgets the last text; `pieces` are strings, and lengths of holes.
  begin(given, pieces) {
    Object.assign(this, { given, pieces, steps: [], first: Infinity, shown: 0, following: true, ended: "" });
    this.range.max = this.range.value = 0;
    this.range.disabled = true;
    this.show(0);
  }

  reveal(revealed) {
    for (const { position } of revealed) this.first = Math.min(this.first, position);
    this.steps.push(revealed);
    this.range.max = this.steps.length;
    this.range.disabled = false;
  }

  // One step further, or as far as there is; whether more is to be shown.
  advance(pace) {
    if (!this.following || this.shown >= this.steps.length) return false;
    this.show(pace ? this.shown + 1 : this.steps.length);
    this.range.value = this.shown;
    return this.shown < this.steps.length;
  }

  // The text as it was after so many steps.
  show(step) {
    this.shown = step;
    const tokens = new Map();
    this.steps.slice(0, step).forEach((revealed, index) => {
      for (const { position, text } of revealed) tokens.set(position, { text, step: index + 1 });
    });
    this.text.replaceChildren(...this.spans(tokens));
    this.tell();
  }

  spans(tokens) {
    const last = this.steps.length;
    const settled = (position) => {
      const { text, step } = tokens.get(position);
      const made = span(text, "", `hsl(${230 - 230 * (step / last)} 70% 50% / .3)`);
      made.title = `step ${step} of ${last}, position ${position}`;
      return made;
    };
    const hidden = (count) => span(HIDDEN.repeat(Math.min(count, MOST_HIDDEN)), "hidden");
    const holes = this.holes();
    if (holes) {
      const places = holes.flatMap((piece) =>
        typeof piece === "string" ? [span(piece, "given")] : piece.map((position) => (tokens.has(position) ? settled(position) : hidden(1))),
      );
      return places;
    }
    const parts = [span(this.given, "given")];
    let next = this.first;
    for (const position of [...tokens.keys()].sort((a, b) => a - b)) {
      if (position > next) parts.push(hidden(position - next));
      parts.push(settled(position));
      next = position + 1;
    }
    return parts;
  }

  // The pieces of a template with the positions of its holes, once all are known.
  holes() {
    if (this.pieces.length === 0) return null;
    const all = [...new Set(this.steps.flat().map(({ position }) => position))].sort((a, b) => a - b);
    const needed = this.pieces.reduce((sum, piece) => sum + (typeof piece === "number" ? piece : 0), 0);
    if (all.length !== needed) return null;
    return this.pieces.map((piece) => (typeof piece === "number" ? all.splice(0, piece) : piece));
  }

  // How far the text is shown; how it ended, once all of it is.
  tell() {
    const step = this.steps.length ? `step ${this.shown} of ${this.steps.length}` : "";
    const end = this.shown === this.steps.length ? this.ended : "";
    this.figures.textContent = [step, end].filter(Boolean).join(": ");
  }

  end(text, bad = false) {
    this.ended = text;
    this.figures.classList.toggle("bad", bad);
    this.tell();
  }

  async denoise(body, pieces, signal) {
    this.begin(typeof body.prompt === "string" ? body.prompt : "", pieces);
    this.end("waiting");
    const response = await fetch("v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify({ ...body, model: this.model() }),
      signal,
    });
    if (!response.ok) throw new Error(failure(response.status, await response.text()));
    const read = events();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      for (const event of read(value)) this.take(event);
      follow();
    }
  }

  take(event) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) {
      const { completion_tokens, nfe } = event.usage;
      this.end(`${completion_tokens} tokens in ${nfe} network evaluations`);
    }
    const revealed = event.choices[0]?.choir?.revealed;
    if (revealed) {
      this.ended = "";
      this.reveal(revealed);
    }
  }
}

function span(text, name, colour) {
  const made = document.createElement("span");
  made.textContent = text;
  if (name) made.className = name;
  if (colour) made.style.backgroundColor = colour;
  return made;
}

function fill(select, wish) {
  const before = select.value || wish;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  select.value = names.includes(before) ? before : names[0];
}

// Draws what has come, at the pace that is wanted.
let drawing = false;
function follow() {
  if (drawing) return;
  drawing = true;
  const pace = Number(at("pace").value);
  const draw = () => {
    drawing = false;
    const more = panes.map((pane) => pane.advance(pace));
    if (more.some(Boolean)) follow();
  };
  if (pace) setTimeout(draw, pace);
  else requestAnimationFrame(draw);
}

// What the form asks for, as a completion's body, and the pieces of its template.
function asked() {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const choir = { want_steps: true, predictor: at("predictor").value || undefined, steps: number("steps"), threshold: number("threshold") };
  const body = { seed: number("seed"), temperature: number("temperature"), stream: true, stream_options: { include_usage: true }, choir };
  const prompt = at("prompt").value;
  const pieces = prompt.split(/\[\[(\d+)\]\]/).map((piece, index) => (index % 2 ? Number(piece) : piece));
  if (pieces.length === 1) return { body: { ...body, prompt, max_tokens: number("tokens") }, pieces: [] };
  choir.template = pieces.filter((piece) => piece !== "");
  return { body, pieces: choir.template };
}

async function ask(event) {
  event.preventDefault();
  stop();
  running = new AbortController();
  const { signal } = running;
  at("stop").disabled = false;
  say("");
  const { body, pieces } = asked();
  const ended = await Promise.allSettled(panes.map((pane) => pane.denoise(body, pieces, signal)));
  const failed = ended.map(({ reason }) => reason);
  failed.forEach((reason, index) => {
    if (!reason) return;
    const stopped = reason.name === "AbortError";
    if (stopped && signal !== running?.signal) return; // another text has begun
    panes[index].advance(0);
    panes[index].end(stopped ? "stopped" : reason.message, !stopped);
    if (!stopped) say(reason.message);
  });
  if (signal === running?.signal) at("stop").disabled = true;
}

function stop() {
  running?.abort();
  at("stop").disabled = true;
}

// The names that may be picked.
export function offer(known) {
  const first = names.length === 1;
  names = known;
  panes.forEach((pane, index) => {
    for (const select of pane.parts.querySelectorAll("select")) {
      fill(select, names[0]);
      if (first) select.value = names[Math.min(index + 1, names.length - 1)];
    }
    pane.settle();
  });
}

export function begin() {
  panes.push(new Pane(1), new Pane(2));
  at("ask").addEventListener("submit", ask);
  at("stop").addEventListener("click", stop);
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !at("sure").open) stop();
  });
}
