// Draws the explorer in elements that only remember what they are given, and says what they hold.
import { readFileSync } from "node:fs";

const { script, problem, moves, hover } = JSON.parse(readFileSync(0, "utf8"));
const elements = {};
function element(name) {
  const listeners = {};
  return (elements[name] ??= {
    style: {}, clientWidth: 800, innerHTML: "", textContent: "", attributes: {},
    setAttribute(key, value) { this.attributes[key] = value; },
    addEventListener(kind, listen) { listeners[kind] = listen; },
    getBoundingClientRect: () => ({ left: 0 }),
    fire: (kind, event) => listeners[kind]?.(event),
  });
}
const root = { querySelector: (name) => element(name), innerHTML: "" };
const el = { shadowRoot: root, parentElement: null, getRootNode: () => ({}) };
globalThis.getComputedStyle = () => ({ backgroundColor: "rgb(255, 255, 255)" });
globalThis.ResizeObserver = class { observe() {} disconnect() {} };
globalThis.matchMedia = () => ({ addEventListener() {}, removeEventListener() {} });
let next = null;
globalThis.requestAnimationFrame = (draw) => { next = draw; return 1; };
const state = { ...problem.start, problem }, heard = {};
const model = {
  get: (name) => state[name], set: (name, value) => { state[name] = value; },
  on: (kind, listen) => { heard[kind] = listen; }, off() {}, save_changes() {},
};
new Function("model", "el", `${script}\nrender({ model, el });`)(model, el);
const held = () => Object.fromEntries(Object.entries(elements).map(([k, x]) => [k, x.innerHTML || x.textContent]));
const seen = [held()];
for (const [name, value] of moves ?? []) {
  state[name] = value;
  heard[`change:${name}`]();
  next();
  seen.push(held());
}
if (hover) {
  element("#target").fire("pointermove", { clientX: hover });
  seen.push(held());
  element("#target").fire("pointerleave", { pointerType: "mouse" });
  seen.push(held());
}
process.stdout.write(JSON.stringify(seen));
