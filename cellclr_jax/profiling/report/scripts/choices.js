// What a reader chooses, and what is printed.

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
  if (byId("channel")) {
    byId("channel").onchange = () => { byId("panel-rows").dataset.show = byId("channel").value; };
  }
  document.addEventListener("click", event => {
    const target = event.target.closest("#wrong-table tbody tr, .treatment");
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
}

// ---- print: everything open, charts as wide as the paper

const PAPER = 690;
window.addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const half = plot.closest(".charts");
    Plotly.relayout(plot, {width: half ? PAPER / 2 - 10 : PAPER});
  }
});
window.addEventListener("afterprint", () => {
  // The matrix has a width of its own, the others that of the page.
  for (const plot of document.querySelectorAll(".js-plotly-plot:not(#confusion-plot)")) {
    Plotly.relayout(plot, {width: null, autosize: true});
  }
  if (data) drawConfusion();
});
