// The confusion matrix, and the table of wrong treatments.

// ---- confusion

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
