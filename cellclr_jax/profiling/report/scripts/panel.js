// The panel with crops of a treatment, its neighbours and the controls.

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
