// The page: panes with streams, and the controls of the chosen one.

import { Gauge } from "./gauges.js";
import { PromptBox, Words } from "./prompt.js";
import { Camera, giveVideo, shrink } from "./sources.js";
import { api, Stream } from "./stream.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const MODES = {
  recache: "The past is seen under the new words; the look stays.",
  keep: "The past stays as it is; the picture follows within a second or two.",
  flush: "The past is forgotten, and a new shot begins.",
};

const about = await (await api("/api/model").catch((error) => refuse(error))).json();
const words = new Words(about.words);
const box = new PromptBox($("prompt-form"), words);
const gauges = {
  fps: new Gauge($("gauge-fps"), "", 1, about.fps * 1.4),
  latency: new Gauge($("gauge-latency"), "s", 2, 1),
  drift: new Gauge($("gauge-drift"), "", 2, 0.5),
};
const camera = new Camera($("camera-view"), about);
const panes = [];
let chosen = null;
let recording = null; // the stream, and from which chunk on

function refuse(error) {
  say(error.message);
  status("bad", "no access");
  throw error;
}

function say(text, good = false) {
  $("toast").textContent = text;
  $("toast").classList.toggle("good", good);
  $("toast").hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => ($("toast").hidden = true), 7000);
}

function status(kind, text) {
  $("status").className = kind;
  $("status-text").textContent = text;
}

function attempt(action) {
  return async (...given) => {
    try {
      await action(...given);
    } catch (error) {
      say(error.message);
    }
  };
}

// ---- panes -------------------------------------------------------------------------------------------------------

class Pane {
  constructor(session = null) {
    this.root = document.createElement("div");
    this.root.className = "pane";
    this.root.innerHTML = `<canvas width="${about.width * 8}" height="${about.height * 8}" role="img" tabindex="0"></canvas>
      <p class="empty">Describe something, and it begins.</p><p class="caption"></p>`;
    this.canvas = this.root.querySelector("canvas");
    this.canvas.style.aspectRatio = `${about.width} / ${about.height}`;
    this.caption = this.root.querySelector(".caption");
    this.stream = new Stream(about, this.canvas, session);
    this.timeline = new Timeline(about, (chunk) => this.rewind(chunk));
    // the first click on a pane chooses it (its focus does), the next one pauses it
    let wasChosen = false;
    this.canvas.addEventListener("pointerdown", () => (wasChosen = chosen === this));
    this.canvas.addEventListener("click", () => wasChosen && toggle());
    this.canvas.addEventListener("focus", () => choose(this));
    $("panes").append(this.root);
    $("timeline").append(this.timeline.root);
    panes.push(this);
    this.listen();
    choose(this);
    if (panes.length > 1) this.addClose();
  }

  addClose() {
    const button = document.createElement("button");
    button.className = "close icon";
    button.setAttribute("aria-label", "Close this fork");
    button.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 6l12 12M18 6 6 18"/></svg>';
    button.addEventListener("click", () => this.close());
    this.root.append(button);
  }

  listen() {
    const on = (kind, action) => this.stream.addEventListener(kind, ({ detail }) => action(detail));
    on("state", (state) => {
      this.showState(state);
      remember();
    });
    on("chunk", (chunk) => {
      if (chosen === this && "drift" in chunk) gauges.drift.add(chunk.drift);
    });
    on("shown", (frame) => {
      this.root.querySelector(".empty").hidden = true;
      const prompt = this.stream.chunks[frame.chunk]?.prompt ?? "";
      if (this.caption.textContent !== prompt) {
        this.caption.textContent = prompt;
        this.canvas.setAttribute("aria-label", `Video: ${prompt}`);
      }
    });
    on("obeyed", ({ seconds }) => chosen === this && gauges.latency.add(seconds));
    on("forked", ({ session }) => {
      const twin = new Pane(session);
      if (this.stream.state?.playing) twin.stream.addEventListener("state", () => twin.stream.send("play"), { once: true });
    });
    on("replaying", () => this.mark("replay"));
    on("replayed", () => {
      this.mark(null);
      const { replayed, chunks } = this.stream;
      const known = replayed.flatMap((digest, chunk) => (chunks[chunk]?.digest ? [digest === chunks[chunk].digest] : []));
      const equal = known.length > 0 && known.every(Boolean);
      if (equal) say(`Replayed ${known.length} chunks, equal to the last bit.`, true);
      else if (known.length) say(`Replayed ${known.length} chunks, ${known.filter((same) => !same).length} of them not as they were.`);
    });
    on("rewound", () => this.mark(null));
    for (const kind of ["full", "slow", "limit", "error", "replaced"]) on(kind, ({ message }) => say(message));
    on("replaced", () => this.showState(this.stream.state));
    on("understood", ({ notes }) => say(notes.join(" ")));
    on("draining", ({ message }) => {
      say(message);
      if (this.stream.session) saveTake(this.stream).catch((error) => say(error.message));
    });
    on("ended", () => status("bad", "this session has ended"));
    on("lost", () => status("bad", "connection lost, trying again"));
    on("connected", () => this.showState(this.stream.state));
    on("parked", () => chosen === this && status("", "parked"));
  }

  showState(state) {
    if (chosen !== this) return;
    const playing = Boolean(state?.playing);
    $("play").classList.toggle("paused", !playing);
    $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    if (!state?.replaying) this.mark(null);
    const resting = this.stream.elsewhere ? "in another window" : state?.parked ? "parked" : "paused";
    status(playing ? "live" : "", playing ? "live" : state ? resting : "ready");
    for (const id of ["back", "fork", "replay", "record", "save"]) $(id).disabled = !state;
    if (!state) return;
    for (const [id, value] of [["seed", state.seed], ["steps", state.steps], ["window", state.window]]) {
      if (document.activeElement !== $(id) && value !== null) $(id).value = value;
    }
    $("pace").value = String(state.pace);
    showOutputs();
    markQuick();
    if (!camera.on && document.activeElement !== $("prompt") && box.value === "") box.value = state.asked;
  }

  mark(text) {
    this.root.querySelector(".tag")?.remove();
    if (!text) return;
    const tag = document.createElement("span");
    tag.className = "tag";
    tag.textContent = text;
    this.root.append(tag);
  }

  // Back to a chunk: of a replay, it is shown again from there; of a stream, what came after is taken away.
  rewind(chunk) {
    choose(this);
    if (this.stream.replaying) this.stream.send("replay", { start: Math.max(0, Math.min(chunk, this.stream.state.chunks - 1)) });
    else this.stream.rewind(chunk);
  }

  close() {
    this.stream.close();
    this.root.remove();
    this.timeline.root.remove();
    panes.splice(panes.indexOf(this), 1);
    if (camera.on && camera.target === this.stream) stopCamera();
    if (!panes.length) new Pane();
    choose(panes[0]);
    remember();
  }
}

function choose(pane) {
  if (chosen === pane) return;
  chosen = pane;
  for (const other of panes) other.root.classList.toggle("chosen", other === pane);
  if (pane.stream.state) box.value = pane.stream.state.asked;
  pane.showState(pane.stream.state);
}

function remember() {
  sessionStorage.setItem("sessions", JSON.stringify(panes.map((pane) => pane.stream.session).filter(Boolean)));
}

// ---- prompts -----------------------------------------------------------------------------------------------------

const mode = () => document.querySelector("input[name=mode]:checked").value;

function options() {
  const wanted = { seed: Number($("seed").value), pace: JSON.parse($("pace").value) };
  if (about.other_steps && Number($("steps").value) !== about.steps) wanted.steps = Number($("steps").value);
  if (about.window !== null && Number($("window").value) !== about.window) wanted.window = Number($("window").value);
  return wanted;
}

function showPrompt(text) {
  const { stream } = chosen;
  if (!stream.session) return stream.open(text, options());
  const blend = mode() === "flush" ? 0 : Number($("blend").value);
  if (text !== stream.state?.asked || mode() === "flush") stream.setPrompt(text, mode(), blend);
  if (!stream.state?.playing) stream.send("play");
  if (stream.state) stream.state.prompt = stream.state.asked = text;
  markQuick();
  return undefined;
}

// What a key changes: what is written, or of a story that is under way the part that is told now.
function inForce() {
  const { state } = chosen.stream;
  if (state && box.value === state.asked) return state.prompt;
  return box.value || state?.prompt || words.surprise("");
}

function quick(key) {
  const { group, value } = words.keys[key];
  box.value = words.change(inForce(), group, value);
  showPrompt(box.value);
}

function buildQuick() {
  let before = null;
  for (const [key, { group, value }] of Object.entries(words.keys)) {
    if (before && before !== group) $("quick").append(Object.assign(document.createElement("span"), { className: "divide" }));
    before = group;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-keyshortcuts", key);
    button.append(value, Object.assign(document.createElement("kbd"), { textContent: key }));
    button.addEventListener("click", () => quick(key));
    $("quick").append(button);
  }
}

function markQuick() {
  const prompt = chosen?.stream.state?.prompt ?? "";
  for (const button of $("quick").querySelectorAll("button")) {
    const { group, value } = words.keys[button.dataset.key];
    button.setAttribute("aria-pressed", String(words.find(prompt, group)?.value === value));
  }
}

// ---- transport ---------------------------------------------------------------------------------------------------

function toggle() {
  const { stream } = chosen;
  if (!stream.session) {
    if (!box.value) box.value = words.surprise("");
    return showPrompt(box.value);
  }
  return stream.send(stream.state?.playing || stream.replaying ? "pause" : "play");
}

const back = (chunks) => chosen.stream.session && chosen.rewind(Math.max(0, chosen.stream.shown.chunk + 1 - chunks));
const fork = () => panes.length < 3 ? chosen.stream.send("fork") : say("Close a fork first: three are side by side.");

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 30000);
}

async function saveTake(stream) {
  const answer = await api(`/api/sessions/${stream.session}/take`);
  download(await answer.blob(), `causvid-${stream.state.seed}.take`);
  say("Saved. Open the take here or with causvid take.", true);
}

const save = attempt(() => saveTake(chosen.stream));

const record = attempt(async () => {
  const label = $("record").querySelector("span");
  if (recording === null) {
    const { stream } = chosen;
    if (!stream.session) return;
    recording = { stream, from: Math.max(0, stream.shown.chunk) };
    $("record").setAttribute("aria-pressed", "true");
    label.textContent = "Stop";
    return;
  }
  const { stream, from } = recording;
  recording = null;
  $("record").setAttribute("aria-pressed", "false");
  const start = Math.max(0, Math.min(from, stream.shown.chunk));
  const query = new URLSearchParams({ start, stop: stream.shown.chunk + 1 });
  let job;
  try {
    job = await (await api(`/api/sessions/${stream.session}/movie?${query}`, { method: "POST" })).json();
    while (job.state === "waiting" || job.state === "running") {
      label.textContent = `${Math.round(job.progress * 100)} %`;
      await new Promise((wake) => setTimeout(wake, 250));
      job = await (await api(`/api/jobs/${job.job}`)).json();
    }
  } finally {
    label.textContent = "Record";
  }
  if (job.state !== "done") throw new Error(job.error ?? "the movie was not made");
  download(await (await api(job.result)).blob(), "causvid.mp4");
});

// ---- pictures ----------------------------------------------------------------------------------------------------

const restyling = () => ({
  strength: $("motion").checked ? "motion" : Number($("strength").value),
  of: $("redraw").checked ? null : $("shows").value.trim(),
});

// The first news of a stream that was asked for: its state, or why there is none.
function opened(stream) {
  return new Promise((done, fail) => {
    const ends = new AbortController();
    const once = (kind, action) =>
      stream.addEventListener(kind, (news) => (ends.abort(), action(news)), { signal: ends.signal });
    once("state", done);
    for (const kind of ["full", "error", "limit", "lost"]) {
      once(kind, ({ detail }) => fail(new Error(detail?.message ?? "the connection was lost; try again")));
    }
  });
}

async function ensureStream() {
  const { stream } = chosen;
  if (!stream.session) {
    if (!box.value) box.value = words.surprise("");
    stream.open(box.value, { ...options(), play: false });
    await opened(stream);
  }
  return stream;
}

const animate = attempt(async (file) => {
  const stream = await ensureStream();
  await stream.sendPicture("image", await shrink(file, about), { how: "first" });
  stream.send("play");
});

const useVideo = attempt(async (file) => {
  $("video-choice").returnValue = "";
  $("video-choice").showModal();
  const use = await new Promise((done) => $("video-choice").addEventListener("close", () => done($("video-choice").returnValue), { once: true }));
  if (!use) return;
  const stream = await ensureStream();
  const taken = await giveVideo(stream.session, file, use, restyling(), about.limits);
  if (use === "restyle" && camera.on && camera.target === stream) releaseCamera();
  if (taken.notes.length) say(taken.notes.join(" "));
  if (taken.cut) say(`Only the first ${taken.seconds} seconds of this video are followed.`);
  stream.send("play");
});

const openTake = attempt(async (file) => {
  const old = chosen;
  if (old.stream.session && panes.length >= 3) throw new Error("close a fork first: three are side by side");
  const taken = await (await api("/api/takes", { method: "POST", body: file })).json();
  const pane = new Pane(taken.session);
  if (!old.stream.session) old.close();
  pane.stream.addEventListener("state", () => pane.stream.send("replay"), { once: true });
});

function useFile(file) {
  if (file.name.endsWith(".take")) openTake(file);
  else if (file.type.startsWith("image/")) animate(file);
  else if (file.type.startsWith("video/")) useVideo(file);
  else say("Drop an image, a video, or a saved take.");
}

const toggleCamera = attempt(async () => {
  if (camera.on) {
    stopCamera();
  } else {
    const stream = await ensureStream();
    camera.target = stream;
    await camera.start((blob) => stream.online && stream.socket.bufferedAmount < 1 << 18 && stream.sendPicture("frame", blob));
    if (stream.state?.restyles) stream.send("source", { strength: null }); // a file
    stream.send("source", restyling());
    stream.send("play");
    $("camera").setAttribute("aria-pressed", "true");
  }
});

function releaseCamera() {
  camera.stop();
  $("camera").setAttribute("aria-pressed", "false");
}

function stopCamera() {
  releaseCamera();
  camera.target.send("source", { strength: null });
}

function sendRestyling() {
  showOutputs();
  if (chosen.stream.state?.restyles) chosen.stream.send("source", restyling());
}

// ---- settings ----------------------------------------------------------------------------------------------------

function showOutputs() {
  const blend = Number($("blend").value);
  $("blend-out").textContent = blend ? `${blend} chunk${blend > 1 ? "s" : ""}` : "at once";
  $("strength-out").textContent = $("motion").checked ? "auto" : Number($("strength").value).toFixed(2);
  $("strength").disabled = $("motion").checked;
  $("shows").disabled = $("redraw").checked;
  $("steps-out").textContent = $("steps").value;
  $("window-out").textContent = about.window === null ? "all" : `${((Number($("window").value) * 4) / about.fps).toFixed(1)} s`;
  $("mode-note").textContent = MODES[mode()];
  $("blend").disabled = mode() === "flush";
}

function change(setting) {
  if (chosen.stream.session) chosen.stream.send("set", setting);
}

function buildSettings() {
  $("model").textContent = about.model;
  $("steps").disabled = !about.other_steps;
  $("steps").value = about.steps;
  const window = $("window");
  window.disabled = about.window === null;
  const least = about.chunk_latents * 2 + (about.sink ?? 0);
  Object.assign(window, { min: least, max: Math.max(least, (about.window ?? 21) * 2), step: about.chunk_latents });
  window.value = about.window ?? 21;
  $("seed").value = Math.floor(Math.random() * 10000);
  $("steps").addEventListener("change", () => change({ steps: Number($("steps").value) }));
  window.addEventListener("change", () => change({ window: Number(window.value) }));
  $("seed").addEventListener("change", () => change({ seed: Math.trunc(Number($("seed").value)) }));
  $("pace").addEventListener("change", () => change({ pace: JSON.parse($("pace").value) }));
  for (const id of ["steps", "window", "blend"]) $(id).addEventListener("input", showOutputs);
  document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", showOutputs));
  $("strength").addEventListener("input", showOutputs);
  $("redraw").addEventListener("change", () => ($("strength").value = $("redraw").checked ? 0.7 : 0.95)); // before it is sent
  for (const id of ["strength", "shows", "redraw"]) $(id).addEventListener("change", sendRestyling);
  $("motion").addEventListener("change", sendRestyling);
  $("dice").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 10000);
    change({ seed: Number($("seed").value) });
  });
  $("restart").addEventListener("click", () => {
    if (camera.on && camera.target === chosen.stream) releaseCamera();
    if (!chosen.stream.elsewhere) chosen.stream.send("close");
    chosen.stream.session = null;
    box.value = box.value || words.surprise("");
    chosen.stream.open(box.value, options());
  });
  showOutputs();
}

// ---- keys --------------------------------------------------------------------------------------------------------

const ACTIONS = {
  " ": ["Space", "play or pause", toggle],
  ArrowLeft: ["←", "one chunk back", () => back(1)],
  "Shift+ArrowLeft": ["Shift ←", "five chunks back", () => back(5)],
  "/": ["/", "write a prompt", () => $("prompt").select()],
  b: ["b", "fork", fork],
  p: ["p", "replay from the start", () => chosen.stream.send("replay")],
  v: ["v", "save the take", save],
  o: ["o", "record, stop recording", record],
  x: ["x", "another prompt", () => $("surprise").click()],
  Tab: ["Tab", "take a suggestion, while writing", null],
};

function buildKeys() {
  for (const [key, [label, text]] of Object.entries(ACTIONS)) addKey(label, text, key);
  addKey("Tab ← → Enter", "on the timeline: go back to a place");
  for (const [key, { value }] of Object.entries(words.keys)) addKey(key, value);
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=range]), select, textarea, dialog[open]")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?") return void $("help").showModal();
    if (event.key === " " && event.target.closest("button, a, label")) return;
    if (event.key.startsWith("Arrow") && event.target.matches("input")) return;
    const action = ACTIONS[(event.shiftKey && event.key.length > 1 ? "Shift+" : "") + event.key]?.[2];
    if (action) {
      event.preventDefault();
      action();
    } else if (words.keys[event.key]) {
      quick(event.key);
    }
  });
}

function addKey(label, text) {
  const key = document.createElement("dt");
  key.append(Object.assign(document.createElement("kbd"), { textContent: label }));
  $("keys").append(key, Object.assign(document.createElement("dd"), { textContent: text }));
}

// ---- begin -------------------------------------------------------------------------------------------------------

buildSettings();
buildQuick();
buildKeys();
box.onsend = showPrompt;
$("surprise").addEventListener("click", () => {
  box.value = words.surprise(box.value);
  showPrompt(box.value);
});
$("play").addEventListener("click", toggle);
$("back").addEventListener("click", () => back(1));
$("fork").addEventListener("click", fork);
$("replay").addEventListener("click", () => chosen.stream.send("replay"));
$("save").addEventListener("click", save);
$("record").addEventListener("click", record);
$("camera").addEventListener("click", toggleCamera);
$("help-open").addEventListener("click", () => $("help").showModal());
for (const [id, use] of [["image-file", animate], ["video-file", useVideo], ["take-file", openTake]]) {
  $(id).addEventListener("change", () => {
    if ($(id).files.length) use($(id).files[0]);
    $(id).value = "";
  });
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop-hint").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop-hint").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop-hint").hidden = true;
  if (event.dataTransfer.files.length) useFile(event.dataTransfer.files[0]);
});

setInterval(() => {
  for (const pane of panes) pane.timeline.show(pane.stream, pane.stream === recording?.stream ? recording.from : null);
}, 100);
setInterval(() => chosen?.stream.state?.playing && gauges.fps.add(chosen.stream.framesPerSecond), 500);

const known = JSON.parse(sessionStorage.getItem("sessions") ?? "[]");
if (known.length) known.forEach((session) => new Pane(session));
else new Pane();
choose(panes[0]);
if (!box.value && !known.length) box.value = words.surprise("");

window.studio = { about, panes, gauges, useFile }; // for scripts and tests
