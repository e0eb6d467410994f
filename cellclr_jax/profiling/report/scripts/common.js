// What all scripts of the report share. They run in one block, in the order of page.py.

const byId = id => document.getElementById(id);
const BAR = {displayModeBar: false, responsive: true};
const FONT = {family: getComputedStyle(document.body).fontFamily, size: 12, color: "#1f2430"};
const BASE = {
  font: FONT, paper_bgcolor: "white", plot_bgcolor: "white", template: "none",
  hoverlabel: {bgcolor: "white", font: {family: FONT.family, color: FONT.color}, align: "left"},
};
const KINDS = {nsc: "NSC", nscb: "NSCB"};
const percent = share => share === null ? "–" : `${(100 * share).toFixed(1)} %`;

// Text as it is searched: whichever of the two signs for micro a keyboard has.
const plain = text => text.normalize("NFKC").toLowerCase();

// An element with text, which is never read as HTML.
function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  return element;
}

for (const box of document.querySelectorAll(".figure")) {
  const spec = JSON.parse(box.querySelector("script").textContent);
  Plotly.newPlot(box.querySelector(".plot"), spec.data, spec.layout, BAR);
}

const data = byId("data") ? JSON.parse(byId("data").textContent) : null;
const chosen = {correction: "", kind: "nsc"};

function current() { return data.corrections[chosen.correction]; }

function nearOf(correction, kind) { return correction.undefined ? null : correction[kind]; }
