// Who is served; and, for an admin key, additions and removals.
import { at, events, failure, get, headers, say } from "./ask.js";
import { offer } from "./denoise.js";

const ROUTE = "choir/v1/variants";
const COLUMNS = ["name", "kept", "bits", "size", "cosine", "relative error", ""];
const STAGES = {
  receiving: "receiving", reading: "reading", comparing: "comparing with the base", accumulating: "coding or accumulating",
  measuring: "measuring", writing: "writing", publishing: "publishing",
};
let upload = null;
let served = [];
let doubtful = null;

export async function refresh() {
  const answer = await get(ROUTE);
  const models = await get("v1/models");
  if (!models.ok) throw new Error(failure(models.status, models.text));
  const { data } = models.json();
  offer(data.map(({ id }) => id));
  const admin = answer.ok;
  served = admin ? answer.json().variants : data.filter(({ id }) => id !== "base").map(({ id }) => ({ name: id }));
  at("add").hidden = !admin;
  at("rights").hidden = admin;
  at("rights").textContent = answer.status === 404 ? "Operators have an address of their own." : `No additions and removals: ${failure(answer.status, answer.text)}.`;
  list(admin);
}

function list(admin) {
  const columns = admin ? COLUMNS : COLUMNS.slice(0, 1);
  const head = document.createElement("tr");
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = column;
    head.append(cell);
  }
  at("served").tHead.replaceChildren(head);
  at("served").tBodies[0].replaceChildren(
    ...served.map((variant) => {
      const row = document.createElement("tr");
      const cells = [
        variant.name,
        variant.keep,
        variant.bits?.toFixed(2) ?? "shared",
        size(variant.bytes),
        variant.cosine?.toFixed(3) ?? "–",
        variant.relative_error?.toFixed(3) ?? "–",
      ];
      cells.slice(0, admin ? 6 : 1).forEach((text) => (row.insertCell().textContent = text));
      if (admin) {
        const button = document.createElement("button");
        button.textContent = "Remove";
        button.setAttribute("aria-label", `Remove ${variant.name}`);
        button.addEventListener("click", () => remove(variant.name));
        row.insertCell().append(button);
      }
      return row;
    }),
  );
}

export const size = (bytes = 0) => (bytes < 2 ** 20 ? `${(bytes / 2 ** 10).toFixed(1)} KiB` : `${(bytes / 2 ** 20).toFixed(2)} MiB`);

// Asks before, since a removal cannot be taken back.
function remove(name) {
  at("sure-what").textContent = `Remove ${name}? Requests under way end first; nobody can ask for it any more.`;
  doubtful = name;
  at("sure").showModal();
}

async function removeForGood() {
  const name = doubtful;
  at("sure").close();
  const response = await fetch(`${ROUTE}/${encodeURIComponent(name)}`, { method: "DELETE", headers: headers() });
  if (response.ok) say(`${name} is removed`, false);
  else say(failure(response.status, await response.text()));
  await refresh();
  at("variants").parentElement.querySelector(".wide-table").focus();
}

function progress(stage, fraction) {
  at("progress").hidden = false;
  at("stage").textContent = `${STAGES[stage] ?? stage}: ${Math.round(100 * fraction)} %`;
  at("bar").value = fraction;
}

// A body of the file, before it what stands beside it: eight bytes of length and a JSON object.
async function bodyOf(file, beside) {
  const files = await Promise.all(beside.map(async (one) => [one.name, await one.text()]));
  const text = new TextEncoder().encode(JSON.stringify(Object.fromEntries(files)));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(text.length), true);
  return new Blob([length, text, file], { type: "application/vnd.choir.variant" });
}

async function add(event) {
  event.preventDefault();
  const [name, files] = [at("name").value, [...at("file").files]];
  const file = files.find((one) => one.name.endsWith(".safetensors"));
  if (!file) return say("one of the files has to be a .safetensors");
  if (served.some((variant) => variant.name === name)) return say(`there is a variant ${name} already`);
  const body = await bodyOf(file, files.filter((one) => one !== file));
  const query = new URLSearchParams();
  for (const id of ["keep", "bits", "scale"]) if (at(id).value) query.set(id, at(id).value);
  // Of the browser's ways to ask, only this one tells how much of a body is sent.
  const request = new XMLHttpRequest();
  upload = request;
  request.open("PUT", `${ROUTE}/${encodeURIComponent(name)}?${query}`);
  for (const [header, value] of Object.entries({ ...headers(), accept: "text/event-stream" })) request.setRequestHeader(header, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => progress("receiving", total ? loaded / total : 0));
  const read = events();
  let [seen, error] = [0, null];
  const take = () => {
    if (request.status !== 200) return;
    const text = request.responseText.slice(seen);
    seen += text.length;
    for (const event of read(text)) {
      if (event.stage) progress(event.stage, event.fraction);
      else error = event.error?.message ?? "";
    }
  };
  request.addEventListener("progress", take);
  request.addEventListener("loadend", async () => {
    take();
    upload = null;
    at("go-add").disabled = false;
    at("stop-add").disabled = true;
    at("progress").hidden = true;
    if (request.status === 200 && error === "") {
      at("add").reset();
      say(`${name} is added`, false);
    } else if (request.status === 0) say("the upload was stopped, or the server took no more of it");
    else say(error || (request.status === 200 ? "the server ended the addition early" : failure(request.status, request.responseText)));
    await refresh();
  });
  at("go-add").disabled = true;
  at("stop-add").disabled = false;
  say("");
  progress("receiving", 0);
  request.send(body);
}

export function begin() {
  at("add").addEventListener("submit", add);
  at("stop-add").addEventListener("click", () => upload?.abort());
  at("sure-yes").addEventListener("click", removeForGood);
  at("sure-no").addEventListener("click", () => at("sure").close());
}
