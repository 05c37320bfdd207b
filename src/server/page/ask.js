// How the page asks its own server, and says what comes of it.

export const at = (id) => document.getElementById(id);

export const headers = () => {
  const key = at("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
};

export function say(text, bad = true) {
  at("said").textContent = text;
  at("said").classList.toggle("bad", bad);
}

// What an answer that is an error says.
export function failure(status, text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered ${status}`;
  }
}

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  const text = await response.text();
  return { status: response.status, ok: response.ok, text, json: () => JSON.parse(text) };
}

// A reader of server-sent events: fed text as it comes, gives the JSON of those that are whole.
export function events() {
  let rest = "";
  return (text) => {
    const parts = (rest + text).split("\n\n");
    rest = parts.pop();
    const data = parts.map((part) => part.replace(/^data: /, ""));
    return data.filter((one) => one !== "[DONE]").map((one) => JSON.parse(one));
  };
}
