// The report's own script: the map of treatments, the matrix of mechanisms, wrong treatments, dose
// series, and the panel with crops. It follows pages/page.js.

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

const data = byId("data") ? JSON.parse(byId("data").textContent) : null;
const chosen = {correction: "", kind: "nsc"};

function current() { return data.corrections[chosen.correction]; }

function nearOf(correction, kind) { return correction.undefined ? null : correction[kind]; }

// ---- map


function mapTraces() {
  const shown = current(), {x, y} = places(shown);
  const colouring = data.colourings[byId("colouring").value];
  const trace = (rows, name, marker, legend) => ({
    type: "scatter", mode: "markers", name, showlegend: legend,
    x: rows.map(row => x[row]), y: rows.map(row => y[row]), customdata: rows,
    hoverinfo: "text", hovertext: rows.map(row => shown.hover[row]),
    marker: {size: 11, line: {width: 0.7, color: "white"}, ...marker},
  });
  const everyone = x.map((_, row) => row);
  if (colouring.values) {
    return [trace(everyone, colouring.title, {
      color: colouring.values, colorscale: colouring.scale, showscale: true,
      colorbar: {title: {text: colouring.title}, thickness: 12, outlinewidth: 0},
    }, false)];
  }
  const groups = colouring.groups ?? states(everyone);
  return groups.map(group =>
    trace(group.rows, group.label, {color: group.colour, symbol: group.symbol}, group.legend));
}

function states(rows) {
  const correct = current()[chosen.kind].correct, wanted = [true, false, null];
  return data.states.map((state, i) => ({
    label: `${state.title} (${KINDS[chosen.kind]})`, colour: state.colour, symbol: state.symbol,
    rows: rows.filter(row => correct[row] === wanted[i]), legend: true,
  })).filter(group => group.rows.length);
}

function places(shown) {
  const [x, y] = shown.maps[byId("method").value];
  return {x, y};
}

function drawMap() {
  const shown = current(), plot = byId("map-plot"), method = byId("method");
  const reason = shown.undefined ?? shown.no_map;
  byId("map-reason").textContent = reason ? `There is no map: ${reason}` : "";
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
  if (!plot.heard) {
    plot.heard = true;
    plot.on("plotly_click", event => openPanel(event.points[0].customdata));
  }
  mark();
}

// ---- search

function matches() {
  const asked = plain(byId("search").value.trim());
  return asked ? data.treatments.compounds.flatMap((name, row) =>
    plain(name).includes(asked) ? [row] : []) : null;
}

function mark() {
  const plot = byId("map-plot"), rows = matches();
  if (plot.hidden || !plot.data) return;
  const kept = rows && new Set(rows);
  Plotly.restyle(plot, {selectedpoints: plot.data.map(trace => kept &&
    trace.customdata.flatMap((row, i) => kept.has(row) ? [i] : []))});
}

function search() {
  const rows = matches(), found = byId("found");
  found.replaceChildren();
  if (rows) {
    found.append(make("span", rows.length === 1 ? "1 treatment:" : `${rows.length} treatments:`));
    for (const row of rows.slice(0, 60)) {
      const button = make("button", data.treatments.names[row], {type: "button"});
      button.onclick = () => openPanel(row);
      found.append(button);
    }
  }
  mark();
}

// ---- mechanisms


function drawConfusion() {
  const shown = data.confusion[chosen.correction][chosen.kind], plot = byId("confusion-plot");
  const kind = KINDS[chosen.kind];
  byId("confusion-reason").textContent =
    shown.undefined ? `${kind} is undefined: ${shown.undefined}` : "";
  plot.hidden = Boolean(shown.undefined);
  fillMechanisms(shown.table ?? []);
  if (shown.undefined) return;
  const sums = shown.counts.map(row => row.reduce((a, b) => a + b, 0));
  const few = shown.moas.length <= 40, side = shown.moas.length <= 20 ? 33 : few ? 22 : 16;
  const longest = Math.min(42, Math.max(...shown.moas.map(moa => moa.length)));
  const room = byId("confusion").clientWidth;
  const width = 40 + 7 * longest + side * shown.answers.length;
  Plotly.react(plot, [{
    type: "heatmap", xgap: 1, ygap: 1, colorscale: [[0, "#f6f7f9"], [1, "#08519c"]],
    zmin: 0, zmax: 1, showscale: false, hoverinfo: "text",
    z: shown.counts.map((row, i) => row.map(count => sums[i] ? count / sums[i] : 0)),
    text: shown.counts.map(row => row.map(count => count || "")),
    texttemplate: few ? "%{text}" : "",
    hovertext: shown.counts.map((row, i) => row.map((count, j) =>
      `${shown.moas[i]}<br>taken for ${shown.answers[j]}<br>${count} of ${sums[i]}`)),
  }], {
    ...BASE, height: 60 + 5 * longest + side * shown.moas.length,
    width: Math.min(room, Math.max(width, 320)),
    dragmode: false, margin: {l: 10, r: 10, t: 10, b: 10},
    xaxis: {
      tickvals: shown.answers.map((_, i) => i), ticktext: shown.answers, automargin: true,
      tickangle: -40, title: {text: "mechanism of the neighbour"}, showgrid: false,
      zeroline: false,
    },
    yaxis: {
      tickvals: shown.moas.map((_, i) => i), ticktext: shown.moas, automargin: true,
      autorange: "reversed", showgrid: false, zeroline: false,
    },
  }, {displayModeBar: false});
}

function fillMechanisms(rows) {
  const table = byId("mechanisms"), head = make("tr"), body = make("tbody");
  ["Mechanism", "Treatments", "Right", "Recall", "Precision"].forEach((title, i) =>
    head.append(make("th", title, i ? {class: "n"} : {})));
  for (const [moa, asked, right, recall, precision] of rows) {
    const line = make("tr");
    line.append(make("td", moa), ...[asked, right, percent(recall), percent(precision)]
      .map(text => make("td", text, {class: "n"})));
    body.append(line);
  }
  const top = make("thead");
  top.append(head);
  table.replaceChildren(...(rows.length ? [top, body] : []));
}

// ---- wrong treatments

const sorting = {column: 0, down: false};
const WRONG = ["Treatment", "Its mechanism", "Batch", "Nearest", "Second", "Third"];

function told(near, row, place) {
  const other = near.rows[row][place], known = data.treatments;
  if (other < 0) return ["–", ""];
  const cosine = near.cosines[row][place];
  return [known.names[other], `${known.moas[other]}, ${cosine === null ? "–" : cosine.toFixed(2)}`];
}

function wrongRows() {
  const near = nearOf(current(), chosen.kind), known = data.treatments;
  const wrong = near ? near.correct.flatMap((right, row) => right === false ? [row] : []) : [];
  return wrong.map(row => ({
    row, cells: [[known.names[row]], [known.moas[row]], [known.batches[row]],
      ...[0, 1, 2].map(place => told(near, row, place))],
  }));
}

function fillWrong() {
  const near = nearOf(current(), chosen.kind), table = byId("wrong-table");
  const asked = plain(byId("filter").value.trim()), all = wrongRows();
  const kept = all.filter(({cells}) => plain(cells.flat().join(" ")).includes(asked));
  const sign = sorting.down ? -1 : 1, key = line => line.cells[sorting.column].join(" ");
  kept.sort((a, b) => sign * key(a).localeCompare(key(b), "en", {numeric: true}) || a.row - b.row);
  const reason = current().undefined ?? near.undefined;
  byId("wrong-count").textContent = reason ? `${KINDS[chosen.kind]} is undefined: ${reason}` :
    `${all.length} wrong under ${KINDS[chosen.kind]}, correction ${chosen.correction}` +
    (kept.length < all.length ? `; ${kept.length} shown` : "");
  const top = make("thead"), body = make("tbody"), head = make("tr");
  WRONG.forEach((title, column) => head.append(heading(title, column)));
  top.append(head);
  for (const {row, cells} of kept) {
    const line = make("tr", undefined, {tabindex: 0, "data-row": row});
    for (const [text, more] of cells) {
      const cell = make("td", text);
      if (more) cell.append(make("small", more));
      line.append(cell);
    }
    body.append(line);
  }
  table.replaceChildren(...(all.length ? [top, body] : []));
}

function heading(title, column) {
  const cell = make("th"), button = make("button", title, {type: "button"});
  if (column === sorting.column) {
    cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
  }
  button.onclick = () => {
    sorting.down = column === sorting.column && !sorting.down;
    sorting.column = column;
    fillWrong();
    byId("wrong-table").querySelectorAll("th button")[column].focus();
  };
  cell.append(button);
  return cell;
}

// ---- dose series

// The band of controls, the wells, and the treatments, which open the panel.
function drawDoses(within) {
  const {usual, top, series} = data.doses ?? {};
  const boxes = [...document.querySelectorAll(".dose")];
  for (const box of within.querySelectorAll(".dose")) {
    const {wells, treatments} = series[boxes.indexOf(box)], plot = box.querySelector(".plot");
    if (plot.data || box.closest("details:not([open])")) continue;
    const marks = (points, marker, more) => ({
      type: "scatter", mode: "markers", x: points.x, y: points.y, text: points.text, marker,
      hovertemplate: "%{text}: %{y:.2f}<extra></extra>", ...more,
    });
    Plotly.newPlot(plot, [
      marks(wells, {color: "#0072b2", opacity: 0.35, size: 5}),
      marks(treatments, {color: "#0072b2", size: 10, line: {color: "white", width: 1}},
        {mode: "lines+markers", line: {color: "#0072b2", width: 1.6}, customdata: treatments.rows}),
    ], {
      ...BASE, showlegend: false, dragmode: false, hovermode: "closest",
      margin: {l: 34, r: 10, t: 8, b: 26},
      xaxis: {type: "log", tickvals: treatments.x, ticktext: treatments.x.map(x => +x.toPrecision(4)),
        tickangle: 0, showgrid: false, zeroline: false, fixedrange: true},
      yaxis: {range: [0, 1.05 * top], nticks: 5, gridcolor: "#dfe3e8", zeroline: false,
        fixedrange: true},
      shapes: [{type: "rect", layer: "below", xref: "paper", x0: 0, x1: 1, y0: usual[0], y1: usual[1],
        fillcolor: "#d5dae0", opacity: 0.6, line: {width: 0}}],
    }, BAR);
    plot.on("plotly_click", ({points}) => openPanel(points[0].customdata ?? -1));
  }
}

// ---- panel


let cameFrom = null;

function openPanel(row) {
  const panel = byId("panel"), known = data.treatments;
  if (row < 0) return;
  if (panel.hidden) cameFrom = document.activeElement;
  byId("panel-title").textContent = known.names[row];
  const rows = [panelRow(row, "", "this treatment")];
  const near = nearOf(current(), chosen.kind);
  const reason = current().undefined ?? near.undefined;
  if (!reason && near.correct[row] === null) rows.push(make("p", "It is no query of this score."));
  if (reason) rows.push(make("p", `${KINDS[chosen.kind]} is undefined: ${reason}`));
  near?.rows[row].forEach((other, place) => {
    if (other < 0) return;
    const same = known.moas[other] === known.moas[row] ? "same mechanism" : "another mechanism";
    const cosine = near.cosines[row][place];
    const what = `${["nearest", "second", "third"][place]} (${KINDS[chosen.kind]}), ${same}`;
    rows.push(panelRow(other, cosine === null ? "" : `cosine ${cosine.toFixed(2)}`, what));
  });
  if (data.pictures?.strips.control) rows.splice(2, 0, controlRow());
  byId("panel-rows").replaceChildren(...rows);
  panel.hidden = false;
  document.body.style.paddingBottom = `${panel.offsetHeight}px`;
  panel.scrollTop = 0;
  byId("panel-title").focus({preventScroll: true});
}

function panelRow(row, cosine, what) {
  const known = data.treatments, texts = make("div");
  texts.append(make("b", known.names[row]), make("span", known.moas[row]),
    make("span", [what, cosine].filter(Boolean).join(", ")),
    make("span", [known.batches[row], `${known.wells[row]} wells`].filter(Boolean).join(", ")));
  return withStrip(texts, data.pictures?.strips[row], known.names[row]);
}

function controlRow() {
  const texts = make("div");
  texts.append(make("b", data.pictures.control), make("span", "controls"));
  return withStrip(texts, data.pictures.strips.control, data.pictures.control);
}

function withStrip(texts, strip, name) {
  const line = make("div", undefined, {class: "row"});
  line.append(texts);
  if (strip) {
    const [address, crops, places] = strip, {side, channels} = data.pictures;
    const picture = make("div", undefined, {
      class: "strip", role: "img", "aria-label": `cells of ${name}`, title: places,
    });
    picture.style.cssText = `width:${crops * side}px;height:${side}px`;
    picture.style.setProperty("--p", `url(${address})`);
    for (let c = 0; c < channels; c += 1) picture.append(make("i", undefined, {class: `c${c}`}));
    line.append(picture);
  } else if (data.pictures) {
    line.append(make("span", "no crops of it"));
  }
  return line;
}

function closePanel() {
  byId("panel").hidden = true;
  document.body.style.paddingBottom = "";
  cameFrom?.focus?.({preventScroll: true});
}

// ---- choices
function draw() {
  drawMap();
  drawConfusion();
  fillWrong();
}

function listen() {
  for (const select of document.querySelectorAll("[data-choice]")) {
    const what = select.dataset.choice;
    chosen[what] = select.value;
    select.onchange = () => {
      chosen[what] = select.value;
      for (const other of document.querySelectorAll(`[data-choice=${what}]`)) {
        other.value = select.value;
      }
      draw();
    };
  }
  byId("colouring").onchange = drawMap;
  byId("method").onchange = drawMap;
  byId("search").oninput = search;
  byId("filter").oninput = fillWrong;
  byId("close").onclick = closePanel;
  for (const one of document.querySelectorAll("#doses details")) one.ontoggle = () => drawDoses(one);
  document.addEventListener("click", event => {
    const target = event.target.closest("#wrong-table tbody tr");
    if (target) openPanel(Number(target.dataset.row));
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && !byId("panel").hidden) closePanel();
    if (event.key === "Enter" && event.target.matches("#wrong-table tbody tr")) {
      openPanel(Number(event.target.dataset.row));
    }
    if (event.key === "Enter" && event.target.id === "search" && matches()?.length) {
      openPanel(matches()[0]);
    }
  });
}

if (data) {
  listen();
  draw();
  drawDoses(document);
}

// ---- print: everything open, charts as wide as the paper

const PAPER = 690;
window.addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  if (data) drawDoses(document);
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const parts = plot.closest(".doses") ? 3 : plot.closest(".charts") ? 2 : 1;
    Plotly.relayout(plot, {width: PAPER / parts - 10 * (parts > 1)});
  }
});
window.addEventListener("afterprint", () => {
  // The matrix has a width of its own, the others that of the page.
  for (const plot of document.querySelectorAll(".js-plotly-plot:not(#confusion-plot)")) {
    Plotly.relayout(plot, {width: null, autosize: true});
  }
  if (data) drawConfusion();
});
