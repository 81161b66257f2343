// Joins the page's data with what draws it: plotly.js the charts and slices, DataTables the sorting of tables.
"use strict";
// the one button beside a chart saves it as a drawing; plotly's others include one that sends the chart to a server
const CONFIG = {responsive: true, displaylogo: false, plotlyServerURL: "", modeBarButtons: [["toImage"]], toImageButtonOptions: {format: "svg"}};
const byId = (id) => document.getElementById(id);
const read = (element) => JSON.parse(element.textContent);

// ---- charts, one after the other, so that the page answers while they are drawn
const pause = () => new Promise((resolve) => setTimeout(resolve));
async function drawCharts() {
  for (const script of document.querySelectorAll("script[data-chart]")) {
    const {data, layout} = read(script);
    await Plotly.newPlot(script.dataset.chart, data, layout, CONFIG);
    await pause();
  }
}

// ---- one patient among all, drawn over the others
function followPatient() {
  const select = byId("patient");
  if (!select) return;
  select.addEventListener("change", () => {
    const chart = byId(select.dataset.chart);
    const [every, , followed] = chart.data;
    const width = followed.x.length + 1;
    const from = width * Number(select.value);
    const part = (values) => [Array.from(values).slice(from, from + width - 1)];
    Plotly.restyle(chart, {y: part(every.y), text: part(every.text)}, [2]);
  });
}

// ---- tables that are sorted by a click on a heading, or by Enter where it has the focus
async function sortTables() {
  const source = new Blob([byId("datatables").textContent], {type: "text/javascript"});
  const {ITable} = await import(URL.createObjectURL(source));
  for (const table of document.querySelectorAll("table.sortable")) {
    new ITable(table, {paging: false, searching: false, info: false, order: [], autoWidth: false, layout: {topStart: null, topEnd: null, bottomStart: null, bottomEnd: null}});
  }
}

// ---- printing: what is folded is opened, and a chart is as wide as the paper
const PAPER = 1000; // CSS pixels between the margins of A4 on its side
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  document.querySelectorAll(".chart.js-plotly-plot").forEach((chart) => Plotly.relayout(chart, {autosize: false, width: Math.min(PAPER, chart.clientWidth)}));
});
addEventListener("afterprint", () => {
  document.querySelectorAll(".chart.js-plotly-plot").forEach((chart) => Plotly.relayout(chart, {autosize: true, width: null}));
});

followPatient();
sortTables().then(drawCharts).then(openViewer).then(() => { document.documentElement.dataset.ready = "true"; });
