// The page: light and dark, excerpts and pairs, keys, printing, and the start of it all.

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

function showExcerpt(index) {
  const { excerpts } = page.data;
  if (!excerpts.length) return;
  page.excerpt = Math.min(Math.max(index, 0), excerpts.length - 1);
  const excerpt = excerpts[page.excerpt];
  document.getElementById("moment").value = String(page.excerpt);
  document.getElementById("moment-previous").disabled = page.excerpt === 0;
  document.getElementById("moment-next").disabled = page.excerpt === excerpts.length - 1;
  const hidden = excerpt.num_spikes - excerpt.spikes.length;
  document.getElementById("moment-told").textContent =
    `Excerpt ${page.excerpt + 1} of ${excerpts.length}: ${counted(excerpt.spikes.length, "spike")} of ${counted(firing(excerpt).length, "unit")}` +
    (hidden ? `, ${hidden} more on channels that are not drawn.` : ".");
  redraw(["moment-traces"]);
}

function prepareExcerpts() {
  const select = document.getElementById("moment");
  if (!select) return;
  page.data.excerpts.forEach((excerpt, index) => {
    const option = document.createElement("option");
    option.value = String(index);
    option.textContent = `${excerpt.start_s.toFixed(3)} s: ${firing(excerpt).length} units`;
    select.append(option);
  });
  select.addEventListener("change", () => showExcerpt(Number(select.value)));
  document.getElementById("moment-previous").addEventListener("click", () => showExcerpt(page.excerpt - 1));
  document.getElementById("moment-next").addEventListener("click", () => showExcerpt(page.excerpt + 1));
  showExcerpt(0);
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
      n: () => showExcerpt(page.excerpt + 1),
      p: () => showExcerpt(page.excerpt - 1),
      ArrowRight: inTraces && (() => showExcerpt(page.excerpt + 1)),
      ArrowLeft: inTraces && (() => showExcerpt(page.excerpt - 1)),
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
  prepareViews(view);
  view.addEventListener("change", () => redraw(["raster"]));
  prepareTable();
  prepareExcerpts();
  preparePairs();
  prepareKeys();
  prepareSaving();
  preparePrinting();
  if (rows.length) choose(0);
  watch();
  document.documentElement.dataset.ready = "true";
}

begin();
