// The charts of one unit: waveforms, correlogram, intervals, rate, amplitudes, responses.

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

// Return by what to multiply amplitudes of a unit, and in which unit of measure they then are.
function measureOf(unit) {
  const group = groupOf(unit);
  return { factor: unit.main === null ? 1 : group.scale[unit.main], name: measureName(group) };
}

// Draw the waveforms of units at the positions of their channels.
function onProbe(indices) {
  const first = unitOf(indices[0]);
  const group = groupOf(first);
  const shown = indices.map((index) =>
    meansOf(index).map(({ channel, values }) => ({ channel, values: values.map((value) => value * group.scale[channel]) })),
  );
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
    const fill = indices.length > 1 ? pairColours()[k] : unitOf(indices[k]).colour;
    const line = { color: fill, width: 1.6 };
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
  const [left, right] = extent(0, pad.x);
  const [lowest, highest] = extent(1, pad.y);
  const tall = (0.9 * size.y) / largest;
  const bar = roundBelow(largest / 1.5);
  const corner = { x: left + 0.04 * (right - left), y: lowest - bar * tall };
  const line = { color: colour("ink"), width: 2 };
  traces.push({
    x: [corner.x, corner.x, corner.x + width],
    y: [corner.y + bar * tall, corner.y, corner.y],
    mode: "lines", line, hoverinfo: "skip", type: "scatter",
  });
  const annotations = [
    {
      x: corner.x + width, y: corner.y + (bar * tall) / 2, xanchor: "left", xshift: 4, showarrow: false,
      text: `${bar} ${measureName(group)}, 1 ms`, font: { size: 11 },
    },
  ];
  const x = axis("", { ...BARE, range: [left, right] });
  const y = axis("", { ...BARE, range: [corner.y - 0.3 * size.y, highest] });
  return { traces, layout: layout(x, y, { margin: { l: 26, r: 4, t: 4, b: 4 }, annotations }) };
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
  const { factor, name: measure } = measureOf(unit);
  const scaled = (values) => Array.from(values, (value) => value * factor);
  const mean = scaled(meansOf(page.unit)[0].values);
  const around = scaled(unpack(deviation).subarray(page.unit * size, (page.unit + 1) * size));
  const most = snippets.shape[1];
  const all = unpack(snippets);
  const x = [];
  const y = [];
  for (let k = 0; k < counts[page.unit]; k += 1) {
    const first = (page.unit * most + k) * size;
    x.push(...times, null);
    y.push(...scaled(all.subarray(first, first + size)), null);
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
    layout: layout(axis("ms"), axis(`channel ${name} (${measure})`)),
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

chart("unit-intervals", () => {
  const { intervals } = page.data.firing;
  const { interval_bin_ms: width, refractory_ms: refractory } = page.data.limits;
  const bins = intervals.shape[1];
  const counts = Array.from(unpack(intervals).subarray(page.unit * bins, (page.unit + 1) * bins));
  const centres = range(bins, width / 2, width);
  const isShort = centres.map((centre) => centre < refractory);
  const fill = unitOf(page.unit).colour;
  const marker = { color: isShort.map((is) => (is ? colour("bad") : fill)) };
  const traces = [{ type: "bar", x: centres, y: counts, width, marker, hovertemplate: "%{x:.2f} ms: %{y}<extra></extra>" }];
  const violations = counts.filter((_, k) => isShort[k]).reduce((a, b) => a + b, 0);
  const line = { color: colour("bad"), width: 1.2, dash: "dot" };
  const shapes = [{ type: "line", x0: refractory, x1: refractory, y0: 0, y1: 1, yref: "paper", line }];
  const note = {
    x: refractory, y: 1, yref: "paper", xanchor: "left", yanchor: "top", xshift: 4, showarrow: false,
    text: counted(violations, "violation"), font: { color: colour("bad") },
  };
  const x = axis("inter-spike interval (ms)", { showgrid: false, range: [0, bins * width] });
  return {
    traces,
    layout: layout(x, axis("intervals", { rangemode: "tozero", nticks: 4 }), { shapes, annotations: [note], bargap: 0 }),
    label: `Inter-spike intervals of unit ${unitOf(page.unit).id}: ${violations} under ${refractory} ms.`,
  };
});

chart("unit-rate", () => {
  const { counts, bin_s: width } = page.data.firing;
  const bins = counts.shape[1];
  const rates = Array.from(unpack(counts).subarray(page.unit * bins, (page.unit + 1) * bins), (count) => count / width);
  const { scale, name } = timeScale();
  const unit = unitOf(page.unit);
  const line = { color: unit.colour, width: 1.4, shape: "hvh" };
  const traces = [
    { type: "scatter", mode: "lines", x: range(bins, width / 2 / scale, width / scale), y: rates, line, fill: "tozeroy", fillcolor: `${unit.colour}33` },
  ];
  const x = axis(`time (${name})`, { range: [0, page.data.duration_s / scale] });
  return {
    traces,
    layout: layout(x, axis("rate (Hz)", { rangemode: "tozero", nticks: 4 })),
    label: `Firing rate of unit ${unit.id} in ${bins} bins of ${formatted(width, 1)} s.`,
  };
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
  const { factor, name: measure } = measureOf(unit);
  const traces = [
    {
      type: "scatter",
      mode: "markers",
      x: Array.from(unpack(page.data.spikes.time_s).subarray(first, end), (time) => time / scale),
      y: Array.from(unpack(page.data.spikes.amplitude).subarray(first, end), (value) => value * factor),
      marker: { color: unit.colour, size: 4, opacity: 0.6 },
      hovertemplate: `%{y:.1f} ${measure}<extra></extra>`,
    },
  ];
  const { noise, seconds_s: seconds } = page.data.spikes;
  const levels = unpack(noise).subarray(page.unit * seconds.length, (page.unit + 1) * seconds.length);
  if (unit.main !== null) {
    traces.push({
      type: "scatter",
      mode: "lines",
      name: "noise",
      x: seconds.flatMap(([start, stop]) => [start / scale, stop / scale]),
      y: Array.from(levels).flatMap((level) => [level * factor, level * factor]),
      line: { color: colour("ink"), width: 1.2 },
      fill: "tozeroy",
      fillcolor: `${colour("ink")}22`,
      hovertemplate: `noise %{y:.1f} ${measure}<extra></extra>`,
    });
  }
  const x = axis(`time (${name})`, { range: [0, page.data.duration_s / scale] });
  return {
    traces,
    layout: layout(x, axis(`amplitude (${measure})`, { rangemode: "tozero" }), { shapes: unreadBands(scale) }),
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
