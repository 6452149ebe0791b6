// Elements made by hand. Text is only ever set as text, so nothing that a model or a file says becomes markup.

export const byId = (id) => document.getElementById(id);

/** An element: `on...` are listeners, names that it knows are properties, all others attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One of the symbols that stand in the page. */
export const icon = (name) => svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

/** A button with a picture, and with words beside it or, for `quiet` ones, in its label alone. */
export const iconButton = (name, label, onclick) =>
  el("button", { type: "button", className: "icon", ariaLabel: label, title: label, onclick }, icon(name));

/** For those who do not see the page. */
export function announce(text) {
  byId("status").textContent = text;
}

export function save(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** `0:07`, `1:02:03`. */
export function clock(seconds) {
  const whole = Math.floor(seconds + 0.001);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** Arrow keys and clicks choose one of the tabs of a list; `choose` is told its id. */
export function tabs(list, choose) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of all) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
    }
    choose(tab.id);
  };
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    const next = all[(all.indexOf(document.activeElement) + steps[event.key] + all.length) % all.length];
    next.focus();
    select(next);
  });
}
