// The images of a card: wheel and + - zoom, a drag moves, 0 shows the whole, I the next one.
import { $, button, el } from "./dom.js";

const stage = $("pictures");
let images = [], at = 0, scale = 1, x = 0, y = 0, shown = null, held = null, tools = null;

export function show(given) {
  const same = JSON.stringify(given) === JSON.stringify(images);
  images = given;
  document.querySelector("main").classList.toggle("bare", !images.length);
  if (!same) open(0);
}

function open(number) {
  at = number;
  [scale, x, y, shown] = [1, 0, 0, null];
  const one = images[at];
  stage.replaceChildren();
  if (!one) return;
  if (one.id) {
    shown = el("img", { src: `image/${one.id}`, alt: one.source, draggable: "false" });
    shown.addEventListener("load", (event) => event.target.classList.toggle("small", event.target.naturalWidth < 300));
    shown.addEventListener("error", () => stage.replaceChildren(el("p", {}, `${one.source} cannot be shown`)));
    stage.append(shown);
  } else stage.append(el("p", {}, `${one.source}: ${one.problem}`));
  tools = el("div", { class: "tools" },
    button("−", () => zoom(1 / 1.5), { title: "Smaller (−)" }),
    button("+", () => zoom(1.5), { title: "Larger (+)" }),
    button("100 %", whole, { title: "The whole image (0)", id: "zoom" }));
  if (images.length > 1)
    images.forEach((_, n) => tools.append(button(`${n + 1}`, () => open(n), { title: "Image (I: the next)", class: n === at ? "on" : "" })));
  stage.append(tools);
}

function place() {
  if (!shown) return;
  const far = scale - 1; // no edge of the stage is left bare
  x = Math.min(0, Math.max(x, -stage.clientWidth * far));
  y = Math.min(0, Math.max(y, -stage.clientHeight * far));
  shown.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  $("zoom").textContent = `${Math.round(100 * scale)} %`;
}

function zoom(factor, left = stage.clientWidth / 2, top = stage.clientHeight / 2) {
  const next = Math.min(12, Math.max(1, scale * factor));
  x = left - ((left - x) * next) / scale;
  y = top - ((top - y) * next) / scale;
  scale = next;
  place();
}

function whole() {
  [scale, x, y] = [1, 0, 0];
  place();
}

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
stage.addEventListener("dblclick", (event) => {
  const box = stage.getBoundingClientRect();
  if (!event.target.closest(".tools")) scale > 1 ? whole() : zoom(3, event.clientX - box.left, event.clientY - box.top);
});
stage.addEventListener("pointerdown", (event) => {
  if (event.target.closest(".tools")) return;
  held = [event.clientX - x, event.clientY - y];
  stage.setPointerCapture(event.pointerId);
  stage.classList.add("held");
});
stage.addEventListener("pointermove", (event) => {
  if (!held) return;
  [x, y] = [event.clientX - held[0], event.clientY - held[1]];
  place();
});
for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { held = null; stage.classList.remove("held"); });

export function key(event) {
  const does = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), i: () => open((at + 1) % images.length) }[event.key];
  if (!images.length || !does) return false;
  does();
  return true;
}
export const reset = whole;
export const keys = [["+ −", "larger, smaller (or the wheel; a drag moves)"], ["I", "the next image"]];
