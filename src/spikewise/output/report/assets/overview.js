// The charts of all units: the probe, spikes over time, similarity, the truth, training, and excerpts of traces.

function timeScale() {
  const duration = page.data.duration_s;
  if (duration <= 600) return { scale: 1, name: "s" };
  return duration <= 3 * 3600 ? { scale: 60, name: "min" } : { scale: 3600, name: "h" };
}

chart("probe", () => {
  const { groups, units } = page.data;
  const positions = groups.flatMap((group) => group.positions);
  const placed = units.map((unit, index) => ({ unit, index })).filter(({ unit }) => unit.x !== null);
  const names = groups.flatMap((group) => group.channel_ids.map((id, k) => plain(id) + (group.silenced[k] ? " (silenced)" : "")));
  const silenced = groups.flatMap((group) => group.silenced);
  const traces = [
    {
      type: "scatter",
      mode: "markers",
      x: positions.map((position) => position[0]),
      y: positions.map((position) => position[1]),
      text: names,
      hovertemplate: "channel %{text}<extra></extra>",
      marker: { symbol: silenced.map((is) => (is ? "x-thin-open" : "square")), size: 5, color: colour("line"), line: { color: colour("soft"), width: 0.5 } },
    },
    {
      type: "scatter",
      mode: placed.length <= 40 ? "markers+text" : "markers",
      x: placed.map(({ unit }) => unit.x),
      y: placed.map(({ unit }) => unit.y),
      customdata: placed.map(({ index }) => index),
      text: placed.map(({ unit }) => plain(unit.id)),
      textposition: "middle right",
      hovertemplate: "unit %{text}<extra></extra>",
      marker: {
        size: placed.map(({ index }) => (index === page.unit ? 16 : 10)),
        color: placed.map(({ unit }) => unit.colour),
        line: { color: colour("ink"), width: placed.map(({ index }) => (index === page.unit ? 2 : 0)) },
      },
      cliponaxis: false,
    },
  ];
  const spans = [0, 1].map((k) => Math.max(...positions.map((p) => p[k])) - Math.min(...positions.map((p) => p[k])));
  const equal = spans[1] < 4 * Math.max(spans[0], 10) ? { scaleanchor: "x" } : {};
  const pad = 0.35 * Math.max(spans[0], 20);
  const left = Math.min(...positions.map((position) => position[0]));
  const x = axis("µm", { range: equal.scaleanchor ? undefined : [left - pad, left + spans[0] + pad], nticks: 4 });
  return {
    traces,
    layout: layout(x, axis("depth (µm)", equal)),
    label: `Map of ${positions.length} channels and ${placed.length} units.`,
    onClick: (event) => {
      const index = event.points[0].customdata;
      if (index !== undefined) choose(index);
    },
  };
});

// Return whether a probe is long enough for depth to separate units.
function hasDepth() {
  return page.data.groups.some((group) => {
    const depths = group.positions.map((position) => position[1]);
    return Math.max(...depths) - Math.min(...depths) >= 100;
  });
}

const LEGEND = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" };

// Colours of amplitudes: the larger the amplitude, the larger the contrast to the page.
const AMPLITUDES = {
  light: [[0, "#7ad151"], [0.33, "#22a884"], [0.6, "#2a788e"], [1, "#440154"]],
  dark: [[0, "#4a4f8f"], [0.33, "#2a8f8e"], [0.66, "#5ec962"], [1, "#fde725"]],
};

// Leave out the views of spikes over time for which the report holds nothing, and choose the first that fits.
function prepareViews(select) {
  const { spikes, motion } = page.data;
  const kept = [...(spikes ? ["seen", "depth", "amplitude"] : []), "units", ...(motion.length ? ["motion"] : [])];
  for (const option of [...select.options]) if (!kept.includes(option.value)) option.remove();
  if (select.options.length < 2) select.closest("p").hidden = true;
  if (!spikes || !hasDepth()) select.value = "units";
}

chart("raster", () => {
  const { data } = page;
  const view = document.getElementById("raster-view").value;
  if (view === "motion") return motionChart();
  const isDepth = view === "depth" || view === "seen";
  const source = view === "units" ? data.trains : data.spikes;
  const units = unpack(source.unit);
  const step = Math.max(1, units.length / data.limits.raster);
  const rows = range(Math.min(units.length, data.limits.raster)).map((k) => Math.floor(k * step));
  const { scale, name } = timeScale();
  const times = unpack(source.time_s);
  const isOne = data.groups.every((group) => group.is_uV === data.groups[0].is_uV);
  const measure = isOne ? measureName(data.groups[0]) : "noise s.d.";
  const factors = data.units.map((unit) => (isOne ? measureOf(unit).factor : 1));
  const amplitude = view === "units" ? null : unpack(data.spikes.amplitude).map((value, row) => value * factors[units[row]]);
  const depth = () => unpack(data.spikes.depth_um);
  const seen = () => depth().map((value, row) => value + unpack(data.spikes.moved_um)[row]);
  const height = { depth, seen, amplitude: () => amplitude, units: () => units }[view]();
  const largest = amplitude && [...rows.map((row) => amplitude[row])].sort((a, b) => a - b)[Math.floor(rows.length * 0.97)];
  const byAmplitude = {
    color: isDepth ? rows.map((row) => amplitude[row]) : undefined,
    colorscale: AMPLITUDES[document.documentElement.dataset.theme],
    cmin: 0,
    cmax: largest,
    colorbar: { title: { text: measure, side: "right" }, thickness: 10, len: 0.7, outlinewidth: 0 },
  };
  const traces = [
    {
      type: "scatter",
      mode: "markers",
      x: rows.map((row) => times[row] / scale),
      y: rows.map((row) => height[row]),
      text: rows.map((row) => plain(data.units[units[row]].id)),
      customdata: rows.map((row) => units[row]),
      hovertemplate: `unit %{text}, %{x:.2f} ${name}<extra></extra>`,
      marker: { size: 3.5, opacity: 0.8, ...(isDepth ? byAmplitude : { color: rows.map((row) => data.units[units[row]].colour) }) },
    },
  ];
  if (view === "seen") traces.push(...motionTraces(scale, true));
  const shapes = [...(view === "units" ? [] : unreadBands(scale)), ...labelBands(scale)];
  const named = data.units.length <= 40 ? { tickvals: range(data.units.length), ticktext: data.units.map((unit) => plain(unit.id)) } : {};
  const y = {
    depth: () => axis("depth (µm)"),
    seen: () => axis("depth (µm)"),
    amplitude: () => axis(`amplitude (${measure})`, { rangemode: "tozero" }),
    units: () => axis("unit", { ...named, showgrid: false, range: [data.units.length - 0.5, -0.5] }),
  }[view]();
  const drawn = counted(rows.length, "spike");
  document.getElementById("raster-drawn").textContent =
    view === "units"
      ? `${drawn} of ${formatted(data.num_spikes, 0)} are drawn, evenly chosen from the whole recording.`
      : `${drawn} are drawn, from ${formatted(data.spikes.seconds_s.length, 0)} s, evenly spread. Grey: time that was not read for this view.${MOTION_WORDS[data.motion.length ? view : ""] ?? ""}`;
  return {
    traces,
    layout: layout(axis(`time (${name})`, { range: [0, data.duration_s / scale] }), y, { shapes }),
    label: `${counted(rows.length, "spike")} of ${counted(data.units.length, "unit")} over ${formatted(data.duration_s, 1)} s.`,
    onClick: (event) => {
      const index = event.points[0].customdata;
      if (index !== undefined) choose(index);
    },
  };
});

function heatmap(values, xNames, yNames, titles, label, hover) {
  const few = Math.max(xNames.length, yNames.length) <= 40;
  const ticks = (names) => (few ? { tickvals: range(names.length), ticktext: names, tickangle: 0 } : { showticklabels: false });
  const low = colour("page");
  const traces = [
    {
      type: "heatmap",
      z: values,
      zmin: 0,
      zmax: 1,
      colorscale: [[0, low], [1, colour("mark")]],
      hovertemplate: hover,
      text: yNames.map((y) => xNames.map((x) => `${x}, ${y}`)),
      colorbar: { thickness: 10, len: 0.7, outlinewidth: 0 },
    },
  ];
  const x = axis(titles[0], { ...ticks(xNames), showgrid: false });
  const y = axis(titles[1], { ...ticks(yNames), showgrid: false, autorange: "reversed" });
  return { traces, layout: layout(x, y), label };
}

chart("similarity", () => {
  const { units, similarity } = page.data;
  const order = range(units.length).sort((a, b) => {
    const groups = page.data.groups.map((group) => group.name);
    return groups.indexOf(units[a].group) - groups.indexOf(units[b].group) || (units[b].y ?? 0) - (units[a].y ?? 0);
  });
  const all = unpack(similarity);
  const values = order.map((a) => order.map((b) => all[a * units.length + b]));
  const names = order.map((index) => plain(units[index].id));
  const label = `Similarity of the mean waveforms of ${units.length} units; ${page.data.pairs.length} pairs are alike.`;
  return {
    ...heatmap(values, names, names, ["unit", "unit"], label, "units %{text}: %{z:.2f}<extra></extra>"),
    onClick: (event) => {
      const [a, b] = event.points[0].pointIndex.map((k) => order[k]);
      if (a === b) choose(a);
      else showPair(a, b);
    },
  };
});

chart("confusion", () => {
  const { units, common, tested } = page.data.truth;
  const partner = units.map((unit) => tested.indexOf(String(unit.tested_unit)));
  const rows = range(units.length).sort((a, b) => (partner[a] < 0) - (partner[b] < 0) || (units[b].snr ?? 0) - (units[a].snr ?? 0));
  const matched = rows.map((row) => partner[row]).filter((column) => column >= 0);
  const columns = [...matched, ...range(tested.length).filter((column) => !matched.includes(column))];
  const values = rows.map((row) => {
    const found = columns.map((column) => common[row][column] / units[row].num_truth);
    return [...found, units[row].fn / units[row].num_truth];
  });
  const names = [...columns.map((column) => plain(tested[column])), "missed"];
  const label = `Confusion of ${rows.length} true units with ${tested.length} units.`;
  const trueNames = rows.map((row) => plain(units[row].truth_unit));
  return heatmap(values, names, trueNames, ["unit found", "true unit"], label, "found, true: %{text}: %{z:.3f}<extra></extra>");
});

chart("accuracy-snr", () => {
  const known = page.data.truth.units.filter((unit) => unit.snr !== null);
  if (!known.length) return emptyChart("The SNR of the true units needs the recording.");
  const traces = [
    {
      type: "scatter",
      mode: "markers",
      x: known.map((unit) => unit.snr),
      y: known.map((unit) => unit.accuracy),
      text: known.map((unit) => plain(unit.truth_unit)),
      hovertemplate: "true unit %{text}: %{y:.3f}<extra></extra>",
      marker: { color: colour("mark"), size: 8, opacity: 0.8 },
      cliponaxis: false,
    },
  ];
  return {
    traces,
    layout: layout(axis("SNR of the true unit", { rangemode: "tozero" }), axis("accuracy", { range: [0, 1.02] })),
    label: `Accuracy against SNR of ${known.length} true units.`,
  };
});

chart("accuracy-units", () => {
  const units = [...page.data.truth.units].sort((a, b) => (b.accuracy ?? 0) - (a.accuracy ?? 0));
  const names = units.map((unit) => plain(unit.truth_unit));
  const parts = { tp: ["found", colour("mark")], fn: ["missed", colour("soft")], fp: ["false", "#d1435b"] };
  const traces = Object.entries(parts).map(([key, [name, fill]]) => ({
    type: "bar",
    name,
    x: names,
    y: units.map((unit) => (key === "tp" ? 1 : key === "fn" ? 1 : -1) * (unit[key] / unit.num_truth)),
    marker: { color: fill },
    hovertemplate: `true unit %{x}: %{y:.3f} ${name}<extra></extra>`,
  }));
  const x = axis("true unit, by accuracy", { type: "category", showticklabels: names.length <= 40, showgrid: false });
  const more = { barmode: "relative", showlegend: true, legend: LEGEND, margin: { l: 44, r: 10, t: 44, b: 36 } };
  return { traces, layout: layout(x, axis("fraction of its spikes"), more), label: `Spikes found, missed and false of ${counted(units.length, "true unit")}.` };
});

chart("losses", () => {
  const { trainings } = page.data;
  const step = "num_confident_spikes" in trainings[0] ? "round" : "epoch";
  const few = trainings.length <= 1;
  const traces = trainings.flatMap((training, k) => {
    const shown = { showlegend: k === 0, type: "scatter", mode: "lines+markers", hoverinfo: few ? "x+y+name" : "x+y" };
    const kept = training.best_epoch;
    return [
      { ...shown, name: "training", x: range(training.train_loss.length, 1), y: training.train_loss, line: { color: "#3b7dd8", dash: "dash" } },
      { ...shown, name: "held-out time", x: range(training.held_out_loss.length, 1), y: training.held_out_loss, line: { color: "#d9541e" } },
      { ...shown, name: `${step} kept`, mode: "markers", x: [kept + 1], y: [training.held_out_loss[kept]], marker: { symbol: "circle-open", size: 13, color: "#d9541e" } },
    ];
  });
  const kept = trainings.map((training) => training.best_epoch + 1).join(", ");
  const more = { showlegend: true, legend: LEGEND, margin: { l: 44, r: 10, t: 44, b: 36 } };
  const x = axis(step, { dtick: Math.max(1, Math.ceil(Math.max(...trainings.map((t) => t.held_out_loss.length)) / 12)) });
  return { traces, layout: layout(x, axis("loss", { rangemode: "tozero" }), more), label: `Loss by ${step} in training and held out; kept: ${kept}.` };
});

chart("label-counts", () => {
  const counts = page.data.units.map((_, index) => Number(rowOf(index).dataset.labels));
  const names = page.data.units.map((unit) => plain(unit.id));
  const fills = page.data.units.map((unit) => unit.colour);
  const traces = [{ type: "bar", x: names, y: counts, marker: { color: fills } }];
  const x = axis("unit", { type: "category", showticklabels: names.length <= 40, showgrid: false });
  return { traces, layout: layout(x, axis("labels")), label: `Labelled spikes of ${counted(names.length, "unit")}.` };
});

// Return the ids of the units that fire in an excerpt.
function firing(excerpt) {
  return [...new Set(excerpt.spikes.map(([, , unit]) => unitOf(unit).id))];
}

chart("moment-traces", () => {
  const excerpt = page.data.excerpts[page.excerpt];
  const [channels, size] = excerpt.traces.shape;
  const group = page.data.groups.find(({ name }) => name === excerpt.group);
  const factors = excerpt.channel_index.map((channel) => group.scale[channel]);
  const values = unpack(excerpt.traces).map((value, k) => value * factors[Math.floor(k / size)]);
  const times = range(size, 0, excerpt.step_ms);
  const spacing = 0.75 * Math.max(8 * Math.min(...factors), values.reduce((most, value) => Math.max(most, Math.abs(value)), 0));
  const level = (channel, sample) => values[channel * size + sample] - spacing * channel;
  const base = { type: "scatter", mode: "lines", hoverinfo: "skip" };
  const traces = range(channels).map((channel) => ({
    ...base,
    x: times,
    y: range(size).map((sample) => level(channel, sample)),
    line: { color: colour("soft"), width: 0.8 },
    opacity: 0.8,
  }));
  const [before, after] = [0.4, 0.8].map((side) => Math.round(side / excerpt.step_ms));
  const annotations = [];
  const taken = new Map();
  const wide = document.getElementById("moment-traces").clientWidth || 800;
  for (const [sample, channel, index] of excerpt.spikes) {
    const unit = unitOf(index);
    const samples = range(before + after + 1, sample - before).filter((s) => s >= 0 && s < size);
    traces.push({ ...base, x: samples.map((s) => times[s]), y: samples.map((s) => level(channel, s)), line: { color: unit.colour, width: 2 } });
    const room = ((7 * unit.id.length + 6) / wide) * times[size - 1];
    const start = times[sample] - room / 2;
    if (start < (taken.get(channel) ?? -1)) continue;
    taken.set(channel, start + room);
    annotations.push({
      x: times[sample], y: Math.max(...samples.map((s) => level(channel, s))), text: `<b>${plain(unit.id)}</b>`, showarrow: false, yanchor: "bottom", font: { color: unit.colour, size: 11 },
    });
  }
  const lowest = range(size).map((sample) => level(channels - 1, sample));
  const highest = range(size).map((sample) => level(0, sample));
  const measure = measureName(group);
  const bar = roundBelow(0.8 * spacing);
  const right = 1.02 * times[size - 1];
  const shapes = [{ type: "line", x0: right, x1: right, y0: 0, y1: bar, line: { color: colour("ink"), width: 2 } }];
  const text = `${bar}<br>${measure.replace(" ", "<br>")}`;
  annotations.push({ x: right, y: bar / 2, text, align: "left", xanchor: "left", xshift: 2, showarrow: false, font: { size: 11 } });
  const y = axis("channel", {
    tickvals: range(channels).map((channel) => -spacing * channel), ticktext: excerpt.channels.map(plain), showgrid: false,
    range: [Math.min(...lowest, -spacing * (channels - 0.5)) - 0.05 * spacing, Math.max(...highest, spacing / 2) + 0.35 * spacing],
  });
  const units = firing(excerpt);
  return {
    traces,
    layout: layout(axis(`ms after ${excerpt.start_s.toFixed(3)} s`, { range: [0, 1.08 * times[size - 1]] }), y, { annotations, shapes }),
    label: `Traces of ${channels} channels from ${excerpt.start_s.toFixed(3)} s with ${counted(excerpt.spikes.length, "spike")} of units ${units.join(", ")} marked.`,
  };
});
