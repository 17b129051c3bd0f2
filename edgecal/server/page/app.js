// The page: no library, nothing fetched but the server's own /app routes. Texts of others become text nodes only.

const $ = (id) => document.getElementById(id);
const NAMES = {
  zero_shot: "No adapter", in_context: "One example before it", main_adapter: "Main adapter alone",
  auxiliary_adapter: "Second adapter alone", single: "One adapter", linear: "Linear merge", concat: "Concatenation",
  ties: "TIES", dare_linear: "DARE", slerp: "Slerp", learnable_calibration: "Learnable Calibration",
  learnable_calibration_pp: "Learnable Calibration++", projection_merge: "Projection merge",
  joint_expert: "Joint expert", multi_step: "Two passes",
};
const BEST = ["learnable_calibration_pp", "projection_merge", "learnable_calibration", "joint_expert", "concat", "linear", "main_adapter"];
const title = (name) => NAMES[name.replace(/^shared /, "")] ?? name;
const word = (name) => name[0].toUpperCase() + name.slice(1);
const MIB = 1048576;

let state = null;
let references = [];
let exampleText = "";
let stopping = null; // the AbortController of what runs
let replaying = 0;

// ---------------------------------------------------------------------------------------------- what is kept

const kept = {
  read(key, fallback) {
    try { return JSON.parse(localStorage.getItem(`edgecal.${key}`)) ?? fallback; } catch { return fallback; }
  },
  write(key, value) {
    try { localStorage.setItem(`edgecal.${key}`, JSON.stringify(value)); } catch { /* full, or not allowed */ }
  },
};

if (location.hash.startsWith("#token=")) {
  kept.write("token", decodeURIComponent(location.hash.slice(7)));
  history.replaceState(null, "", location.pathname);
}

// ------------------------------------------------------------------------------------------------ the server

class Refused extends Error {} // the server's own word, where everything else is a broken connection

async function ask(path, body, signal) {
  const headers = {};
  const token = kept.read("token", null);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body), signal,
  });
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Refused(told?.error?.message ?? `the server answered with ${response.status}`);
  }
  return response;
}

async function* events(path, body, signal) {
  const response = await ask(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (!data) continue;
      const parsed = JSON.parse(data);
      if (name === "error") throw new Refused(parsed.error.message);
      yield [name, parsed];
    }
  }
}

async function connect() {
  for (;;) {
    try {
      state = await (await ask("/app/state")).json();
      break;
    } catch (error) {
      const away = !(error instanceof Refused);
      $("status").textContent = away ? "The server is away. Text and history are still here." : word(error.message);
      await new Promise((resolve) => setTimeout(resolve, away ? 4000 : 1500));
    }
  }
  $("status").textContent = `${state.model}, on this server, ${state.threads} of ${state.cores} cores`;
  fillTasks();
  settingsFromState();
  refresh();
}

// ------------------------------------------------------------------------------------------------- the choice

const option = (value, text, disabled = false) => {
  const made = new Option(text, value);
  made.disabled = disabled;
  return made;
};

function fillTasks() {
  const chosen = kept.read("choice", {});
  $("main").replaceChildren(option("summarize", "Summarize"), option("reply", "Suggest a reply"));
  const group = (label, values, text) => {
    const made = document.createElement("optgroup");
    made.label = label;
    made.append(...values.map((value) => option(value, text(value))));
    return made;
  };
  $("also").replaceChildren(
    option("", "nothing else"),
    group("in another language", state.languages, (l) => `in ${word(l)}`),
    group("in another tone", state.tones, (t) => (t === "paraphrase" ? "paraphrased" : t)),
  );
  $("main").value = chosen.main ?? "summarize";
  $("also").value = chosen.also ?? (state.adapters.includes("professional") ? "professional" : "");
  if (!$("main").value) $("main").value = "summarize";
  if ($("also").selectedIndex < 0) $("also").value = "";
  fillMethods(chosen.method);
}

const task = () => [$("main").value, $("also").value].filter(Boolean).join("+");

function fillMethods(wanted) {
  const { methods, lacking } = state.tasks[task()];
  const names = methods.map((one) => one.name);
  $("method").replaceChildren(
    ...methods.map((one) => option(one.name, title(one.name) + (one.n_passes > 1 ? ` (${one.n_passes} passes)` : ""))),
  );
  const plain = (name) => name.replace(/^shared /, "");
  const best = BEST.map((b) => names.find((n) => plain(n) === b)).find(Boolean);
  $("method").value = names.includes(wanted) ? wanted : best ?? names[0];
  const reasons = Object.entries(lacking);
  $("why").hidden = reasons.length === 0;
  $("lacking").replaceChildren(...reasons.map(([name, why]) => item(`${title(name)}: ${why}`)));
  refresh();
}

const item = (text) => {
  const made = document.createElement("li");
  made.textContent = text;
  return made;
};

function refresh() {
  const text = $("text").value.trim();
  const busy = stopping !== null;
  $("run").disabled = $("compare").disabled = !state || !text || busy;
  $("replay").disabled = !text || busy;
  $("clear").disabled = !text;
  $("stop").hidden = !busy;
  $("example").disabled = !state || busy;
}

function problem(text) { $("problem").textContent = text; }

// ----------------------------------------------------------------------------------------- conversation, replay

async function example() {
  problem("");
  try {
    const found = await (await ask(`/app/example?task=${encodeURIComponent(task())}`)).json();
    $("text").value = exampleText = found.text;
    references = found.references;
    kept.write("text", found.text);
    refresh();
    await replay();
  } catch (error) { problem(word(error.message)); }
}

function turns() {
  return $("text").value.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => {
    const match = /^([^:]{1,40}):\s*(.+)$/.exec(line);
    return match ? { who: match[1], said: match[2] } : { who: "", said: line };
  });
}

async function replay() {
  const run = ++replaying;
  const list = $("bubbles");
  const pace = Number($("pace").value) * (matchMedia("(prefers-reduced-motion: reduce)").matches ? 20 : 1);
  const all = turns();
  const first = all[0]?.who;
  list.replaceChildren();
  list.hidden = false;
  $("replay").textContent = "Stop replay";
  for (const { who, said } of all) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(400 + 28 * said.length, 3500) / pace));
    if (run !== replaying) return;
    const bubble = document.createElement("li");
    if (who) bubble.append(Object.assign(document.createElement("b"), { textContent: who }));
    bubble.append(said);
    if (who && who !== first) bubble.className = "other";
    list.append(bubble);
    bubble.scrollIntoView({ block: "nearest" });
  }
  endReplay(false);
}

function endReplay(hide) {
  replaying += 1;
  $("replay").textContent = "Replay";
  if (hide) $("bubbles").hidden = true;
}

// ----------------------------------------------------------------------------------------------------- answers

function card(run) {
  const box = document.createElement("article");
  box.setAttribute("aria-label", title(run.method));
  box.innerHTML = `<header><h3></h3><span class="state"></span></header><p class="said" aria-live="polite"></p>
    <p class="back" hidden></p><dl></dl><svg class="plot" role="img" preserveAspectRatio="none" hidden></svg>
    <p class="legend" hidden><span><i class="m"></i>model</span><span><i class="c"></i>choosing</span><span><i class="w"></i>waiting</span></p>
    <p class="row"></p>`;
  box.querySelector("h3").textContent = title(run.method);
  return box;
}

function show(box, run) {
  box.querySelector(".said").textContent = run.text;
  const ends = { length: "cut at the longest answer", context: "the context is full", repetition: "it repeated itself" };
  box.querySelector(".state").textContent =
    run.state === "done" ? ends[run.finish_reason] ?? "done" : run.state === "running" ? "writing" : run.state;
  const facts = [];
  const add = (name, value) => { if (value !== null && value !== undefined) facts.push([name, value]); };
  const ms = (value) => (value === undefined ? null : value < 1000 ? `${value.toFixed(0)} ms` : `${(value / 1000).toFixed(2)} s`);
  add("First token", ms(run.first_ms));
  if (run.timings?.predicted_per_second) add("Tokens a second", run.timings.predicted_per_second.toFixed(1));
  add("Total", ms(run.total_ms));
  if (run.peak_bytes) add("Memory, peak", `${(run.peak_bytes / MIB).toFixed(0)} MiB`);
  if (run.idle_bytes) add("Memory, idle", `${(run.idle_bytes / MIB).toFixed(0)} MiB`);
  if (run.n_passes) add("Passes", run.n_passes);
  if (run.extra_parameters !== undefined) add("Extra parameters", run.extra_parameters.toLocaleString("en"));
  if (run.scores?.rouge1 !== undefined) add("ROUGE-1 / weighted", `${(100 * run.scores.rouge1).toFixed(1)} / ${(100 * run.scores.weighted_rouge).toFixed(1)}`);
  if (run.scores?.failure) add("But", run.scores.failure);
  box.querySelector("dl").replaceChildren(...facts.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
  plot(box, run.steps);
}

// Bars of milliseconds, one a token after the first, whose time is the prompt's
function plot(box, steps) {
  const svg = box.querySelector("svg");
  const bars = steps.slice(1);
  svg.toggleAttribute("hidden", bars.length < 2);
  box.querySelector(".legend").hidden = bars.length < 2;
  if (bars.length < 2) return;
  const sorted = bars.map((s) => s[0] + s[1] + s[2]).sort((a, b) => a - b);
  const most = Math.max(sorted[Math.floor(sorted.length * 0.98)], 0.001) * 1.15;
  svg.setAttribute("viewBox", `0 0 ${bars.length} 100`);
  svg.setAttribute("aria-label", `Time of each token: half of them within ${sorted[sorted.length >> 1].toFixed(1)} ms`);
  const shapes = [];
  bars.forEach((parts, x) => {
    let y = 100;
    ["m", "c", "w"].forEach((kind, i) => {
      const height = Math.min((100 * parts[i]) / most, y);
      if (height < 0.3) return;
      y -= height;
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [key, value] of Object.entries({ x: x + 0.08, y, width: 0.84, height, class: kind })) bar.setAttribute(key, value);
      shapes.push(bar);
    });
  });
  svg.replaceChildren(...shapes);
}

async function answer(method, signal) {
  const run = {
    at: new Date().toISOString(), model: state.model, task: task(), method, source: $("text").value, text: "",
    state: "running", steps: [],
  };
  const box = card(run);
  $("nothing").hidden = true;
  $("cards").append(box);
  show(box, run);
  current = run;
  let before = 0;
  const scale = { temperature: Number($("temperature").value) || 0 };
  if ($("seed").value !== "") scale.seed = Number($("seed").value);
  try {
    const body = {
      text: run.source, task: run.task, method, max_tokens: Number($("max_tokens").value) || 128, ...scale,
      references: run.source === exampleText ? references : [],
    };
    for await (const [name, data] of events("/app/answer", body, signal)) {
      if (name === "piece") {
        run.text += data.text;
        const spent = data.at_ms - before;
        before = data.at_ms;
        run.steps.push([data.model_ms, data.choose_ms, Math.max(spent - data.model_ms - data.choose_ms, 0)].map((v) => Math.round(v * 100) / 100));
        if (data.index === 0) run.first_ms = data.at_ms;
      } else if (name === "done") {
        Object.assign(run, data, { state: "done" });
      }
      show(box, run);
    }
    if (run.state === "running") run.state = "interrupted";
  } catch (error) {
    const told = error instanceof Refused;
    run.state = signal.aborted ? "stopped" : told ? "failed" : "interrupted";
    if (!signal.aborted) problem(told ? word(error.message) : "The connection to the server broke.");
  }
  current = null;
  show(box, run);
  remember(run);
  offerBack(box, run);
  return run;
}

function offerBack(box, run) {
  const language = run.task.split("+").find((part) => state?.languages.includes(part));
  if (!language || !state?.back || run.state !== "done" || !run.text.trim()) return;
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "In English" });
  const translate = async () => {
    button.disabled = true;
    const place = box.querySelector(".back");
    place.hidden = false;
    place.textContent = "";
    try {
      for await (const [name, data] of events("/app/back", { text: run.text, language })) {
        if (name === "piece") place.textContent += data.text;
      }
    } catch (error) { problem(word(error.message)); button.disabled = false; }
  };
  button.addEventListener("click", translate);
  box.querySelector(".said").addEventListener("click", () => button.disabled || translate());
  box.querySelector(".row").append(button);
}

let current = null; // the run that is being written

async function start(methods) {
  problem("");
  endReplay(false);
  $("cards").replaceChildren();
  $("table").hidden = true;
  stopping = new AbortController();
  const { signal } = stopping;
  refresh();
  kept.write("choice", { main: $("main").value, also: $("also").value, method: $("method").value });
  const runs = [];
  for (const method of methods) {
    if (signal.aborted) break;
    runs.push(await answer(method, signal));
    if (runs.at(-1).state !== "done") break;
  }
  stopping = null;
  refresh();
  if (methods.length > 1) compared(runs.filter((run) => run.state === "done"));
  $("answers").focus({ preventScroll: methods.length === 1 });
}

function compared(runs) {
  if (!runs.length) return;
  const scored = runs.some((run) => run.scores?.rouge1 !== undefined);
  const mib = (bytes) => (bytes ? (bytes / MIB).toFixed(0) : "");
  const columns = [
    ["Method", (r) => title(r.method)], ["Passes", (r) => r.n_passes], ["First token, ms", (r) => r.first_ms.toFixed(0)],
    ["Tokens/s", (r) => r.timings.predicted_per_second?.toFixed(1) ?? ""], ["Total, s", (r) => (r.total_ms / 1000).toFixed(2)],
    ["Peak, MiB", (r) => mib(r.peak_bytes)], ["Idle, MiB", (r) => mib(r.idle_bytes)],
    ["Extra parameters", (r) => r.extra_parameters.toLocaleString("en")],
    ...(scored ? [["ROUGE-1", (r) => (100 * r.scores.rouge1).toFixed(1)], ["Weighted", (r) => (100 * r.scores.weighted_rouge).toFixed(1)]] : []),
  ];
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const [name] of columns) head.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col" }));
  const body = table.createTBody();
  for (const run of runs) {
    const row = body.insertRow();
    for (const [, value] of columns) row.insertCell().textContent = value(run);
  }
  $("table").replaceChildren(table);
  $("table").hidden = false;
}

// ----------------------------------------------------------------------------------------- history and settings

function remember(run) {
  const all = kept.read("history", []);
  all.unshift(run);
  kept.write("history", all.slice(0, 100));
  listHistory();
}

function listHistory() {
  const all = kept.read("history", []);
  $("history").replaceChildren(...all.map((run) => {
    const line = document.createElement("li");
    const open = Object.assign(document.createElement("button"), { type: "button" });
    open.textContent = `${new Date(run.at).toLocaleString()}: ${run.task}, ${title(run.method)} (${run.state}): ${run.text.slice(0, 60)}`;
    open.addEventListener("click", () => again(run));
    line.append(open);
    return line;
  }));
  $("export").disabled = $("forget").disabled = all.length === 0;
}

function again(run) {
  $("text").value = run.source;
  endReplay(true);
  const box = card(run);
  $("nothing").hidden = true;
  $("cards").replaceChildren(box);
  show(box, run);
  offerBack(box, run);
  refresh();
}

function exportHistory() {
  const blob = new Blob([JSON.stringify(kept.read("history", []), null, 1)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "edgecal-history.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function settingsFromState() {
  $("threads").max = state.cores;
  $("threads").value = state.threads;
  $("max_tokens").max = state.max_tokens;
}

const SETTINGS = ["max_tokens", "temperature", "seed", "pace"];
for (const [name, value] of Object.entries({ max_tokens: 96, temperature: 0, seed: "", pace: "1", ...kept.read("settings", {}) })) {
  if (SETTINGS.includes(name)) $(name).value = value;
}
for (const name of SETTINGS) {
  $(name).addEventListener("change", () => kept.write("settings", Object.fromEntries(SETTINGS.map((n) => [n, $(n).value]))));
}
$("threads").addEventListener("change", async () => {
  try {
    const { threads } = await (await ask("/app/settings", { threads: Number($("threads").value) })).json();
    state.threads = threads;
    $("status").textContent = `${state.model}, on this server, ${threads} of ${state.cores} cores`;
  } catch (error) { problem(word(error.message)); $("threads").value = state.threads; }
});

$("text").value = kept.read("text", "");
$("text").addEventListener("input", () => { kept.write("text", $("text").value); endReplay(true); refresh(); });
$("example").addEventListener("click", example);
$("replay").addEventListener("click", () => ($("replay").textContent === "Replay" ? replay() : endReplay(false)));
$("clear").addEventListener("click", () => { $("text").value = ""; kept.write("text", ""); endReplay(true); refresh(); $("text").focus(); });
$("main").addEventListener("change", () => fillMethods($("method").value));
$("also").addEventListener("change", () => fillMethods($("method").value));
$("run").addEventListener("click", () => start([$("method").value]));
$("compare").addEventListener("click", () => start(state.tasks[task()].methods.map((one) => one.name)));
$("stop").addEventListener("click", () => stopping?.abort());
$("export").addEventListener("click", exportHistory);
$("forget").addEventListener("click", () => { kept.write("history", []); listHistory(); });
window.addEventListener("pagehide", () => {
  if (!current) return;
  current.state = "interrupted";
  remember(current);
});
listHistory();
const last = kept.read("history", [])[0];
if (last?.state === "interrupted") again(last);
refresh();
if ("serviceWorker" in navigator && isSecureContext) navigator.serviceWorker.register("/worker.js").catch(() => {});
connect();
