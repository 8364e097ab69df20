// The charts of one unit (waveforms, correlogram, amplitudes, responses), and of a pair of units.

function unitOf(index) {
  return page.data.units[index];
}

// Return the mean waveforms of a unit as { channel, values } on the channels nearest to it.
function meansOf(index) {
  const waveforms = page.data.waveforms;
  const mean = unpack(waveforms.mean);
  const size = waveforms.num_samples;
  const channels = waveforms.channels[index];
  return channels
    .map((channel, k) => ({ channel, values: mean.subarray((index * channels.length + k) * size).subarray(0, size) }))
    .filter((part) => part.channel >= 0);
}

function waveformTimes() {
  const { num_samples, start_ms, step_ms } = page.data.waveforms;
  return range(num_samples, start_ms, step_ms);
}

function groupOf(unit) {
  return page.data.groups.find((group) => group.name === unit.group);
}

// Return the smallest distance of channels across and along the probe; it sets the size of drawn waveforms.
function pitch(positions) {
  const nearest = (axisIndex) => {
    const own = [...new Set(positions.map((position) => Math.round(position[axisIndex])))].sort((a, b) => a - b);
    const gaps = own.slice(1).map((value, k) => value - own[k]);
    return gaps.length ? Math.min(...gaps) : 0;
  };
  const [x, y] = [nearest(0), nearest(1)];
  return { x: x || y || 20, y: y || x || 20 };
}

// Draw the waveforms of units at the positions of their channels.
function onProbe(indices) {
  const first = unitOf(indices[0]);
  const group = groupOf(first);
  const shown = indices.map((index) => meansOf(index));
  const channels = shown[0].map((part) => part.channel);
  const positions = channels.map((channel) => group.positions[channel]);
  const size = pitch(positions);
  const largest = Math.max(1e-6, ...shown.flat().map((part) => part.values.reduce((a, v) => Math.max(a, Math.abs(v)), 0)));
  const times = waveformTimes();
  const width = (0.8 * size.x) / (times[times.length - 1] - times[0]);
  const centre = (times[0] + times[times.length - 1]) / 2;
  const traces = shown.map((parts, k) => {
    const x = [];
    const y = [];
    for (const { channel, values } of parts.filter((part) => channels.includes(part.channel))) {
      const [left, middle] = group.positions[channel];
      values.forEach((value, s) => {
        x.push(left + (times[s] - centre) * width);
        y.push(middle + (value / largest) * size.y * 0.9);
      });
      x.push(null);
      y.push(null);
    }
    const line = { color: unitOf(indices[k]).colour, width: 1.6 };
    return { x, y, mode: "lines", line, hoverinfo: "skip", type: "scatter" };
  });
  traces.push({
    x: positions.map((position) => position[0] + (times[0] - centre) * width),
    y: positions.map((position) => position[1]),
    text: channels.map((channel) => plain(group.channel_ids[channel])),
    mode: "text",
    textposition: "top left",
    textfont: { size: 9, color: colour("soft") },
    cliponaxis: false,
    hoverinfo: "skip",
    type: "scatter",
  });
  const pad = { x: 0.6 * size.x, y: 1.1 * size.y };
  const extent = (k, by) => [Math.min(...positions.map((p) => p[k])) - by, Math.max(...positions.map((p) => p[k])) + by];
  const x = axis("", { ...BARE, range: extent(0, pad.x) });
  const y = axis("", { ...BARE, range: extent(1, pad.y) });
  return { traces, layout: layout(x, y, { margin: { l: 26, r: 4, t: 4, b: 4 } }) };
}

chart("unit-probe", () => {
  const unit = unitOf(page.unit);
  if (unit.main === null) return emptyChart(`Unit ${unit.id} has no waveform.`);
  return { ...onProbe([page.unit]), label: `Mean waveform of unit ${unit.id} on the channels near it.` };
});

function emptyChart(label) {
  const note = { text: plain(label), showarrow: false, x: 0.5, y: 0.5, xref: "paper", yref: "paper" };
  return { traces: [], layout: layout(axis("", BARE), axis("", BARE), { annotations: [note] }), label };
}

chart("unit-waveforms", () => {
  const unit = unitOf(page.unit);
  if (unit.main === null) return emptyChart(`Unit ${unit.id} has no waveform.`);
  const { num_samples: size, deviation, snippets, num_snippets: counts } = page.data.waveforms;
  const times = waveformTimes();
  const mean = Array.from(meansOf(page.unit)[0].values);
  const around = unpack(deviation).subarray(page.unit * size, (page.unit + 1) * size);
  const most = snippets.shape[1];
  const all = unpack(snippets);
  const x = [];
  const y = [];
  for (let k = 0; k < counts[page.unit]; k += 1) {
    const first = (page.unit * most + k) * size;
    x.push(...times, null);
    y.push(...all.subarray(first, first + size), null);
  }
  const thin = { color: colour("soft"), width: 0.6 };
  const fill = { type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0 } };
  const traces = [
    { type: "scatter", mode: "lines", x, y, line: thin, opacity: 0.55, hoverinfo: "skip" },
    { ...fill, x: times, y: mean.map((value, s) => value - around[s]) },
    { ...fill, x: times, y: mean.map((value, s) => value + around[s]), fill: "tonexty", fillcolor: `${unit.colour}44` },
    { type: "scatter", mode: "lines", x: times, y: mean, line: { color: unit.colour, width: 2.2 }, name: "mean" },
  ];
  const name = plain(groupOf(unit).channel_ids[unit.main]);
  return {
    traces,
    layout: layout(axis("ms"), axis(`channel ${name}`)),
    label: `${counted(counts[page.unit], "spike")} of unit ${unit.id} on channel ${name} and their mean.`,
  };
});

function correlogram(counts, fill, label) {
  const { correlogram_ms: reach, refractory_ms: refractory } = page.data.limits;
  const width = (2 * reach) / counts.length;
  const traces = [
    { type: "bar", x: range(counts.length, -reach + width / 2, width), y: counts, marker: { color: fill }, width },
  ];
  const shapes = [band("x", -refractory, refractory)];
  const y = axis("pairs of spikes", { rangemode: "tozero", nticks: 4 });
  return { traces, layout: layout(axis("lag (ms)", { showgrid: false }), y, { shapes, bargap: 0 }), label };
}

chart("unit-correlogram", () => {
  const unit = unitOf(page.unit);
  return correlogram(unit.correlogram, unit.colour, `Auto-correlogram of unit ${unit.id}.`);
});

// Return the first and the end index of the spikes of a unit in the arrays of spikes, which are ordered by unit.
function spikesOf(index) {
  const units = unpack(page.data.spikes.unit);
  const first = units.indexOf(index);
  return first < 0 ? [0, 0] : [first, units.lastIndexOf(index) + 1];
}

chart("unit-amplitudes", () => {
  const unit = unitOf(page.unit);
  const [first, end] = spikesOf(page.unit);
  const { scale, name } = timeScale();
  const traces = [
    {
      type: "scatter",
      mode: "markers",
      x: Array.from(unpack(page.data.spikes.time_s).subarray(first, end), (time) => time / scale),
      y: unpack(page.data.spikes.amplitude).subarray(first, end),
      marker: { color: unit.colour, size: 4, opacity: 0.6 },
    },
  ];
  const x = axis(`time (${name})`, { range: [0, page.data.duration_s / scale] });
  return {
    traces,
    layout: layout(x, axis("amplitude", { rangemode: "tozero" })),
    label: `Amplitudes of ${counted(end - first, "spike")} of unit ${unit.id} over time.`,
  };
});

chart("unit-responses", () => {
  const unit = unitOf(page.unit);
  const counts = page.data.spikes.responses[page.unit];
  const width = 1 / counts.length;
  const centres = range(counts.length, width / 2, width);
  const traces = [
    {
      type: "bar",
      x: centres,
      y: counts.map((count) => count || null),
      width,
      marker: { color: centres.map((centre) => (centre > unit.threshold ? unit.colour : colour("soft"))) },
    },
  ];
  const line = { color: colour("ink"), width: 1.5, dash: "dot" };
  const shapes = [{ type: "line", x0: unit.threshold, x1: unit.threshold, y0: 0, y1: 1, yref: "paper", line }];
  const decades = Math.max(1, Math.ceil(Math.log10(Math.max(...counts, 1) + 1)));
  const y = axis("peaks", { type: "log", dtick: 1, range: [-0.3, decades] });
  const above = counts.filter((_, k) => centres[k] > unit.threshold).reduce((a, b) => a + b, 0);
  return {
    traces,
    layout: layout(axis("response (probability)", { range: [0, 1], showgrid: false }), y, { shapes, bargap: 0 }),
    label: `Responses of the network for unit ${unit.id}: ${above} peaks above the threshold ${formatted(unit.threshold)}.`,
  };
});

chart("pair-probe", () => {
  const pair = page.data.pairs[page.pair];
  const [first, second] = [pair.first, pair.second].map((index) => unitOf(index).id);
  return { ...onProbe([pair.first, pair.second]), label: `Mean waveforms of units ${first} and ${second}.` };
});

chart("pair-correlogram", () => {
  const pair = page.data.pairs[page.pair];
  const [first, second] = [pair.first, pair.second].map((index) => unitOf(index).id);
  return correlogram(pair.correlogram, colour("mark"), `Cross-correlogram of units ${first} and ${second}.`);
});
