// The motion of the probe over time: at several depths over the spikes, or alone, with its uncertainty.

const MOTION_WORDS = {
  seen: " Spikes are where the probe saw them. Each line follows the tissue of one depth; its band is the uncertainty.",
  depth: " Spikes are where they would be if the probe had not moved. Where the motion was followed, their bands are straight.",
};

// Colours of depths, from the lowest to the highest.
const DEPTHS = {
  light: ["#440154", "#414487", "#2a788e", "#22a884", "#5aa02c", "#b8860b"],
  dark: ["#b58cf0", "#7f9cf5", "#4fb3d9", "#35c9a0", "#8fd14f", "#fde725"],
};

// Return the shaded band of the labelled time, unless it is the whole recording.
function labelBands(scale) {
  const { label_interval_s: interval, labels_are_everywhere: isAll } = page.data;
  return interval && !isAll ? [band("x", ...interval.map((time) => time / scale), "mark", 0.12)] : [];
}

// Return a line and the band of its uncertainty for each depth: at this depth, or all around 0.
function motionTraces(scale, isAtDepth) {
  const lines = page.data.motion;
  const shades = DEPTHS[document.documentElement.dataset.theme];
  const base = { type: "scatter", mode: "lines" };
  return lines.flatMap((line, k) => {
    const place = `${page.data.groups.length > 1 ? `group ${plain(line.group)}, ` : ""}${formatted(line.depth_um, 0)} µm`;
    const middle = { x: [], y: [], text: [] };
    const around = { x: [], y: [] };
    for (const part of line.parts) {
      const times = Array.from(unpack(part.time_s), (time) => time / scale);
      const moved = Array.from(unpack(part.moved_um));
      const spread = part.uncertainty_um && Array.from(unpack(part.uncertainty_um));
      const level = moved.map((value) => value + (isAtDepth ? line.depth_um : 0));
      const told = (value, j) => `${place}: ${formatted(value, 1)}${spread ? ` ± ${formatted(spread[j], 1)}` : ""} µm`;
      middle.x.push(...times, null);
      middle.y.push(...level, null);
      middle.text.push(...moved.map(told), "");
      if (!spread) continue;
      around.x.push(...times, ...[...times].reverse(), null);
      around.y.push(...level.map((value, j) => value + spread[j]), ...level.map((value, j) => value - spread[j]).reverse(), null);
    }
    const fill = isAtDepth ? colour("bad") : shades[k % shades.length];
    return [
      { ...base, ...around, fill: "toself", fillcolor: fill, opacity: 0.3, line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { ...base, ...middle, name: place, line: { color: fill, width: 1.5 }, hovertemplate: "%{text}<extra></extra>" },
    ];
  });
}

function motionChart() {
  const { data } = page;
  const { scale, name } = timeScale();
  const depths = counted(data.motion.length, "depth");
  document.getElementById("raster-drawn").textContent =
    `How far the tissue had moved along the probe at ${depths}; the band is the uncertainty.`;
  const more = { shapes: labelBands(scale), showlegend: true, legend: LEGEND, margin: { l: 44, r: 10, t: 44, b: 36 } };
  return {
    traces: motionTraces(scale, false),
    layout: layout(axis(`time (${name})`, { range: [0, data.duration_s / scale] }), axis("displacement (µm)"), more),
    label: `Motion at ${depths} over ${formatted(data.duration_s, 1)} s.`,
  };
}
