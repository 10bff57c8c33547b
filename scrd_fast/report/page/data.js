"use strict";
// What the page knows. All that follows reads it and sets texts and attributes, never HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
// In the engine's own precision, so that decisions are the engine's.
const SCORES = Float32Array.from(DATA.scores);
const LABELS = DATA.labels; // 1 anomalous, 0 normal, -1 not known
const LABELLED = LABELS.includes(0) && LABELS.includes(1);
const SVG = "http://www.w3.org/2000/svg";

function byId(id) {
  return document.getElementById(id);
}

/** An element with attributes and children; a text among these is shown as it is. */
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The bytes in base64. */
function decode(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** A number with so many digits that mean something. */
function show(value, digits = 4) {
  return value === null || Number.isNaN(value) ? "–" : String(Number(value.toPrecision(digits)));
}

/** Whether a button does something; the focus of one that no longer does goes to another. */
function enable(id, does, other) {
  const lost = !does && document.activeElement === byId(id);
  byId(id).disabled = !does;
  if (lost && !byId(other).disabled) byId(other).focus();
}

function count(number, one, several = `${one}s`) {
  return `${number} ${number === 1 ? one : several}`;
}
