// Forms: buttons, numbers and texts. A key answers the field that is lit and lights the next; where one choice is all that
// is needed, its key hands in.
import { button, el, spoken } from "./dom.js";
import { act, note } from "./people.js";

let card, values, lit, home, waiting = 0;

export function open(where, given, work) {
  const same = card && card.id === given.id;
  [card, home] = [given, where];
  values = work.values ? [...work.values] : card.fields.map(() => null);
  if (!same) lit = Math.max(0, values.findIndex((value, n) => value === null && card.fields[n].required));
  clearTimeout(waiting);
  waiting = 0;
  draw();
  const text = home.querySelector(".field.on textarea, .field.on input");
  if (text && !same) text.focus();
}

function draw() {
  const texts = (card.answers || []).map((one) => one.text);
  const shown = texts.length === 2 ? differing(...texts) : texts.map((text) => [text]);
  const answers = shown.map((parts, n) => el("div", { class: "panel" }, el("h3", {}, card.answers[n].label), el("div", { class: "text", dir: "auto" }, ...parts)));
  home.replaceChildren(
    el("div", {}, ...spoken(card.messages, !card.answers)),
    ...(answers.length ? [el("div", { class: "answers" }, ...answers)] : []),
    el("div", { class: "fields" }, ...card.fields.map(field)));
}

// Two texts as words, those underlined that are not in both in the same order (the longest such row of words).
function differing(...texts) {
  const [a, b] = texts.map((text) => text.split(/(\s+)/).filter(Boolean));
  if (a.length * b.length > 4e6) return texts.map((text) => [text]);
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length; i--;)
    for (let j = b.length; j--;)
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const out = [[], []];
  const alone = (word) => (word.trim() ? el("span", { class: "differs" }, word) : word);
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) out[0].push(a[i++]), out[1].push(b[j++]);
    else if (j >= b.length || (i < a.length && best[i + 1][j] >= best[i][j + 1])) out[0].push(alone(a[i++]));
    else out[1].push(alone(b[j++]));
  }
  return out;
}

function field(one, n) {
  const label = el("label", {}, one.of ? el("span", { class: "of" }, one.of) : "", one.label + (one.required ? "" : " "));
  const made = el("fieldset", { class: `field${n === lit ? " on" : ""}${one.kind === "text" ? " wide" : ""}` }, label);
  if (one.kind === "choice") {
    made.append(el("div", { class: "options" }, ...one.options.map((option) => button(option.label, () => choose(n, option.value),
      { class: same(values[n], option.value) ? "on" : "", "aria-pressed": String(same(values[n], option.value)) },
      option.key && option.key !== option.label ? option.key.toUpperCase() : ""))));
    return made;
  }
  const long = one.kind === "text";
  const text = el(long ? "textarea" : "input", long ? { rows: one.required ? "6" : "2" } : { inputmode: "decimal" });
  text.setAttribute("aria-label", one.label);
  text.value = values[n] === null ? "" : String(values[n]);
  text.addEventListener("focus", () => light(n));
  text.addEventListener("input", () => {
    const number = Number(text.value);
    values[n] = text.value === "" ? null : long || Number.isNaN(number) ? text.value : number;
    clearTimeout(waiting);
    waiting = setTimeout(settle, 250);
  });
  made.append(text);
  if (long) made.append(el("span", { class: "hint" }, "Enter: done · Shift+Enter: a new line · Esc: leave"));
  return made;
}

const same = (a, b) => a === b;

function light(n) {
  lit = n;
  const all = [...home.querySelectorAll(".field")];
  all.forEach((one, k) => one.classList.toggle("on", k === lit));
  if (all[lit]) all[lit].scrollIntoView({ block: "nearest" });
}

function choose(n, value) {
  values[n] = value;
  settle();
  act("draft", { push: true, work: { values: [...values] } });
  const needed = card.fields.map((one, k) => k).filter((k) => card.fields[k].required);
  if (needed.length === 1) return done();
  const next = needed.find((k) => k > n && values[k] === null) ?? needed.find((k) => values[k] === null) ?? n;
  draw();
  light(next);
  if (card.fields[next].kind !== "choice") focusLit();
}

function focusLit() {
  const text = home.querySelectorAll(".field")[lit].querySelector("textarea, input");
  if (text) text.focus();
  else document.activeElement.blur();
}

export function settle() {
  if (!waiting) return;
  clearTimeout(waiting);
  waiting = 0;
  act("draft", { push: false, work: { values: [...values] } });
}

export function done() {
  settle();
  const left = card.fields.findIndex((one, n) => one.required && values[n] === null);
  if (left < 0) return act("done", { work: { values: [...values] } });
  note(`${card.fields[left].label} is not filled in`);
  light(left);
  focusLit();
}

export function typed(event) {
  if (event.key === "Enter" && !event.shiftKey) done();
  else if (event.key === "Escape") event.target.blur();
  else return;
  event.preventDefault();
}

export function key(event) {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    light(Math.min(card.fields.length - 1, Math.max(0, lit + (event.key === "ArrowDown" ? 1 : -1))));
    focusLit();
    return true;
  }
  const one = card.fields[lit];
  const option = one && one.kind === "choice" && !event.altKey && one.options.find((o) => o.key && o.key === event.key.toLowerCase());
  if (!option) return false;
  choose(lit, option.value);
  return true;
}

export const keys = () => {
  const letters = card.fields.flatMap((one) => (one.options || []).map((o) => o.key)).filter(Boolean);
  const shown = [...new Set(letters)].map((one) => one.toUpperCase());
  return [...(shown.length ? [[shown.slice(0, 8).join(" "), "answer what is lit"]] : []), ["↑ ↓", "to another field"]];
};
