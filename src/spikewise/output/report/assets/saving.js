// Saving: the table of units as CSV, and each chart as SVG or PNG.

function download(name, url) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
}

function quoted(text) {
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

// Return the rows that the table shows, in its order, with all digits of the numbers.
function tableAsCsv() {
  const shown = [...body.rows].filter((row) => !row.hidden);
  const values = (row) => headers.map((_, k) => (row.cells[k] ? row.cells[k].dataset.value : ""));
  const lines = [headers.map((cell) => cell.textContent.trim()), ...shown.map(values)];
  return lines.map((line) => line.map((text) => quoted(text ?? "")).join(",") + "\n").join("");
}

function saveTable() {
  const url = URL.createObjectURL(new Blob([tableAsCsv()], { type: "text/csv" }));
  download("unit-table.csv", url);
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Return the name of a chart's file; it names the units that the chart shows.
function chartName(id) {
  const ids = id.startsWith("unit-") ? [page.unit] : id.startsWith("pair-") ? page.pair : [];
  const units = ids.map((index) => page.data.units[index].id.replace(/[^\p{L}\p{N}.-]+/gu, "_"));
  return [id, ...units].join("-");
}

// Return a chart as the address of an image, on the page's background.
function imageOf(id, format) {
  const element = document.getElementById(id);
  if (!visible.has(id)) {
    visible.add(id);
    draw(id);
  }
  const [width, height] = [element.clientWidth, element.clientHeight];
  const figure = { data: element.data, layout: { ...element.layout, paper_bgcolor: colour("page") }, config: CONFIG };
  return Plotly.toImage(figure, { format, width, height, scale: format === "png" ? 3 : 1 });
}

async function saveChart(id, format) {
  download(`${chartName(id)}.${format}`, await imageOf(id, format));
}

function prepareSaving() {
  document.getElementById("save-table").addEventListener("click", saveTable);
  document.querySelector("main").addEventListener("click", (event) => {
    const button = event.target.closest("button[data-chart]");
    if (button) saveChart(button.dataset.chart, button.dataset.format);
  });
}
