// What a person does on the page, done by Chromium: texts denoise and are coloured, variants are added and removed, errors are shown;
// with a mouse, by the keyboard, on a phone; with no error in the console and nothing that the page's policy forbids.
import { createRequire } from "node:module";
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";

const { chromium } = createRequire(import.meta.url)("playwright-core");
const { CHOIR_HTTP, CHOIR_KEY_ADMIN, CHOIR_KEY_INFER, CHOIR_VARIANT, CHOIR_CONFIG, WORK, SCREENSHOTS } = process.env;

const browser = await chromium.launch({
  executablePath: process.env.chromium,
  args: "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split(" "),
});

// A page that remembers what went wrong on it.
async function open(options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.wrong = [];
  page.refused = [];
  page.models = [];
  page.on("console", (message) => {
    // Refusals are checked by their status.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.wrong.push(message.text());
  });
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("response", (response) => response.status() >= 400 && page.refused.push(response.status()));
  page.on("request", (request) => {
    if (request.url().endsWith("/completions")) page.models.push(request.postDataJSON().model);
  });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
  });
  await page.goto(CHOIR_HTTP);
  return page;
}

const said = (page, text) => page.locator("#said").filter({ hasText: text }).waitFor();
const row = (page, name) => page.locator("#served tbody tr").filter({ has: page.getByText(name, { exact: true }) });
const text = (page, pane) => page.locator(".text").nth(pane).textContent();
const done = (page) => page.waitForFunction(() => [...document.querySelectorAll(".figures")].every((one) => /\d+ tokens in \d+ network/.test(one.textContent)));

async function clean(page, refused = []) {
  assert.deepEqual(page.wrong, [], "errors in the console");
  assert.deepEqual(await page.evaluate(() => window.violations), [], "the page breaks its own policy");
  assert.deepEqual(page.refused, refused, "statuses of refusals");
  page.refused.length = 0;
}

async function key(page, value) {
  await page.fill("#key", value);
  await page.press("#key", "Enter");
}

async function picture(page, name) {
  if (!SCREENSHOTS) return;
  await page.waitForFunction(() => document.querySelectorAll("#plots polyline[points*=' ']").length === 3);
  await page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true });
}

async function checks() {
  const page = await open();

  // Nobody; then somebody who may ask, and change nothing.
  await said(page, "an API key is needed");
  await key(page, CHOIR_KEY_INFER);
  await row(page, "kjv").waitFor();
  await page.getByText("No additions and removals: this takes an admin key").waitFor();
  assert(await page.locator("#add").isHidden());
  assert.equal(await page.getByRole("button", { name: "Remove kjv", exact: true }).count(), 0);
  await page.waitForFunction(() => document.querySelectorAll("#plots polyline[points*=' ']").length === 3);
  assert((await page.locator(".memory").count()) >= 2, "memory by part");
  assert(page.refused.every((status) => status === 401 || status === 403));
  page.refused.length = 0;
  console.log("ok page: keys, plots, memory");

  // By the keyboard: everything is reached, and Ctrl+Enter begins.
  await key(page, CHOIR_KEY_ADMIN);
  await page.getByRole("button", { name: "Remove kjv", exact: true }).waitFor();
  const reached = new Set();
  await page.focus("#key");
  for (let tab = 0; tab < 80; tab++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.textContent));
  }
  for (const name of ["prompt", "predictor", "steps", "seed", "pace", "go", "Variant", "Weight", "Mix another in", "Text 1", "Remove kjv", "name", "file", "go-add"]) {
    assert(reached.has(name), `${name} is not reached by Tab`);
  }
  await page.focus("#prompt");
  await page.keyboard.press("Control+Enter");
  await done(page);
  const [left, right] = [await text(page, 0), await text(page, 1)];
  for (const made of [left, right]) assert(made.startsWith("And it came to pass") && made.length > 100, made);
  assert.notEqual(left, right, "two variants say the same");
  const colours = await page.locator(".text").first().locator("span").evaluateAll((spans) => new Set(spans.map((one) => one.style.backgroundColor)).size);
  assert(colours > 5, `${colours} colours of steps`);
  await picture(page, "light");

  // Back to the first step, and on.
  await page.locator(".step input").first().focus();
  await page.keyboard.press("Home");
  assert.equal(await text(page, 0), "And it came to pass in those days,");
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await text(page, 0), "And it came to pass in those days,");
  await page.keyboard.press("End");
  assert.equal(await text(page, 0), left);

  // A mix, whose weights move; the same on both sides says the same from one seed.
  for (const pane of [0, 1]) {
    await page.locator(".parts").nth(pane).locator("select").first().selectOption("kjv");
    await page.locator(".more").nth(pane).focus();
    await page.keyboard.press("Enter");
    await page.locator(".parts").nth(pane).locator("select").nth(1).selectOption("holmes");
  }
  page.models.length = 0;
  await page.click("#go");
  await done(page);
  assert.deepEqual(page.models, ["kjv:0.50+holmes:0.50", "kjv:0.50+holmes:0.50"]);
  assert.equal(await text(page, 0), await text(page, 1));
  await page.locator(".parts input").first().focus();
  await page.keyboard.press("ArrowLeft");
  page.models.length = 0;
  await page.click("#go");
  await done(page);
  assert.deepEqual(page.models, ["kjv:0.45+holmes:0.50", "kjv:0.50+holmes:0.50"]);
  for (const pane of [0, 1]) await page.locator(".parts").nth(pane).getByRole("button", { name: "Take out of the mix" }).nth(1).click();
  console.log("ok page: texts denoise in colours, step by step; mixes; by keyboard");

  // A template; a slow show, stopped by Escape.
  await page.fill("#prompt", "In the [[3]] there was a [[2]].");
  await page.click("#go");
  await done(page);
  assert.match(await text(page, 0), /^In the .+ there was a .+\.$/s);
  assert.equal((await text(page, 0)).includes("░"), false);
  await page.fill("#prompt", "And he said,");
  await page.selectOption("#pace", "100");
  await page.click("#go");
  await page.waitForFunction(() => {
    const range = document.querySelector(".step input");
    return Number(range.value) > 1 && Number(range.value) < Number(range.max);
  });
  await page.selectOption("#pace", "0");
  await page.fill("#tokens", "4096");
  await page.click("#go");
  await page.waitForFunction(() => Number(document.querySelector(".step input").max) > 3);
  await page.keyboard.press("Escape");
  await page.locator(".figures").first().filter({ hasText: "stopped" }).waitFor();
  await page.fill("#tokens", "32");
  await clean(page);

  // What the server refuses is shown.
  await page.selectOption("#predictor", "ancestral");
  await page.click("#go");
  await said(page, "steps");
  await page.selectOption("#predictor", "");
  await clean(page, [400, 400]);
  console.log("ok page: templates, slow shows, stops, errors");

  // An addition, with its stages; one that is none; a removal, after a question that is answered by the keyboard.
  await page.evaluate(() => {
    window.stages = [];
    new MutationObserver(() => window.stages.push(document.getElementById("stage").textContent)).observe(document.getElementById("stage"), { childList: true });
  });
  await page.fill("#name", "added-here");
  await page.setInputFiles("#file", [CHOIR_VARIANT, CHOIR_CONFIG]);
  await page.selectOption("#keep", "coded");
  await page.click("#go-add");
  await said(page, "added-here is added");
  await row(page, "added-here").filter({ hasText: "coded" }).waitFor();
  const stages = await page.evaluate(() => window.stages);
  for (const stage of [/^receiving: 100 %/, /^(comparing|coding)/]) assert(stages.some((one) => stage.test(one)), `no ${stage} in ${stages}`);
  const variant = page.locator(".parts select").first();
  await variant.selectOption("added-here");
  await page.click("#go");
  await done(page);
  await picture(page, "added");
  await clean(page);
  await page.fill("#name", "added-here");
  await page.setInputFiles("#file", CHOIR_VARIANT);
  await page.click("#go-add");
  await said(page, "there is a variant added-here already");
  writeFileSync(`${WORK}/nonsense.safetensors`, "nonsense".repeat(1000));
  await page.fill("#name", "nonsense");
  await page.setInputFiles("#file", `${WORK}/nonsense.safetensors`);
  await page.click("#go-add");
  await said(page, "body: ");
  assert.equal(await row(page, "nonsense").count(), 0);
  const remove = page.getByRole("button", { name: "Remove added-here" });
  await remove.focus();
  await page.keyboard.press("Enter");
  await page.locator("#sure").waitFor();
  await picture(page, "question");
  await page.keyboard.press("Escape");
  await page.locator("#sure").waitFor({ state: "hidden" });
  await remove.focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "sure-no", "what loses nothing has the focus");
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  await said(page, "added-here is removed");
  await row(page, "added-here").waitFor({ state: "detached" });
  assert.notEqual(await variant.inputValue(), "added-here");
  await clean(page, [400]); // the file that is none
  console.log("ok page: an addition with its progress, a file that is none, a removal");

  // The policy holds: what is not the page's own does not run.
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
  });
  assert.equal(await page.evaluate(() => window.ran), undefined);
  assert.deepEqual(await page.evaluate(() => window.violations), ["script-src-elem"]);

  const dark = await open({ colorScheme: "dark" });
  await key(dark, CHOIR_KEY_ADMIN);
  await dark.getByRole("button", { name: "Remove kjv", exact: true }).waitFor();
  const back = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.notEqual(await back(dark), await back(page));
  await dark.click("#go");
  await done(dark);
  await picture(dark, "dark");

  const phone = await open({ viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true });
  await key(phone, CHOIR_KEY_ADMIN);
  await phone.getByRole("button", { name: "Remove kjv", exact: true }).waitFor();
  await phone.locator("#go").tap();
  await done(phone);
  const widths = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert(widths[0] <= widths[1], `a phone scrolls sideways: ${widths}`);
  const small = await phone.evaluate(() =>
    [...document.querySelectorAll("button, select, input:not([type=range])")]
      .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 24)
      .map((one) => one.id || one.textContent),
  );
  assert.deepEqual(small, [], "too small for a finger");
  await picture(phone, "phone");
  console.log(`ok page: its policy, light and dark, a phone; Chromium ${browser.version()}`);
}

try {
  await checks();
} catch (error) {
  console.error(`FAILED: ${error.stack}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
