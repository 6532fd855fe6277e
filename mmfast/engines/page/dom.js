// Elements. Texts become text nodes, never HTML: an answer that holds a tag shows its characters.

export const $ = (id) => document.getElementById(id);

export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// A button that gives the keyboard back to the page when it was pressed by a mouse.
export function button(label, press, given = {}, key = "") {
  const made = el("button", { type: "button", ...given }, label);
  if (key) made.append(el("kbd", {}, key));
  made.addEventListener("click", (event) => {
    if (event.detail) made.blur();
    press(event);
  });
  return made;
}

// The conversation: the last question large; what was before it small, and folded where it only explains the task.
export function spoken(messages, folded = false) {
  const asked = messages.findLastIndex((message) => message.role === "user");
  const shown = messages.map((message, number) => {
    const said = el("div", { class: number === asked ? "said last" : "said", dir: "auto" });
    if (messages.length > 1) said.append(el("span", { class: "role" }, message.role));
    for (const part of message.parts) {
      if (part.image === undefined) said.append(part.text);
      else if (message.parts.length > 2 || messages.length > 1) said.append(el("span", { class: "image" }, `image ${part.image}`), " ");
    }
    return said;
  });
  if (!folded || asked < 1) return shown;
  const before = el("details", {}, el("summary", {}, "What is explained before"), ...shown.slice(0, asked));
  return [before, ...shown.slice(asked)];
}
