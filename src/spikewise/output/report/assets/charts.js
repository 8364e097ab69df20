// Drawing: unpacking the data, the style of all charts, and drawing each chart when it comes into view.

const page = { data: null, unit: 0, excerpt: 0, pair: [0, 1] };
const COARSE = window.matchMedia("(pointer: coarse)").matches;
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };

// Return a text that was packed as gzip in base64.
async function inflate(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const TYPES = { int16: Int16Array, uint16: Uint16Array, uint32: Uint32Array, uint8: Uint8Array, float32: Float32Array };
const unpacked = new Map();

// Return the numbers of a packed array, row after row; each array is unpacked only once.
function unpack(packed) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    const raw = new TYPES[packed.type](bytes.buffer);
    unpacked.set(packed, packed.step === 1 ? raw : Float32Array.from(raw, (value) => value * packed.step));
  }
  return unpacked.get(packed);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Escape a name: names are untrusted, and Plotly interprets tags in texts.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function formatted(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

function counted(count, noun) {
  return `${formatted(count, 0)} ${noun}${count === 1 ? "" : "s"}`;
}

function range(count, start = 0, step = 1) {
  return Array.from({ length: count }, (_, index) => start + index * step);
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 4 },
    gridcolor: colour("line"),
    linecolor: colour("line"),
    zeroline: false,
    automargin: true,
    fixedrange: COARSE,
    ...more,
  };
}

const BARE = { showgrid: false, showticklabels: false, ticks: "", showline: false };

function layout(x, y, more = {}) {
  return {
    xaxis: x,
    yaxis: y,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 44, r: 10, t: 10, b: 36 },
    showlegend: false,
    hovermode: "closest",
    dragmode: COARSE ? false : "zoom",
    hoverlabel: { bgcolor: colour("panel"), font: { color: colour("ink") } },
    ...more,
  };
}

function band(axisName, from, to, fill = "soft", opacity = 0.16) {
  const along = axisName === "x";
  return {
    type: "rect",
    layer: "below",
    line: { width: 0 },
    fillcolor: colour(fill),
    opacity,
    [along ? "x0" : "y0"]: from,
    [along ? "x1" : "y1"]: to,
    [along ? "y0" : "x0"]: 0,
    [along ? "y1" : "x1"]: 1,
    [along ? "yref" : "xref"]: "paper",
  };
}

// Return the shaded bands of the time that was not read, for charts of spikes from the seconds that were.
function unreadBands(scale) {
  const edges = [[0, 0], ...page.data.spikes.seconds_s, [page.data.duration_s, page.data.duration_s]];
  return edges
    .slice(1)
    .map(([start], k) => [edges[k][1], start])
    .filter(([from, to]) => to - from > 0.001)
    .map(([from, to]) => band("x", from / scale, to / scale, "line", 0.6));
}

// Return the unit of measure of the amplitudes of a group, once they are multiplied by its scale.
function measureName(group) {
  return group.is_uV ? "µV" : "noise s.d.";
}

// Return the largest of 1, 2 and 5 times a power of ten that is not above a value.
function roundBelow(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [5, 2, 1].map((factor) => factor * power).find((size) => size <= value * 1.000001);
}

// Each chart is a function that returns { traces, layout, label, onClick }; it is called to draw the chart.
const builders = new Map();
const visible = new Set();

function chart(id, build) {
  if (document.getElementById(id)) builders.set(id, build);
}

function draw(id) {
  const element = document.getElementById(id);
  const built = builders.get(id)();
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", built.label);
  Plotly.react(element, built.traces, built.layout, CONFIG);
  if (built.onClick) {
    element.removeAllListeners("plotly_click");
    element.on("plotly_click", built.onClick);
  }
}

function redraw(ids = [...builders.keys()]) {
  ids.filter((id) => visible.has(id) && builders.has(id)).forEach(draw);
}

function watch() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        visible.add(entry.target.id);
        draw(entry.target.id);
      }
    },
    { rootMargin: "400px" },
  );
  for (const id of builders.keys()) observer.observe(document.getElementById(id));
}
