// What the scripts of all pages share. Text from a file, a person or a model is hostile: it only ever becomes a text node.
const byId = (id) => document.getElementById(id);

/** An element with a class and children; strings become text nodes; null, false and "" are left out. */
const el = (tag, className, ...children) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null && child !== "" && child !== undefined && child !== false));
  return made;
};

/** A button that does something; `attributes` such as {"aria-pressed": true}. */
const button = (className, text, act, attributes = {}) => {
  const made = el("button", className, text);
  made.type = "button";
  made.addEventListener("click", act);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

const count = (n) => n.toLocaleString("en");
const words = (name) => name.replaceAll("_", " ");
const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;
