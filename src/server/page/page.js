// The page: texts that are denoised, variants that come and go, the server's status. Speaks to its own server alone.
import { at, say } from "./ask.js";
import * as denoise from "./denoise.js";
import * as status from "./status.js";
import * as variants from "./variants.js";

const refresh = () => variants.refresh().then(() => say(""), ({ message }) => say(message));

denoise.begin();
variants.begin();
status.begin(() => say("the server does not answer"));
at("key").addEventListener("change", refresh);
at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  refresh();
});
refresh();
