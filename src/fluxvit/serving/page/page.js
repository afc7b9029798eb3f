/** The page: a video, a budget, and what the model answers for it. */

import { ApiError, request, setToken } from "./api.js";
import { drawCurve, fillTable } from "./curve.js";
import { $, clock, compact, duration, el, number, percent } from "./dom.js";
import { Overlay } from "./overlay.js";
import { fillHits, onSubmit } from "./words.js";

const DEBOUNCE_MS = 200;
const MOST_READ = 24; // Numbers that describe the kept tokens to a screen reader.
const MOST_TICKS = 7; // Numbers below the slider.
const SWEEP_BYTES = 50 * 2 ** 20; // A larger video is sent once for each plan only when asked for.

const video = $("#video");
const overlay = new Overlay(video, $("#overlay"), $("#strip"));
const state = {
  model: null,
  file: null,
  sweep: false, // Whether the other plans are asked for without a click.
  budget: "", // As it is sent.
  accepted: "", // The last budget that the server took.
  answer: null,
  answers: new Map(), // Answers about this video, by budget.
};
let asking = null; // Aborts the request for the answer that is shown next.
let sweeping = null; // Aborts the requests for the other plans.

// ---- The model ----

async function start() {
  try {
    state.model = await request("v1/model", { onwait: () => say("The model is loading …", $("#model")) });
  } catch (error) {
    if (error.status === 401) return askForToken();
    return say(error.message, $("#model"));
  }
  const { model } = state;
  $("#token-form").hidden = true;
  $("#app").hidden = false;
  document.title = `${model.name} · fluxvit`;
  $("#model").textContent = [model.name, model.parameters && `${compact(model.parameters)} parameters`, model.device]
    .filter(Boolean)
    .join(" · ");
  $("#answer").hidden = !can("classify");
  $("#chat").hidden = !can("chat");
  $("#search").hidden = !can("search");
  if (!can("classify")) $("#budget").after($("#search")); // Search is then what the page is for.
  $("#answer-empty").textContent = `The model chooses among ${number(model.labels.length)} labels.`;
  state.budget = state.accepted = model.default_budget;
  makeStops();
  showBudget();
  showCurve();
  if (state.file) ask(); // The token was asked for in the meantime.
}

const can = (task) => state.model.tasks.includes(task);
const task = () => ["classify", "embed"].find(can);

function askForToken() {
  const form = $("#token-form");
  const again = !form.hidden;
  $("#app").hidden = true;
  form.hidden = false;
  $("#model").textContent = "";
  $("#token-hint").textContent = again ? "The server does not accept this token." : "It is kept in this tab only.";
  $("#token").focus();
}

$("#token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("#token").value.trim());
  start();
});

// ---- The video ----

for (const input of [$("#file"), $("#other")]) {
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = ""; // The same file may be chosen again.
  });
}

const hasFile = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0; // Of elements that a dragged file has entered.
const dragged = (change) => {
  depth = change ? Math.max(0, depth + change) : 0;
  document.body.classList.toggle("dragging", depth > 0);
};
addEventListener("dragenter", (event) => hasFile(event) && dragged(1));
addEventListener("dragleave", (event) => hasFile(event) && dragged(-1));
addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  dragged(0);
  if (state.model && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});

function take(file) {
  stop();
  state.file = file;
  state.sweep = file.size <= SWEEP_BYTES;
  state.answers.clear();
  clearAnswer();
  URL.revokeObjectURL(video.src);
  video.src = URL.createObjectURL(file);
  video.hidden = false;
  $("#overlay").hidden = !$("#toggle").checked;
  $("#invitation").hidden = $("#unplayable").hidden = true;
  $("#controls").hidden = $("#transport").hidden = false;
  $("#name").textContent = file.name;
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
  const most = state.model.limits?.bytes;
  if (most && file.size > most) {
    fail(new ApiError(413, `${file.name} has ${megabytes(file.size)}; this server takes up to ${megabytes(most)}.`));
  } else {
    ask();
  }
}

const megabytes = (bytes) => `${number(bytes / 2 ** 20)} MB`;

video.addEventListener("loadedmetadata", () => {
  if (!video.videoWidth) return cannotPlay();
  $("#frame").style.aspectRatio = `${video.videoWidth} / ${video.videoHeight}`;
  showTime();
});
video.addEventListener("error", () => video.hidden || cannotPlay());

function cannotPlay() {
  video.hidden = $("#overlay").hidden = $("#transport").hidden = $(".switch").hidden = true;
  $("#unplayable").hidden = false;
  $("#unplayable").textContent = "This browser cannot play this file.";
  overlay.draw(true);
}

$("#play").addEventListener("click", () => (video.paused ? video.play().catch(() => {}) : video.pause()));
$("#frame").addEventListener("click", (event) => event.target === video && $("#play").click());
$("#seek").addEventListener("input", () => {
  video.currentTime = $("#seek").valueAsNumber;
});
$("#mute").addEventListener("click", () => {
  video.muted = !video.muted;
  $("#mute").setAttribute("aria-pressed", !video.muted);
});
$("#toggle").addEventListener("change", () => {
  $("#overlay").hidden = video.hidden || !$("#toggle").checked;
});
for (const event of ["play", "pause"]) {
  video.addEventListener(event, () => $("#play").setAttribute("aria-label", video.paused ? "Play" : "Pause"));
}
for (const event of ["timeupdate", "seeked"]) video.addEventListener(event, showTime);

function showTime() {
  // Browsers do not know the length of some recordings before they have played them.
  const end = Number.isFinite(video.duration) ? video.duration : (state.answer?.seconds ?? 0);
  const [now, seek] = [video.currentTime, $("#seek")];
  seek.max = end || 1;
  if (document.activeElement !== seek || !video.paused) seek.value = now;
  seek.style.setProperty("--part", end ? now / end : 0);
  seek.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${end.toFixed(1)} seconds`);
  $("#clock").textContent = `${clock(now, end < 60)} / ${clock(end, end < 60)}`;
}

// ---- The budget ----

function makeStops() {
  const { plans } = state.model;
  $("#stops").hidden = plans.length < 2;
  $("#slider").max = plans.length - 1;
  const every = Math.ceil(plans.length / MOST_TICKS);
  const named = (i) => (plans.length - 1 - i) % every === 0;
  $("#ticks").replaceChildren(...plans.map((plan, i) => el("span", { text: named(i) ? plan.tokens : "·" })));
}

let timer = 0;
$("#slider").addEventListener("input", () => {
  $("#custom").value = "";
  setBudget(state.model.plans[$("#slider").valueAsNumber].budget, DEBOUNCE_MS);
});
$("#budget-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = $("#custom").value.trim();
  if (typed) setBudget(typed, 0);
});

function setBudget(budget, wait) {
  stop();
  state.budget = budget;
  budgetError("");
  const known = state.answers.get(budget);
  if (known) showAnswer(known); // At once; the server is asked again all the same.
  showBudget();
  showCurve();
  if (state.file) timer = setTimeout(ask, wait);
}

/** The slider and the figures beside it: those of the answer, or of the plan that is asked for. */
function showBudget() {
  const { model, budget, answer } = state;
  const plan = model.plans.find((one) => one.budget === budget);
  const shown = answer?.budget === budget ? { ...answer.plan, ...answer.cost, pool: pool(answer) } : plan;
  const slider = $("#slider");
  const tokens = shown?.tokens;
  if (shown) slider.value = nearest(model.plans, tokens);
  $("#spent").textContent = shown ? `${number(tokens)} tokens` : budget;
  $("#spent-of").textContent = shown ? `of ${number(shown.pool)} · ${shown.grid} · ${number(shown.gflops)} GFLOPs` : "";
  slider.classList.toggle("between", model.plans[slider.value].tokens !== tokens);
  slider.setAttribute("aria-valuetext", `${$("#spent").textContent} ${$("#spent-of").textContent}`);
  slider.style.setProperty("--part", slider.max > 0 ? slider.value / slider.max : 0);
  [...$("#ticks").children].forEach((tick, i) => tick.classList.toggle("on", model.plans[i].tokens === tokens));
}

/** All tokens of the clips; a budget per second of video takes several clips. */
const pool = ({ plan }) => plan.pool * (plan.clips ?? 1);

const nearest = (plans, tokens) =>
  plans.reduce((found, plan, i) => (Math.abs(plan.tokens - tokens) < Math.abs(plans[found].tokens - tokens) ? i : found), 0);

function budgetError(message) {
  $("#budget-error").textContent = message;
  $("#custom").setAttribute("aria-invalid", Boolean(message));
}

// ---- The answer ----

function stop() {
  clearTimeout(timer);
  asking?.abort();
  sweeping?.abort();
  asking = sweeping = null;
  $("#sweep").textContent = "";
  $("#sweep-button").hidden = true;
}

const form = (budget, extra = {}) => {
  const fields = new FormData();
  for (const [name, value] of Object.entries({ budget, explain: "true", ...extra })) fields.append(name, value);
  fields.append("video", state.file, state.file.name);
  return fields;
};

async function ask() {
  if (!task()) return;
  const mine = (asking = new AbortController());
  const { budget } = state;
  problem("");
  waiting(true);
  try {
    const answer = await request(`v1/${task()}`, {
      body: form(budget),
      signal: mine.signal,
      onwait: (seconds, status) =>
        say(`The server is ${status === 503 ? "not ready" : "busy"}; the page tries again in ${number(seconds)} s.`, $("#kept")),
    });
    answer.budget = budget;
    state.answers.set(budget, answer);
    state.accepted = budget;
    showAnswer(answer);
    announce(answer);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail(error, budget);
    return;
  } finally {
    if (asking === mine) waiting(false);
  }
  asking = null;
  if (state.sweep) sweep();
  else offerSweep();
}

function waiting(busy) {
  document.body.classList.toggle("waiting", busy);
  $("#answer").setAttribute("aria-busy", busy);
}

function fail(error, budget) {
  if (error.status === 401) return askForToken();
  if (error.kind === "bad_budget") {
    // The page stays with the budget that the server took last, or goes back to the server's own.
    budgetError(error.message);
    if (budget === state.accepted) state.accepted = state.model.default_budget;
    state.budget = state.accepted;
    showBudget();
    showCurve();
    if (!state.answer && budget !== state.budget) ask();
    return;
  }
  clearAnswer();
  problem(error.message, budget && error.status !== 413 && error.status !== 422);
}

function problem(message, again = false) {
  const box = $("#problem");
  box.hidden = !message;
  box.firstElementChild.textContent = message;
  box.lastElementChild.hidden = !again;
}
$("#problem button").addEventListener("click", ask);

function clearAnswer() {
  state.answer = null;
  problem("");
  waiting(false);
  overlay.show(null);
  $("#strip").hidden = $(".switch").hidden = true;
  $("#labels").replaceChildren();
  $("#answer-empty").hidden = false;
  $("#answer-empty").textContent = "No answer yet.";
  $("#kept").textContent = "";
  $("#cost").hidden = true;
  showBudget();
  showCurve();
}

function showAnswer(answer) {
  state.answer = answer;
  overlay.show(answer);
  $("#unplayable").textContent = "This browser cannot play this file. The server reads it all the same.";
  showLabels(answer.labels ?? []);
  showKept(answer);
  showLatency(answer.milliseconds);
  showBudget();
  showCurve();
}

function showLabels(labels) {
  const list = $("#labels");
  $("#answer-empty").hidden = true;
  // Rows stay, so that their bars grow and shrink instead of jumping.
  while (list.children.length > labels.length) list.lastElementChild.remove();
  labels.forEach(({ label, score }, i) => {
    const row =
      list.children[i] ??
      list.appendChild(el("li", {}, el("span", { class: "label" }), el("span", { class: "score" }), el("div", { class: "bar" }, el("i"))));
    row.querySelector(".label").textContent = label;
    row.querySelector(".score").textContent = percent(score);
    row.querySelector("i").style.width = `${100 * score}%`;
  });
}

function showKept(answer) {
  const { kept } = answer;
  const counts = overlay.counts;
  $("#strip").hidden = !kept;
  $(".switch").hidden = !kept || video.hidden;
  const summary = counts.length > MOST_READ ? `${Math.min(...counts)} to ${Math.max(...counts)} at a step` : counts.join(", ");
  $("#strip").setAttribute("aria-label", `Kept tokens over time: ${summary}.`);
  $("#kept").textContent = kept
    ? `${number(kept.indices.length)} of ${number(pool(answer))} tokens kept, at ${counts.length} steps of time.`
    : `All ${number(pool(answer))} tokens are kept.`;
}

const PARTS = [
  ["queue", "Queue"],
  ["decode", "Decode"],
  ["network", "Model"],
];

function showLatency(times) {
  $("#cost").hidden = !times;
  if (!times) return;
  const parts = PARTS.filter(([key]) => times[key] != null);
  const sum = Math.max(times.total, 1e-9);
  $("#total").textContent = duration(times.total);
  $("#latency").replaceChildren(
    ...parts.map(([key]) => {
      const bar = el("i", { class: key });
      bar.style.width = `${(100 * times[key]) / sum}%`;
      return bar;
    }),
  );
  $("#times").replaceChildren(
    ...parts.map(([key, name]) => el("div", { class: key }, el("dt", { text: name }), el("dd", { text: duration(times[key]) }))),
  );
}

function announce(answer) {
  const top = answer.labels?.[0];
  const what = top ? `${top.label}, ${percent(top.score)},` : "The video was read";
  say(`${what} with ${answer.cost.tokens} of ${pool(answer)} tokens.`);
}

/** Tells a screen reader, and shows the text in `place`, if one is given. */
function say(text, place) {
  $("#status").textContent = text;
  if (place) place.textContent = text;
}

// ---- The curve ----

function showCurve() {
  const { model, answers, answer, budget } = state;
  const plans = model.plans;
  const scored = [...answers.values()].some((one) => one.labels?.length);
  const measured = plans.some((plan) => plan.accuracy != null);
  const section = $("#curve");
  section.hidden = plans.length < 2 || !(scored || measured);
  if (section.hidden) return;
  const top = answer?.labels?.[0];
  const tokens = answer?.budget === budget ? answer.cost.tokens : plans.find((plan) => plan.budget === budget)?.tokens;
  const now = tokens && { tokens, score: answer?.budget === budget ? top?.score : undefined, label: top?.label };
  drawCurve($("#plot"), plans, answers, now);
  fillTable($("#table"), plans, answers);
  const other = plans.some((plan) => top && answers.has(plan.budget) && answers.get(plan.budget).labels?.[0]?.label !== top.label);
  const keys = [
    [scored, "score", "score of the best label"],
    [other, "other", "another label than now"],
    [measured, "accuracy", "accuracy on held-out clips"],
  ];
  $("#legend").replaceChildren(...keys.filter(([is]) => is).map(([, name, text]) => el("span", { class: name, text })));
}
new ResizeObserver(() => state.model && showCurve()).observe($("#curve"));

/** Asks for the remaining plans, one after the other, until all are known or something else is asked. */
async function sweep() {
  if (!can("classify")) return;
  const left = state.model.plans.filter((plan) => !state.answers.has(plan.budget));
  const mine = (sweeping = new AbortController());
  const button = $("#sweep-button");
  state.sweep = true;
  try {
    for (const [i, plan] of left.entries()) {
      button.hidden = false;
      button.textContent = "Stop";
      button.onclick = () => {
        state.sweep = false;
        mine.abort();
      };
      $("#sweep").textContent = `Asking at ${plan.tokens} tokens (${i + 1} of ${left.length})`;
      await untilVisible(mine.signal);
      const answer = await request("v1/classify", { body: form(plan.budget), signal: mine.signal });
      state.answers.set(plan.budget, { ...answer, budget: plan.budget });
      showCurve();
    }
  } catch {
    // The curve only misses what could not be asked; the answer itself is there.
  } finally {
    if (sweeping === mine) offerSweep();
  }
}

function offerSweep() {
  const left = state.file && can("classify") && state.model.plans.some((plan) => !state.answers.has(plan.budget));
  const button = $("#sweep-button");
  $("#sweep").textContent = "";
  button.hidden = !left;
  button.textContent = "Ask at every budget";
  button.onclick = sweep;
}

function untilVisible(signal) {
  if (!document.hidden) return;
  return new Promise((resolve, reject) => {
    document.addEventListener("visibilitychange", resolve, { once: true });
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

// ---- Words ----

onSubmit($("#search"), async (signal) => {
  const text = $("#text").value.trim();
  if (!text) return;
  const wait = (seconds) => say(`The server is busy; the page tries again in ${number(seconds)} s.`, $("#found"));
  const { results } = await request("v1/search", { body: { text, top: 5 }, signal, onwait: wait });
  $("#found").textContent = results.length ? `${results.length} moments, best first` : "Nothing was found.";
  fillHits($("#results"), results);
}, askForToken);

onSubmit($("#chat"), async (signal) => {
  const question = $("#question").value.trim();
  if (!question) return;
  if (!state.file) throw new ApiError(0, "Choose a video first.");
  $("#reply").textContent = "…";
  try {
    const answer = await request("v1/chat", { body: form(state.budget, { question }), signal });
    $("#reply").textContent = answer.answer;
    if (answer.plan && answer.cost && !task()) showAnswer({ ...answer, budget: state.budget });
  } catch (error) {
    $("#reply").textContent = "";
    throw error;
  }
}, askForToken);

start();
