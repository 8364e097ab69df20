// The page: light and dark, moments and pairs, keys, printing; and how it all begins.

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", theme === "dark" ? "Show the page in light colours" : "Show the page in dark colours");
  if (page.data) redraw();
}

const PREFERS_DARK = window.matchMedia("(prefers-color-scheme: dark)");
setTheme(PREFERS_DARK.matches ? "dark" : "light");
PREFERS_DARK.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});

function showMoment(index) {
  const { moments } = page.data;
  if (!moments.length) return;
  page.moment = Math.min(Math.max(index, 0), moments.length - 1);
  const moment = moments[page.moment];
  document.getElementById("moment").value = String(page.moment);
  document.getElementById("moment-previous").disabled = page.moment === 0;
  document.getElementById("moment-next").disabled = page.moment === moments.length - 1;
  const hidden = moment.num_spikes - moment.spikes.length;
  document.getElementById("moment-told").textContent =
    `Moment ${page.moment + 1} of ${moments.length}: ${counted(moment.spikes.length, "spike")} of ${counted(firing(moment).length, "unit")}` +
    (hidden ? `, ${hidden} more on channels that are left out.` : ".");
  redraw(["moment-traces"]);
}

function prepareMoments() {
  const select = document.getElementById("moment");
  if (!select) return;
  page.data.moments.forEach((moment, index) => {
    const option = document.createElement("option");
    option.value = String(index);
    option.textContent = `${moment.start_s.toFixed(3)} s: ${firing(moment).length} units`;
    select.append(option);
  });
  select.addEventListener("change", () => showMoment(Number(select.value)));
  document.getElementById("moment-previous").addEventListener("click", () => showMoment(page.moment - 1));
  document.getElementById("moment-next").addEventListener("click", () => showMoment(page.moment + 1));
  showMoment(0);
}

function preparePairs() {
  const table = document.getElementById("pair-rows");
  if (!table) return;
  const show = (index) => {
    page.pair = index;
    [...table.rows].forEach((row, k) => row.toggleAttribute("aria-current", k === index));
    redraw(["pair-probe", "pair-correlogram"]);
  };
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) show([...table.rows].indexOf(row));
  });
  show(0);
}

function prepareKeys() {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const inTable = event.target.closest("#units .scroll");
    const inTraces = event.target.closest("#traces");
    const actions = {
      j: () => step(1),
      k: () => step(-1),
      ArrowDown: inTable && (() => step(1)),
      ArrowUp: inTable && (() => step(-1)),
      n: () => showMoment(page.moment + 1),
      p: () => showMoment(page.moment - 1),
      ArrowRight: inTraces && (() => showMoment(page.moment + 1)),
      ArrowLeft: inTraces && (() => showMoment(page.moment - 1)),
      "/": () => document.getElementById("filter-text").focus(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}

function preparePrinting() {
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    for (const id of builders.keys()) visible.add(id);
    setTheme("light");
  });
  window.addEventListener("afterprint", () => setTheme(before));
}

async function begin() {
  const [data, library] = await Promise.all([inflate("data"), inflate("library")]);
  const script = document.createElement("script");
  script.textContent = library;
  document.head.append(script);
  page.data = JSON.parse(data);
  const labels = document.getElementById("unit-labels").textContent;
  page.labels = (count) => (Number(count) ? `${counted(Number(count), "labelled spike")}. ${labels}` : labels);
  const view = document.getElementById("raster-view");
  if (!page.data.spikes) view.closest("p").hidden = true;
  if (!page.data.spikes || !hasDepth()) view.value = "units";
  view.addEventListener("change", () => redraw(["raster"]));
  prepareTable();
  prepareMoments();
  preparePairs();
  prepareKeys();
  preparePrinting();
  if (rows.length) choose(0);
  watch();
  document.documentElement.dataset.ready = "true";
}

begin();
