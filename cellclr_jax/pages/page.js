// What all pages share: figures, the choice of a channel, paper. A page's own script follows.

const byId = id => document.getElementById(id);
const BAR = {displayModeBar: false, responsive: true};

// A figure with a select has a heatmap for each choice; their cells share the words on hover.
for (const box of document.querySelectorAll(".figure")) {
  const spec = JSON.parse(box.querySelector("script").textContent);
  const plot = box.querySelector(".plot"), select = box.querySelector("select");
  const choices = select ? [...select.options].map((_, i) => i) : [];
  const seen = () => choices.map(i => i === select.selectedIndex);
  seen().forEach((visible, i) => {
    Object.assign(spec.data[i], {visible, customdata: spec.data[0].customdata});
  });
  Plotly.newPlot(plot, spec.data, spec.layout, BAR);
  if (select) select.onchange = () => Plotly.restyle(plot, {visible: seen()}, choices);
}

const channel = byId("channel");
if (channel) {
  const show = () => { document.querySelector(".rows").dataset.show = channel.value; };
  channel.onchange = show;
  show();
}
