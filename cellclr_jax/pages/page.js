// Shared by all pages: draws figures and switches channels. A page's own script follows.

const byId = id => document.getElementById(id);
const BAR = {displayModeBar: false, responsive: true};

// A figure with a <select> has one trace per option and shows one at a time, with the option as
// title of the horizontal axis of a histogram. All heatmaps have the hover texts of the first.
for (const box of document.querySelectorAll(".figure")) {
  const spec = JSON.parse(box.querySelector("script").textContent);
  const plot = box.querySelector(".plot"), select = box.querySelector("select");
  const traces = select ? [...select.options].map((_, i) => i) : [];
  const visible = () => traces.map(i => i === select.selectedIndex);
  const title = () => spec.data[0].type === "bar" ? {"xaxis.title.text": select.value} : {};
  for (const i of traces) spec.data[i].customdata = spec.data[0].customdata;
  Plotly.newPlot(plot, spec.data, spec.layout, BAR);
  if (select) {
    select.onchange = () => Plotly.update(plot, {visible: visible()}, title(), traces);
    select.onchange();
  }
}

const channel = byId("channel");
if (channel) {
  channel.onchange = () => { document.querySelector(".rows").dataset.show = channel.value; };
  channel.onchange();
}
