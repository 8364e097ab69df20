// The charts of a pair of units: both waveforms, the cross-correlogram, and the components of their spikes.

let comparedTrains = null;

// Return the frames of each unit in the stretches that are compared.
function trainsOf(index) {
  if (!comparedTrains) {
    const { unit, step } = page.data.firing.compared;
    const [units, steps] = [unpack(unit), unpack(step)];
    comparedTrains = page.data.units.map(() => []);
    let frame = 0;
    steps.forEach((by, k) => {
      frame += by;
      comparedTrains[units[k]].push(frame);
    });
  }
  return comparedTrains[index];
}

// Return the number of spikes of the second unit in each bin of lags from a spike of the first.
function crossCorrelogram(first, second) {
  const { correlogram_ms: reach, correlogram_bin_ms: width } = page.data.limits;
  const { frames_per_ms: rate } = page.data.firing.compared;
  const half = Math.round(reach / width);
  const counts = new Array(2 * half).fill(0);
  const [a, b] = [trainsOf(first), trainsOf(second)];
  let from = 0;
  for (const frame of a) {
    while (from < b.length && b[from] < frame - reach * rate) from += 1;
    for (let k = from; k < b.length; k += 1) {
      const bin = half + Math.floor((b[k] - frame) / (width * rate));
      if (bin >= 2 * half) break;
      counts[bin] += 1;
    }
  }
  return counts;
}

// Return the pair of the list that has these two units; undefined if they are not alike.
function listedPair() {
  const [a, b] = page.pair;
  return page.data.pairs.find(({ first, second }) => (first === a && second === b) || (first === b && second === a));
}

function pairNames() {
  return page.pair.map((index) => unitOf(index).id);
}

chart("pair-probe", () => {
  const units = page.pair.map(unitOf);
  if (units.some((unit) => unit.main === null)) return emptyChart("One of the units has no waveform.");
  if (units[0].group !== units[1].group) return emptyChart("The units are in different groups of channels.");
  const [first, second] = pairNames();
  return { ...onProbe(page.pair), label: `Mean waveforms of units ${first} and ${second}.` };
});

chart("pair-correlogram", () => {
  const [first, second] = pairNames();
  const counts = crossCorrelogram(...page.pair);
  const label = `Cross-correlogram of units ${first} and ${second}: ${formatted(counts.reduce((a, b) => a + b, 0), 0)} pairs of spikes.`;
  return correlogram(counts, colour("mark"), label);
});

chart("pair-features", () => {
  const pair = listedPair();
  const [first, second] = pairNames();
  if (!pair) return emptyChart(`Similarity below ${page.data.limits.similarity}: single spikes were not compared.`);
  const swapped = pair.first !== page.pair[0];
  const clouds = pair.features.map((packed) => ({ values: unpack(packed), count: packed.shape[0] }));
  if (!clouds[0].count) return emptyChart("Too few spikes were read to compare them.");
  const traces = (swapped ? [...clouds].reverse() : clouds).map(({ values, count }, k) => ({
    type: "scatter",
    mode: "markers",
    name: `unit ${plain(unitOf(page.pair[k]).id)}`,
    x: range(count).map((row) => values[2 * row]),
    y: range(count).map((row) => values[2 * row + 1]),
    hoverinfo: "name",
    marker: { color: pairColours()[k], size: 5, opacity: 0.65, symbol: k ? "diamond" : "circle" },
  }));
  const more = { showlegend: true, legend: LEGEND, margin: { l: 44, r: 10, t: 30, b: 36 } };
  const channels = pair.channels.map(plain).join(", ");
  return {
    traces,
    layout: layout(axis(`component 1 (channels ${channels})`), axis("component 2"), more),
    label: `Components of ${clouds.map(({ count }) => count).join(" and ")} spikes of units ${first} and ${second}.`,
  };
});

// Return the colours of the two units; two units of one colour are told apart by the page's own.
function pairColours() {
  const [a, b] = page.pair.map((index) => unitOf(index).colour);
  return a === b ? [a, colour("ink")] : [a, b];
}

const PAIR_CHARTS = ["pair-probe", "pair-correlogram", "pair-features"];

function showPair(first, second) {
  page.pair = [first, second];
  [first, second].forEach((index, k) => {
    document.getElementById(["pair-first", "pair-second"][k]).value = String(index);
  });
  const listed = listedPair();
  const rowsOfPairs = document.getElementById("pair-rows");
  if (rowsOfPairs) {
    const at = page.data.pairs.indexOf(listed);
    [...rowsOfPairs.rows].forEach((row, k) => row.toggleAttribute("aria-current", k === at));
  }
  const { similarity, units, duration_s: duration, firing } = page.data;
  const parts = [];
  if (similarity) parts.push(`Similarity ${formatted(unpack(similarity)[first * units.length + second])}.`);
  if (listed) parts.push(listed.reason);
  const { seconds } = firing.compared;
  parts.push(
    seconds < duration - 0.001
      ? `The correlogram counts all spikes in ${formatted(seconds, 0)} of ${formatted(duration, 0)} s, evenly spread.`
      : "The correlogram counts all spikes.",
  );
  document.getElementById("pair-told").textContent = parts.join(" ");
  redraw(PAIR_CHARTS);
}

function preparePairs() {
  const selects = ["pair-first", "pair-second"].map((id) => document.getElementById(id));
  if (!selects[0]) return;
  for (const select of selects) {
    page.data.units.forEach((unit, index) => select.append(new Option(unit.id, String(index))));
    select.addEventListener("change", () => showPair(...selects.map(({ value }) => Number(value))));
  }
  const list = document.getElementById("pair-rows");
  if (list) {
    list.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!row) return;
      const { first, second } = page.data.pairs[[...list.rows].indexOf(row)];
      showPair(first, second);
    });
  }
  const { first, second } = page.data.pairs[0] || { first: 0, second: 1 };
  showPair(first, second);
}
