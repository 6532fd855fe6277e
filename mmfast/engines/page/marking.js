// Marking what is wrong in an answer and rewriting it. Places are code points, as in Python: JavaScript's own count of an
// emoji is two.
import { button, el, spoken } from "./dom.js";
import { act, note } from "./people.js";

let home, card, points, words, segments, from, to, before, editing, fresh, box, waiting = 0;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u; // no blanks between words
const added = (one) => one.span[0] === one.span[1]; // words that are added stand in no place of the answer's own
const order = (one, other) => one.span[0] - other.span[0] || one.span[1] - other.span[1];
const word = new Intl.Segmenter(undefined, { granularity: "word" });
const letter = new Intl.Segmenter(undefined, { granularity: "grapheme" });
const count = (text) => Array.from(text).length;
const cut = (a, b) => points.slice(a, b).join("");

// Where each piece of a text begins and ends, in code points.
function pieces(segmenter, text) {
  let at = 0;
  return Array.from(segmenter.segment(text), ({ segment }) => ({ from: at, to: (at += count(segment)), text: segment }));
}

export function open(where, given, work) {
  home = where;
  const same = card && card.id === given.id;
  card = given;
  points = Array.from(card.answer);
  words = pieces(word, card.answer).filter((one) => !/^[\s\p{P}\p{Sm}\p{Sk}]*$/u.test(one.text)); // marks alone are no stop
  segments = (work.segments || []).map((one) => ({ span: one.span, kind: one.kind, to: one.to }));
  if (!same) [from, to] = words.length ? [words[0].from, words[0].to] : [0, 0];
  editing = null;
  clearTimeout(waiting);
  waiting = 0;
  box = {
    answer: el("div", { class: "answer", tabindex: "-1", dir: "auto" }),
    chips: el("div", { class: "chips" }),
    editor: el("div", { class: "editor" }),
    preview: el("div", { class: "preview" }),
    list: el("ol", { class: "segments" }),
  };
  const parts = [el("div", {}, ...spoken(card.messages)), el("div", { class: "panel" }, box.answer), el("div", { class: "tools" }, box.chips, box.editor), box.list];
  if (card.task === "correct") parts.push(el("div", {}, el("h3", {}, "Corrected"), box.preview));
  home.replaceChildren(...parts);
  box.answer.addEventListener("mouseup", (event) => setTimeout(() => taken(event)));
  draw();
}

// The page

function draw() {
  const at = home.scrollTop; // what is drawn anew is empty for a moment, and would scroll
  drawAnswer();
  drawRest();
  drawEditor();
  home.scrollTop = at;
  const shown = box.answer.querySelector(".cursor");
  if (shown) shown.scrollIntoView({ block: "nearest" });
}

function drawAnswer() {
  const cuts = new Set([0, points.length, from, to]);
  for (const one of [...words, ...segments.map((s) => ({ from: s.span[0], to: s.span[1] }))]) cuts.add(one.from), cuts.add(one.to);
  const at = [...cuts].sort((a, b) => a - b);
  const place = (a) => segments.filter((s) => added(s) && s.span[0] === a).map((s) =>
    el("span", { class: `added marked k-${s.kind}${from === to && from === a ? " cursor" : ""}`, "data-from": String(a), "data-added": "" }));
  box.answer.replaceChildren(...at.slice(0, -1).flatMap((a, n) => {
    const b = at[n + 1], inside = segments.find((s) => s.span[0] <= a && b <= s.span[1]);
    const kinds = [inside ? `marked k-${inside.kind}` : "", from <= a && b <= to ? "cursor" : ""];
    return [...place(a), el("span", { class: kinds.join(" ").trim(), "data-from": String(a) }, cut(a, b))];
  }), ...place(points.length));
}

function drawEditor() {
  box.editor.hidden = editing === null;
  box.editor.replaceChildren();
  if (editing === null) return;
  const one = segments[editing];
  const text = el("textarea", { rows: "1", dir: "auto", "aria-label": "Rewritten", spellcheck: "true" });
  text.value = one.to;
  text.addEventListener("input", () => {
    one.to = text.value;
    drawRest();
    draft(!fresh, true);
    fresh = true;
  });
  box.editor.append(el("label", { class: "hint" }, added(one) ? `behind “${cut(0, one.span[0]).slice(-24)}” comes` : `“${cut(...one.span)}” becomes`), text,
    el("span", { class: "hint" }, "Enter: good · empty: it goes · Alt+1…7: another kind · Esc: leave"));
  text.focus({ preventScroll: true });
  text.select();
}

// The marked segment that the selection meets.
const meets = (s) => (s.span[0] < to && from < s.span[1]) || (added(s) && from === to && from === s.span[0]);
const met = () => segments.findIndex(meets);
// Nothing has been written for it yet.
const idle = (s) => (added(s) ? !s.to.trim() : s.to === cut(...s.span));

function drawRest() {
  const here = met();
  box.chips.replaceChildren(...card.kinds.map((kind, n) =>
    button(kind, () => mark(kind), { class: `chip k-${kind}${here >= 0 && segments[here].kind === kind ? " on" : ""}` }, String(n + 1))),
    ...(card.task === "correct" ? [button("add words", () => add(false), { class: "chip plus" }, "A")] : []));
  box.list.replaceChildren(...segments.map((one, n) => {
    const was = cut(...one.span), changed = !idle(one);
    const told = el("span", { class: "words" }, added(one) ? "" : changed ? el("del", {}, was) : was);
    if (added(one)) told.append("+ ", el("ins", {}, one.to));
    if (changed && !added(one)) told.append(" → ", one.to ? el("ins", {}, one.to) : el("span", { class: "hint" }, "(goes)"));
    else if (!changed && card.task === "correct") told.append(el("span", { class: "hint" }, " — not rewritten yet"));
    return el("li", { class: n === here ? "on" : "" }, el("span", { class: `kind k-${one.kind}` }, one.kind), told,
      ...(card.task === "correct" ? [button("rewrite", () => edit(n), { class: "quiet" })] : []), button("unmark", () => unmark(n), { class: "quiet" }));
  }));
  if (!segments.length)
    box.list.replaceChildren(el("li", { class: "hint" }, "Nothing is marked: Enter says that the answer is right as it is."));
  let at = 0;
  box.preview.dir = getComputedStyle(box.answer).direction;
  box.preview.replaceChildren();
  for (const one of segments) {
    box.preview.append(cut(at, one.span[0]), el("ins", { class: `k-${one.kind}` }, one.to || "∅"));
    if (!one.to) box.preview.lastChild.className += " gone";
    at = one.span[1];
  }
  box.preview.append(cut(at, points.length));
}

// What a person does

function select(a, b) {
  [from, to] = [a, b];
  draw();
}

// The browser's own selection, widened to whole words (not with Alt).
function taken(event) {
  const chosen = getSelection();
  if (!chosen.rangeCount || !box.answer.contains(chosen.anchorNode)) return;
  const range = chosen.getRangeAt(0), click = range.collapsed;
  let [a, b] = [place(range.startContainer, range.startOffset), place(range.endContainer, range.endOffset)];
  chosen.removeAllRanges();
  close();
  if (click) { // the place between two letters is not what was meant: the piece that was pressed is
    const pressed = event.target.closest("[data-from]");
    if (!pressed) return;
    a = Number(pressed.dataset.from);
    const put = "added" in pressed.dataset; // an addition's own sign
    const inside = segments.findIndex((s) => (put ? added(s) && s.span[0] === a : s.span[0] <= a && a < s.span[1]));
    if (inside >= 0 && card.task === "correct") return edit(inside);
    b = a + 1;
  }
  if (!event.altKey) {
    const touched = words.filter((one) => one.from < b && a < one.to);
    if (!touched.length) return;
    const [first, end] = [touched[0].from, touched.at(-1).to];
    [a, b] = click ? [first, end] : [Math.min(a, first), Math.max(b, end)];
    while (!points[a].trim()) a += 1;
    while (!points[b - 1].trim()) b -= 1;
  }
  if (a < b && b <= points.length) select(a, b);
}

function place(node, offset) {
  if (node.nodeType === Node.TEXT_NODE) {
    const span = node.parentElement.closest("[data-from]");
    return span ? Number(span.dataset.from) + count(node.data.slice(0, offset)) : points.length;
  }
  const child = node === box.answer ? node.childNodes[offset] : node;
  return child && child.dataset && child.dataset.from ? Number(child.dataset.from) + (node === box.answer || !offset ? 0 : count(node.textContent)) : points.length;
}

function mark(kind) {
  if (from === to && met() < 0) return note("select words first");
  note("");
  // What it meets becomes part of it, as it was rewritten
  const parts = segments.filter(meets);
  const a = Math.min(from, ...parts.map((s) => s.span[0])), b = Math.max(to, ...parts.map((s) => s.span[1]));
  let text = "", at = a;
  for (const one of parts) [text, at] = [text + cut(at, one.span[0]) + one.to, one.span[1]];
  const made = { span: [a, b], kind, to: text + cut(at, b) };
  before = structuredClone(segments);
  segments = [...segments.filter((s) => !parts.includes(s)), made].sort(order);
  [from, to] = [a, b];
  draft(true);
  if (card.task === "correct") edit(segments.indexOf(made), true);
  else draw();
}

// Words to be added behind what is selected, or before it. Where words have blanks between them it begins with one.
function add(ahead) {
  if (card.task !== "correct") return note("words are added where answers are rewritten");
  const at = ahead ? from : to;
  note("");
  const inside = segments.findIndex((s) => s.span[0] < at && at < s.span[1] || (added(s) && s.span[0] === at));
  if (inside >= 0) return edit(inside); // it is rewritten already
  const beside = points[ahead || !at ? at : at - 1] || "";
  const blank = beside.trim() && !UNSPACED.test(beside) ? " " : "";
  const made = { span: [at, at], kind: card.kinds.at(-1), to: blank };
  before = structuredClone(segments);
  segments = [...segments, made].sort(order);
  [from, to] = [at, at];
  draft(true);
  edit(segments.indexOf(made), true);
  const text = box.editor.querySelector("textarea");
  text.setSelectionRange(...Array(2).fill(ahead || !at ? 0 : text.value.length));
}

function edit(number, isFresh = false) {
  [editing, fresh] = [number, isFresh];
  [from, to] = segments[number].span;
  draw();
}

function close() {
  if (editing === null) return;
  settle();
  const end = segments[editing].span[1];
  if (added(segments[editing]) && idle(segments[editing])) {
    segments = segments.filter((_, n) => n !== editing);
    draft(true);
  }
  editing = null;
  const next = words.find((one) => one.from >= end);
  if (next) [from, to] = [next.from, next.to];
  draw();
}

function unmark(number) {
  segments = segments.filter((_, n) => n !== number);
  editing = null;
  draft(true);
  draw();
}

const now = () => ({ segments: structuredClone(segments) });

// Sent at once, or where somebody types after a pause; `push`: an undo comes back to what was before.
function draft(push, typing = false) {
  if (push || !typing) settle();
  const send = () => { waiting = 0; act("draft", { push, work: now() }); };
  if (typing && !push) {
    clearTimeout(waiting);
    waiting = setTimeout(send, 250);
  } else send();
}

export function settle() {
  if (!waiting) return;
  clearTimeout(waiting);
  waiting = 0;
  act("draft", { push: false, work: now() });
}

export function done() {
  settle();
  const left = card.task === "correct" ? segments.findIndex(idle) : -1;
  if (left < 0) return act("done", { work: now() });
  note(`“${cut(...segments[left].span)}” is marked, but not rewritten`);
  edit(left);
}

// Keys

export function typed(event) {
  const digit = event.altKey && /^Digit[1-7]$/.test(event.code) ? Number(event.code.slice(5)) : 0;
  if (digit && editing !== null) {
    segments[editing].kind = card.kinds[digit - 1];
    draft(false);
    drawAnswer();
    drawRest();
  } else if (event.key === "Enter" && !event.shiftKey) close();
  else if (event.key === "Escape") {
    const one = segments[editing];
    if (fresh && idle(one)) { // it was only just marked
      [segments, editing] = [before, null];
      draw();
      act("undo", { here: true });
    } else close();
  } else return;
  event.preventDefault();
}

export function key(event) {
  const number = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  if (number) {
    if (number <= card.kinds.length) mark(card.kinds[number - 1]);
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") move(event.key === "ArrowRight" ? 1 : -1, event);
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") line(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "n" || event.key === "N") leap(event.shiftKey ? -1 : 1);
  else if (event.key === "a" || event.key === "A") add(event.shiftKey);
  else if (["Backspace", "Delete", "e", " "].includes(event.key)) {
    const here = met();
    if (here < 0) note("there is no marked segment here");
    else if (event.key === "e" || event.key === " ") card.task === "correct" && edit(here);
    else unmark(here);
  } else return false;
  return true;
}

function move(by, event) {
  if (!words.length) return;
  if (event.shiftKey && event.altKey) { // by one letter
    const ends = pieces(letter, card.answer).map((one) => one.to);
    const next = by > 0 ? ends.find((end) => end > to) : ends.findLast((end) => end < to && end > from);
    if (next !== undefined) select(from, next);
  } else if (event.shiftKey) { // by one word
    const next = by > 0 ? words.find((one) => one.to > to) : words.findLast((one) => one.to < to && one.to > from);
    if (next) select(from, next.to);
  } else {
    const next = by > 0 ? words.find((one) => one.from >= to) : words.findLast((one) => one.from < from);
    if (next) select(next.from, next.to);
  }
}

// The nearest word of the line above or below.
function line(by) {
  const boxes = [...box.answer.children].filter((one) => one.textContent.trim()).map((one) => [one, one.getClientRects()[0]]);
  const here = boxes.find(([one]) => one.classList.contains("cursor"));
  if (!here) return;
  const rows = boxes.filter(([, r]) => (by > 0 ? r.top > here[1].bottom - 2 : r.bottom < here[1].top + 2));
  const next = by > 0 ? Math.min(...rows.map(([, r]) => r.top)) : Math.max(...rows.map(([, r]) => r.top));
  const near = rows.filter(([, r]) => Math.abs(r.top - next) < 4);
  const best = near.sort(([, r], [, s]) => Math.abs(r.left - here[1].left) - Math.abs(s.left - here[1].left))[0];
  const one = best && words.find((w) => w.from <= Number(best[0].dataset.from) && Number(best[0].dataset.from) < w.to);
  if (one) select(one.from, one.to);
}

function leap(by) {
  const here = (s) => s.span[0] === from && s.span[1] === to;
  const next = by > 0 ? segments.find((s) => s.span[0] >= to && !here(s)) || segments[0]
    : segments.findLast((s) => s.span[1] <= from && !here(s)) || segments.at(-1);
  if (next) select(...next.span);
}

export const keys = () => [
  ["← → ↑ ↓", "from word to word"], ["Shift+→", "one word more (Shift+Alt+→: one letter); or drag with the mouse"],
  ["1 … 7", `mark what is selected: ${card.kinds.join(", ")}`],
  ...(card.task === "correct" ? [["A", "add words behind what is selected (Shift+A: before it)"], ["E", "rewrite the marked segment again"]] : []),
  ["Backspace", "unmark it"], ["N", "to the next marked segment"],
];
