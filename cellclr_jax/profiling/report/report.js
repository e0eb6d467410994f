// The report's own script, after pages/page.js: map of treatments, confusion matrix, misclassified
// treatments, dose response, and the panel with example crops.

const FONT = {family: getComputedStyle(document.body).fontFamily, size: 12, color: "#1f2430"};
const BASE = {
  font: FONT, paper_bgcolor: "white", plot_bgcolor: "white", template: "none",
  hoverlabel: {bgcolor: "white", font: {family: FONT.family, color: FONT.color}, align: "left"},
};
const KINDS = {nsc: "NSC", nscb: "NSCB"};
const RANKS = ["nearest", "second", "third"];
const data = byId("data") ? JSON.parse(byId("data").textContent) : null;
const chosen = {correction: "", kind: "nsc"};
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const percent = share => share === null ? "–" : `${(100 * share).toFixed(1)} %`;
// Text for searching: NFKC makes the two Unicode characters for micro equal.
const plain = text => text.normalize("NFKC").toLowerCase();

// Creates an element with text, which is never interpreted as HTML.
function make(tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  return element;
}

// Creates an element with children.
function join(tag, children, attributes) {
  const element = make(tag, undefined, attributes);
  element.append(...children);
  return element;
}

function current() { return data.corrections[chosen.correction]; }

// Why the chosen score is undefined, or ''.
function whyUndefined() {
  const reason = current().undefined ?? current()[chosen.kind].undefined;
  return reason ? `${KINDS[chosen.kind]} is undefined: ${reason}` : "";
}

// ---- map

function mapTraces() {
  const shown = current(), [x, y] = shown.maps[byId("method").value];
  const colouring = data.colourings[byId("colouring").value];
  const trace = (rows, name, marker, legend) => ({
    type: "scatter", mode: "markers", name, showlegend: legend,
    x: rows.map(row => x[row]), y: rows.map(row => y[row]), customdata: rows,
    hoverinfo: "text", hovertext: rows.map(row => shown.hover[row]),
    marker: {size: 11, line: {width: 0.7, color: "white"}, ...marker},
  });
  const rows = x.map((_, row) => row);
  if (colouring.values) {
    return [trace(rows, colouring.title, {
      color: colouring.values, colorscale: colouring.scale, showscale: true,
      colorbar: {title: {text: colouring.title}, thickness: 12, outlinewidth: 0},
    }, false)];
  }
  const correct = shown[chosen.kind].correct;
  const groups = colouring.groups ?? data.states.map((state, i) => ({
    ...state, label: `${state.title} (${KINDS[chosen.kind]})`, legend: true,
    rows: rows.filter(row => correct[row] === [true, false, null][i]),
  })).filter(group => group.rows.length);
  return groups.map(group =>
    trace(group.rows, group.label, {color: group.colour, symbol: group.symbol}, group.legend));
}

function drawMap() {
  const shown = current(), plot = byId("map-plot"), method = byId("method");
  const reason = shown.undefined ?? shown.no_map;
  byId("map-reason").textContent = reason ? `No map: ${reason}` : "";
  plot.hidden = Boolean(reason);
  if (reason) return;
  const names = Object.keys(shown.maps), before = method.value;
  method.replaceChildren(...names.map(name => make("option", name)));
  method.value = names.includes(before) ? before : names[0];
  method.parentElement.classList.toggle("hidden", names.length < 2);
  const axis = {showticklabels: false, zeroline: false, gridcolor: "#eef0f2", ticks: ""};
  const narrow = plot.clientWidth < 700;
  const traces = mapTraces(), entries = traces.filter(trace => trace.showlegend).length;
  Plotly.react(plot, traces, {
    ...BASE, height: narrow ? 480 + 22 * entries : Math.max(560, 60 + 20 * entries),
    dragmode: "pan", hovermode: "closest",
    margin: {l: 30, r: 10, t: 10, b: 30},
    xaxis: {...axis, title: {text: `${method.value} 1`}},
    yaxis: {...axis, title: {text: `${method.value} 2`}},
    legend: narrow ? {orientation: "h", y: -0.08} : {x: 1.01, y: 1, itemsizing: "constant"},
    showlegend: entries > 0,
  }, BAR);
  if (!plot.listens) {
    plot.listens = true;
    plot.on("plotly_click", event => openPanel(event.points[0].customdata));
  }
  highlight();
}

// ---- search

// Rows of the compounds that match the search; null without a search.
function matches() {
  const query = plain(byId("search").value.trim());
  return query ? data.treatments.compounds.flatMap((name, row) =>
    plain(name).includes(query) ? [row] : []) : null;
}

function highlight() {
  const plot = byId("map-plot"), rows = matches();
  if (plot.hidden || !plot.data) return;
  Plotly.restyle(plot, {selectedpoints: plot.data.map(trace => rows &&
    trace.customdata.flatMap((row, i) => rows.includes(row) ? [i] : []))});
}

function search() {
  const rows = matches();
  byId("found").replaceChildren(...(rows ? [
    make("span", rows.length === 1 ? "1 treatment:" : `${rows.length} treatments:`),
    ...rows.slice(0, 60).map(row => {
      const button = make("button", data.treatments.names[row], {type: "button"});
      button.onclick = () => openPanel(row);
      return button;
    }),
  ] : []));
  highlight();
}

// ---- confusion matrix

function drawConfusion() {
  const shown = data.confusion[chosen.correction][chosen.kind], plot = byId("confusion-plot");
  byId("confusion-reason").textContent =
    shown.undefined ? `${KINDS[chosen.kind]} is undefined: ${shown.undefined}` : "";
  plot.hidden = Boolean(shown.undefined);
  fillRecall(shown.table ?? []);
  if (shown.undefined) return;
  const sums = shown.counts.map(row => row.reduce((a, b) => a + b, 0));
  const few = shown.moas.length <= 40, side = shown.moas.length <= 20 ? 33 : few ? 22 : 16;
  const longest = Math.min(42, Math.max(...shown.moas.map(moa => moa.length)));
  const width = 60 + 7 * longest + side * shown.predicted.length;
  const axis = (names, title) => ({
    tickvals: names.map((_, i) => i), ticktext: names, automargin: true, showgrid: false,
    zeroline: false, title: {text: title, standoff: 10},
  });
  Plotly.react(plot, [{
    type: "heatmap", xgap: 1, ygap: 1, colorscale: [[0, "#f6f7f9"], [1, "#08519c"]],
    zmin: 0, zmax: 1, showscale: false, hoverinfo: "text",
    z: shown.counts.map((row, i) => row.map(count => sums[i] ? count / sums[i] : 0)),
    text: shown.counts.map(row => row.map(count => count || "")),
    texttemplate: few ? "%{text}" : "",
    hovertext: shown.counts.map((row, i) => row.map((count, j) =>
      `true: ${shown.moas[i]}<br>predicted: ${shown.predicted[j]}<br>` +
      `${count} of ${sums[i]} treatments`)),
  }], {
    ...BASE, height: 80 + 5 * longest + side * shown.moas.length,
    width: Math.min(byId("confusion").clientWidth, Math.max(width, 340)),
    dragmode: false, margin: {l: 10, r: 10, t: 10, b: 10},
    xaxis: {...axis(shown.predicted, "Predicted mechanism"), tickangle: -40},
    yaxis: {...axis(shown.moas, "True mechanism"), autorange: "reversed"},
  }, {displayModeBar: false});
}

function fillRecall(rows) {
  const heads = ["Mechanism", "Treatments", "Correct", "Recall", "Precision"];
  const cells = (tag, values) =>
    values.map((value, i) => make(tag, value, i ? {class: "n"} : {}));
  byId("mechanisms").replaceChildren(...(rows.length ? [
    join("thead", [join("tr", cells("th", heads))]),
    join("tbody", rows.map(([moa, treatments, correct, recall, precision]) =>
      join("tr", cells("td", [moa, treatments, correct, percent(recall), percent(precision)])))),
  ] : []));
}

// ---- misclassified treatments

const sorting = {column: 0, down: false};
const WRONG = ["Treatment", "True mechanism", "Batch", "Nearest neighbour", "Second", "Third"];

// Name, mechanism and cosine of the neighbour of a rank.
function neighbour(near, row, rank) {
  const other = near.rows[row][rank], cosine = near.cosines[row][rank], items = data.treatments;
  if (other < 0) return ["–", ""];
  return [items.names[other], `${items.moas[other]}, ${cosine === null ? "–" : cosine.toFixed(2)}`];
}

function wrongRows() {
  const near = current()[chosen.kind], items = data.treatments;
  const wrong = near?.correct.flatMap((right, row) => right === false ? [row] : []) ?? [];
  return wrong.map(row => ({
    row, cells: [[items.names[row]], [items.moas[row]], [items.batches[row]],
      ...[0, 1, 2].map(rank => neighbour(near, row, rank))],
  }));
}

function fillWrong() {
  const query = plain(byId("filter").value.trim()), rows = wrongRows();
  const shown = rows.filter(({cells}) => plain(cells.flat().join(" ")).includes(query));
  const sign = sorting.down ? -1 : 1, key = line => line.cells[sorting.column].join(" ");
  shown.sort((a, b) => sign * key(a).localeCompare(key(b), "en", {numeric: true}) || a.row - b.row);
  byId("wrong-count").textContent = whyUndefined() ||
    `${rows.length} misclassified under ${KINDS[chosen.kind]}, correction ${chosen.correction}` +
    (shown.length < rows.length ? `; ${shown.length} shown` : "");
  byId("wrong-table").replaceChildren(...(rows.length ? [
    join("thead", [join("tr", WRONG.map(heading))]),
    join("tbody", shown.map(({row, cells}) =>
      join("tr", cells.map(([text, more]) =>
        join("td", more ? [text, make("small", more)] : [text])), {tabindex: 0, "data-row": row}))),
  ] : []));
}

function heading(title, column) {
  const button = make("button", title, {type: "button"});
  const order = sorting.down ? "descending" : "ascending";
  button.onclick = () => {
    sorting.down = column === sorting.column && !sorting.down;
    sorting.column = column;
    fillWrong();
    all("#wrong-table th button")[column].focus();
  };
  return join("th", [button], column === sorting.column ? {"aria-sort": order} : {});
}

// ---- dose response

function drawDoses(within) {
  const {usual, top, series} = data.doses ?? {}, boxes = all(".dose");
  for (const box of all(".dose", within)) {
    const {wells, treatments} = series[boxes.indexOf(box)], plot = box.querySelector(".plot");
    if (plot.data || box.closest("details:not([open])")) continue;
    const points = ({x, y, text}, marker, more) => ({
      type: "scatter", mode: "markers", x, y, text, marker,
      hovertemplate: "%{text}: %{y:.2f}<extra></extra>", ...more,
    });
    const axis = {zeroline: false, fixedrange: true};
    const title = text => ({title: {text, font: {size: 11}, standoff: 4}});
    Plotly.newPlot(plot, [
      points(wells, {color: "#0072b2", opacity: 0.35, size: 5}),
      points(treatments, {color: "#0072b2", size: 10, line: {color: "white", width: 1}},
        {mode: "lines+markers", line: {color: "#0072b2", width: 1.6}, customdata: treatments.rows}),
    ], {
      ...BASE, showlegend: false, dragmode: false, hovermode: "closest",
      margin: {l: 44, r: 10, t: 8, b: 40},
      xaxis: {...axis, ...title("Concentration (µM)"), type: "log", tickvals: treatments.x,
        ticktext: treatments.x.map(x => +x.toPrecision(4)), tickangle: 0, showgrid: false},
      yaxis: {...axis, ...title("Distance (SD)"), range: [0, 1.05 * top], nticks: 5,
        gridcolor: "#dfe3e8"},
      shapes: [{type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, y0: usual[0], y1: usual[1],
        fillcolor: "#d5dae0", opacity: 0.6, line: {width: 0}}],
    }, BAR);
    plot.on("plotly_click", ({points}) => openPanel(points[0].customdata ?? -1));
  }
}

// ---- panel with crops

let focusBefore = null;

function openPanel(row) {
  const panel = byId("panel"), items = data.treatments, near = current()[chosen.kind];
  if (row < 0) return;
  if (panel.hidden) focusBefore = document.activeElement;
  byId("panel-title").textContent = items.names[row];
  const rows = [treatmentRow(row, "this treatment")];
  if (whyUndefined()) rows.push(make("p", whyUndefined()));
  else if (near.correct[row] === null) rows.push(make("p", `Not scored under ${KINDS[chosen.kind]}.`));
  near?.rows[row].forEach((other, rank) => {
    if (other < 0) return;
    const same = items.moas[other] === items.moas[row] ? "same mechanism" : "other mechanism";
    const cosine = near.cosines[row][rank];
    rows.push(treatmentRow(other, `${RANKS[rank]} neighbour (${KINDS[chosen.kind]}), ${same}` +
      (cosine === null ? "" : `, cosine ${cosine.toFixed(2)}`)));
  });
  const {control, strips} = data.pictures ?? {};
  if (strips?.control) {
    rows.splice(2, 0, panelRow([make("b", control), make("span", "controls")], strips.control, control));
  }
  byId("panel-rows").replaceChildren(...rows);
  panel.hidden = false;
  document.body.style.paddingBottom = `${panel.offsetHeight}px`;
  panel.scrollTop = 0;
  byId("panel-title").focus({preventScroll: true});
}

function treatmentRow(row, role) {
  const {names, moas, batches, wells} = data.treatments;
  const count = wells[row] === 1 ? "1 well" : `${wells[row]} wells`;
  return panelRow([make("b", names[row]), make("span", moas[row]), make("span", role),
    make("span", [batches[row], count].filter(Boolean).join(", "))],
  data.pictures?.strips[row], names[row]);
}

function panelRow(texts, strip, name) {
  const line = join("div", [join("div", texts)], {class: "row"});
  if (strip) {
    const [address, crops, wells] = strip, {side, channels} = data.pictures;
    const layers = Array.from({length: channels}, (_, c) => make("i", undefined, {class: `c${c}`}));
    const image = join("div", layers,
      {class: "strip", role: "img", "aria-label": `cells of ${name}`, title: wells});
    image.style.cssText = `width:${crops * side}px;height:${side}px`;
    image.style.setProperty("--p", `url(${address})`);
    line.append(image);
  } else if (data.pictures) {
    line.append(make("span", "no example crops"));
  }
  return line;
}

function closePanel() {
  byId("panel").hidden = true;
  document.body.style.paddingBottom = "";
  focusBefore?.focus?.({preventScroll: true});
}

// ---- controls of the page

function draw() {
  drawMap();
  drawConfusion();
  fillWrong();
}

function listen() {
  for (const select of all("[data-choice]")) {
    const choice = select.dataset.choice;
    chosen[choice] = select.value;
    select.onchange = () => {
      chosen[choice] = select.value;
      for (const other of all(`[data-choice=${choice}]`)) other.value = select.value;
      draw();
    };
  }
  byId("colouring").onchange = byId("method").onchange = drawMap;
  byId("search").oninput = search;
  byId("filter").oninput = fillWrong;
  byId("close").onclick = closePanel;
  for (const one of all("#doses details")) one.ontoggle = () => drawDoses(one);
  const open = target => target && openPanel(Number(target.dataset.row));
  document.addEventListener("click", event => open(event.target.closest("#wrong-table tbody tr")));
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && !byId("panel").hidden) closePanel();
    if (event.key !== "Enter") return;
    if (event.target.matches("#wrong-table tbody tr")) open(event.target);
    if (event.target.id === "search" && matches()?.length) openPanel(matches()[0]);
  });
}

if (data) {
  listen();
  draw();
  drawDoses(document);
}

// ---- printing: opens all details and fits the charts to the paper

const PAPER = 690; // pixels
window.addEventListener("beforeprint", () => {
  for (const one of all("details")) one.open = true;
  if (data) drawDoses(document);
  for (const plot of all(".js-plotly-plot")) {
    const columns = plot.closest(".doses") ? 3 : plot.closest(".charts") ? 2 : 1;
    Plotly.relayout(plot, {width: PAPER / columns - 10 * (columns > 1)});
  }
});
window.addEventListener("afterprint", () => {
  // The confusion matrix has a fixed width, the other charts have that of the page.
  for (const plot of all(".js-plotly-plot:not(#confusion-plot)")) {
    Plotly.relayout(plot, {width: null, autosize: true});
  }
  if (data) drawConfusion();
});
