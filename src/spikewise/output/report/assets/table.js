// The table of units: sorting, filtering, and selecting a unit.

const table = document.getElementById("table");
const body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];
const columns = headers.map((cell) => cell.firstElementChild.dataset.sort);
const rows = [...body.rows];

function rowOf(index) {
  return rows[index];
}

function valueOf(row, name) {
  const cell = row.cells[columns.indexOf(name)];
  const text = cell ? cell.dataset.value : "";
  return text === undefined ? "" : text;
}

for (const row of rows) row.dataset.labels = valueOf(row, "labels") || "0";

// Compare numbers by value and other texts by name; unknown values come last in both directions.
function compare(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  if (numbers.every((value) => !Number.isNaN(value))) return direction * (numbers[0] - numbers[1]);
  return direction * a.localeCompare(b, "en", { numeric: true });
}

function sortBy(name) {
  const header = headers[columns.indexOf(name)];
  const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const cell of headers) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const ordered = [...rows].sort((a, b) => compare(valueOf(a, name), valueOf(b, name), direction));
  body.append(...ordered);
}

function limitOf(id) {
  const field = document.getElementById(id);
  return field && field.value !== "" ? Number(field.value) : null;
}

function filterRows() {
  const wanted = document.getElementById("filter-text").value.trim().toLowerCase();
  const [snr, rate, violations] = ["filter-snr", "filter-rate", "filter-violations"].map(limitOf);
  const names = ["unit", "group", "channel", "doubt"];
  for (const row of rows) {
    const number = (name) => (valueOf(row, name) === "" ? null : Number(valueOf(row, name)));
    const text = [...row.cells].filter((_, k) => names.includes(columns[k])).map((cell) => cell.textContent.trim().toLowerCase());
    row.hidden =
      !(wanted === "" || text.some((part) => part.includes(wanted))) ||
      (snr !== null && !(number("snr") >= snr)) ||
      (rate !== null && !(number("rate") >= rate)) ||
      (violations !== null && number("violations") !== null && number("violations") > violations);
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${rows.length} units shown`;
}

const UNIT_CHARTS = ["unit-probe", "unit-waveforms", "unit-correlogram", "unit-intervals", "unit-rate", "unit-amplitudes", "unit-responses", "probe"];

function choose(index) {
  page.unit = index;
  for (const row of rows) row.removeAttribute("aria-current");
  const row = rowOf(index);
  row.setAttribute("aria-current", "true");
  const frame = table.parentElement;
  const top = row.offsetTop - table.tHead.offsetHeight;
  if (top < frame.scrollTop) frame.scrollTop = top;
  const bottom = row.offsetTop + row.offsetHeight;
  if (bottom > frame.scrollTop + frame.clientHeight) frame.scrollTop = bottom - frame.clientHeight;
  describe(index, row);
  redraw(UNIT_CHARTS);
}

function describe(index, row) {
  const unit = page.data.units[index];
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = unit.colour;
  document.getElementById("unit-name").replaceChildren(dot, `Unit ${unit.id}`);
  const facts = document.getElementById("unit-facts");
  facts.replaceChildren();
  headers.slice(1).forEach((cell, k) => {
    const given = row.cells[k + 1];
    const text = given ? given.textContent.trim() : "";
    if (text === "") return;
    const [name, value] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = cell.textContent.trim();
    name.title = cell.firstElementChild.title;
    value.textContent = text;
    facts.append(name, value);
  });
  const [name, value] = [document.createElement("dt"), document.createElement("dd")];
  name.textContent = "in Phy";
  value.textContent = `cluster ${index}`;
  facts.append(name, value);
  document.getElementById("unit-labels").textContent = page.labels(row.dataset.labels);
}

// Select the next or previous unit in the order of the table.
function step(by) {
  const shown = [...body.rows].filter((row) => !row.hidden);
  if (!shown.length) return;
  const at = shown.indexOf(rowOf(page.unit));
  const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1);
  choose(Number(shown[next].dataset.index));
}

// List what the columns mean, for those who cannot point at the names.
function explainColumns() {
  const list = document.getElementById("columns");
  for (const cell of headers) {
    const [name, meaning] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = cell.textContent.trim();
    meaning.textContent = cell.firstElementChild.title;
    list.append(name, meaning);
  }
}

function prepareTable() {
  explainColumns();
  for (const cell of headers) {
    const button = cell.firstElementChild;
    button.addEventListener("click", () => sortBy(button.dataset.sort));
  }
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.index));
  });
  document.getElementById("filters").addEventListener("input", filterRows);
  document.getElementById("unit-previous").addEventListener("click", () => step(-1));
  document.getElementById("unit-next").addEventListener("click", () => step(1));
  filterRows();
}
