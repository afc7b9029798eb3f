/** Small helpers for elements and for numbers in words. Text is always set as text, never as markup. */

export const $ = (selector) => document.querySelector(selector);

export function el(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  return fill(node, text, attributes, children);
}

export function svg(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return fill(node, text, attributes, children);
}

function fill(node, text, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

/** Three significant digits at most: 0.123, 1.23, 12.3, 123, 1234. */
export const number = (value) => (value >= 100 ? Math.round(value) : Number(value.toPrecision(3))).toLocaleString("en");

export const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(100 * share)} %`;

export const duration = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 9.95 ? 1 : 0)} ms` : `${number(ms / 1000)} s`);

/** 295K, 22.1M. */
export const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format;

/** 0:07.4 for seconds of a short video, 1:02:03 for those of a long one. */
export function clock(seconds, precise = false) {
  const whole = precise ? Math.floor(10 * seconds) / 10 : Math.floor(seconds);
  const rest = (whole % 60).toFixed(precise ? 1 : 0).padStart(precise ? 4 : 2, "0");
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}
