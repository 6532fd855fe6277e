// The page of people: what is to be done comes from the server, and every action goes there at once.
import { $, button, el } from "./dom.js";
import * as form from "./form.js";
import * as marking from "./marking.js";
import * as pictures from "./pictures.js";

const TASKS = { correct: marking, mark: marking, form };
const REASONS = ["image unclear", "answer unreadable", "cannot tell", "other language"];
const IDLE = 60; // seconds without a sign of the person, which count no longer
const own = localStorage; // of this origin: name and theme
let name = new URLSearchParams(location.search).get("name") || own.getItem("mmfast-name") || "";
let view = null, task = null, seconds = 0, sign = Date.now(), ended = false, known = [];
const queue = []; // actions that the server has not confirmed, in their order
let sending = false;

// To the server: one action at a time; where it does not answer, again until it does.

export function act(what, more = {}) {
  const last = queue.at(-1);
  if (what === "draft" && !more.push && queue.length > 1 && last.do === "draft") last.work = more.work;
  else queue.push({ do: what, card: view && view.card ? view.card.id : undefined, ...more });
  $("saved").textContent = "saving…";
  return pump();
}

async function pump() {
  if (sending) return;
  sending = true;
  let good = true;
  while (queue.length) {
    const action = queue[0], now = view && view.card ? view.card : {};
    if (action.card !== now.id) { // a second Enter must not hand in the next card
      queue.shift();
      continue;
    }
    const [status, told, again] = await post({ name, seconds: Math.round(seconds), step: now.step, ...action });
    queue.shift();
    received(status, told, action, again);
    good = status === 200 || status === 409;
  }
  sending = false;
  $("saved").textContent = good ? "saved" : "not saved";
}

async function post(body) {
  for (let again = false; ; again = true) {
    try {
      const reply = await fetch("act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      $("lost").hidden = true;
      return [reply.status, await reply.json(), again];
    } catch {
      if (ended || body.do === "finish") return [200, { ...view, handed_in: true }, again];
      $("lost").hidden = false;
      await new Promise((go) => setTimeout(go, 700));
    }
  }
}

function received(status, told, action, again) {
  if (status === 200 || status === 409) {
    const here = action.do === "draft" || action.here; // the page shows it already, and may be further by now
    const same = status === 200 && here && view && told.card && told.card.id === view.card.id;
    view = told;
    if (status === 409) queue.length = 0;
    if (status === 409 && !again) note(told.error); // after a restart it had been recorded already
    if (same) about();
    else render();
    return;
  }
  queue.length = 0;
  if (told.names !== undefined && !view) askName(told.error, told.names);
  else note(told.error || `the server refused it (${status})`);
}

// What is shown

export function note(text) {
  $("note").textContent = text;
}

function duration(s) {
  if (s < 90) return `${Math.round(s)} s`;
  const minutes = Math.round(s / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function about() {
  const p = view.progress;
  $("title").textContent = view.title;
  document.title = view.title;
  $("who").textContent = view.name;
  const bits = [` done`, p.skipped ? ` · ${p.skipped} skipped` : "", ` · ${p.left} left`];
  if (p.each >= 1) bits.push(` · ${duration(p.each)} each`);
  if (p.each >= 1 && p.left) bits.push(` · about ${duration(p.remaining)} to go`);
  $("pace").replaceChildren(el("b", {}, String(p.done)), bits.join(""));
  const all = p.done + p.skipped + p.left;
  document.querySelector("#bar i").style.width = `${all ? (100 * (p.done + p.skipped)) / all : 100}%`;
  $("undo").disabled = $("back").disabled = !view.undo;
}

function render() {
  about();
  const card = view.card;
  const old = $("card").dataset.id;
  $("card").dataset.id = card ? card.id : "";
  $("done").hidden = !card && !view.finish;
  $("skip").disabled = !card;
  $("done").firstChild.data = card ? "Done " : "Hand in ";
  if (!card) return end();
  if (old !== card.id) {
    seconds = card.seconds;
    note("");
    $("card").scrollTop = 0;
  }
  task = TASKS[card.task];
  pictures.show(card.images);
  task.open($("card"), card, view.work);
}

function end() {
  task = null;
  pictures.show([]);
  const { others } = view.progress;
  const [title, text] = view.handed_in ? ["Handed in.", "This page can be closed."]
    : view.finish ? ["All is answered.", "Enter hands it in; U takes the last one back."]
    : others ? ["Nothing is left for you.", `Left with others, or waiting for them: ${others}.`]
    : view.more ? ["One moment.", "The next ones are on their way."]
    : ["All done. Thank you.", "U takes the last one back; else this page can be closed."];
  ended = view.handed_in;
  $("card").replaceChildren(el("div", { class: "end" }, el("h2", {}, title), el("p", { class: "hint" }, text)));
}

setInterval(() => { // something may have come
  if (view && !view.card && !queue.length && !ended) act("look");
}, 1500);
setInterval(() => {
  if (view && view.card && !document.hidden && Date.now() - sign < IDLE * 1000) seconds += 1;
}, 1000);
for (const kind of ["keydown", "pointermove", "wheel"]) addEventListener(kind, () => { sign = Date.now(); }, { passive: true });
addEventListener("beforeunload", (event) => { if (queue.length) event.preventDefault(); });

// Names, reasons, keys

function askName(problem = "", names = known) {
  known = names;
  $("names").replaceChildren(...names.map((one) => button(one, () => { $("name").value = one; $("asks-name").close("name"); })));
  $("name").hidden = names.length > 0;
  $("name").value = name;
  if (problem && name) note(problem);
  $("asks-name").returnValue = "";
  $("asks-name").showModal();
}

$("asks-name").addEventListener("close", () => {
  const given = $("name").value.trim();
  if (!given) return askName();
  if (view && given === name) return;
  [name, view] = [given, null];
  own.setItem("mmfast-name", name);
  act("look");
});

function askReason() {
  $("reasons").replaceChildren(...REASONS.map((one) => button(one, () => { $("reason").value = one; $("asks-reason").close("skip"); })));
  $("reason").value = "";
  $("asks-reason").returnValue = "";
  $("asks-reason").showModal();
  $("reason").focus();
}

$("no-skip").addEventListener("click", () => $("asks-reason").close(""));
$("asks-reason").querySelector("form").addEventListener("submit", () => { $("asks-reason").returnValue = "skip"; });
$("asks-reason").addEventListener("close", () => {
  if ($("asks-reason").returnValue !== "skip") return;
  if ($("reason").value.trim()) act("skip", { reason: $("reason").value });
  else note("it is skipped with a reason");
});

function tellKeys() {
  const shared = [["Enter", "done, and the next one"], ["U", "undo; at the start of a card: take back the last one"], ["B", "take back the last card"], ["S", "skip, with a reason"], ["T", "light or dark"]];
  const lines = [...(task ? task.keys() : []), ...shared, ...pictures.keys];
  const caps = (keys) => keys.split(" ").map((one) => el("kbd", {}, one));
  $("keys").replaceChildren(...lines.flatMap(([keys, told]) => [el("dt", {}, ...caps(keys)), el("dd", {}, told)]));
  $("tells-keys").showModal();
}

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
}

const night = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => (own.getItem("mmfast-theme") ? own.getItem("mmfast-theme") === "dark" : night.matches);
theme(chosen());
night.addEventListener("change", () => theme(chosen()));

const does = {
  done: () => { if (task) task.done(); else if (view.finish) act("finish"); },
  undo: () => { note(""); if (!$("undo").disabled) { if (task) task.settle(); act("undo"); } },
  back: () => { note(""); if (!$("back").disabled) { if (task) task.settle(); act("back"); } },
  skip: () => { if (task) task.settle(), askReason(); },
  help: tellKeys,
  who: () => askName("", view.names),
  theme: () => { own.setItem("mmfast-theme", chosen() ? "light" : "dark"); theme(chosen()); },
};
for (const [id, press] of Object.entries(does))
  $(id).addEventListener("click", (event) => { if (event.detail) $(id).blur(); if (view) press(); });

const KEYS = { u: "undo", b: "back", s: "skip", "?": "help", t: "theme" };
addEventListener("keydown", (event) => {
  if (!view || document.querySelector("dialog[open]") || event.isComposing) return;
  const inside = event.target.closest("textarea, input");
  if (inside) return task && task.typed(event);
  const control = event.ctrlKey || event.metaKey;
  if (control && event.key === "z") does.undo();
  else if (control) return;
  else if (event.key === "Enter" && !event.target.closest("button")) does.done();
  else if (task && task.key(event)) ;
  else if (event.altKey) return;
  else if (KEYS[event.key.toLowerCase()]) does[KEYS[event.key.toLowerCase()]]();
  else if (event.key === "0") pictures.reset();
  else if (!pictures.key(event)) return;
  event.preventDefault();
});

if (name) act("look");
else askName();
