// The map of treatments, and the search for a compound.

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
