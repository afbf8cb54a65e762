"use strict";
/* Charts by plotly. Names go through `plain`: plotly reads a little HTML in every label. */

const SERIES = ["#4269d0", "#d98d00", "#e2493f", "#2f9e8f", "#3ca951", "#e0699e", "#8c5fd3",
  "#5aa0d8", "#9c6b4e", "#7d828c"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shortened(text, length) {
  const characters = Array.from(text);
  return characters.length > length ? `${characters.slice(0, length - 1).join("")}…` : text;
}

function baseLayout(more) {
  const axis = () => ({
    gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"),
    tickcolor: colour("line"), automargin: true, title: { standoff: 10 },
  });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("soft") },
    margin: { l: 60, r: 20, t: 16, b: 48 }, hovermode: "closest",
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"),
      font: { color: colour("ink") } },
    xaxis: axis(), yaxis: axis(), ...more,
  };
  for (const name of ["xaxis", "yaxis"]) {
    layout[name] = { ...axis(), ...(more && more[name]) };
  }
  return layout;
}

const CONFIG = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false,
  showTips: false };
/** Whether each class has a colour of its own on the map. */
function isByClass(run) {
  return run.classes.length > 1 && run.classes.length <= SERIES.length;
}

const isCoarse = matchMedia("(pointer: coarse)").matches;

function titled(text) {
  return { text, standoff: 10, font: { size: 13 } };
}

/** The objective by the number of images of each class, and where the slider stands. */
function drawCurve(element, run, nFirst) {
  const counts = run.curve.map((_, place) => place + 1);
  const few = counts.length <= 60;
  Plotly.react(element, [{
    x: counts, y: run.curve, mode: few ? "lines+markers" : "lines",
    line: { color: colour("accent"), width: 2.5 }, marker: { size: 6, color: colour("accent") },
    hovertemplate: "first %{x}: %{y:.4f}<extra></extra>",
  }, {
    x: [nFirst], y: [run.curve[nFirst - 1]], mode: "markers", hoverinfo: "skip",
    marker: { size: 13, color: colour("surface"), line: { color: colour("accent"), width: 3 } },
  }], baseLayout({
    xaxis: { title: titled("images of each class"), rangemode: "tozero", fixedrange: true,
      ...(few ? { dtick: counts.length > 20 ? 5 : counts.length > 10 ? 2 : 1 } : {}) },
    yaxis: { title: titled("objective"), rangemode: "tozero", fixedrange: true },
    shapes: [{ type: "line", x0: nFirst, x1: nFirst, yref: "paper", y0: 0, y1: 1,
      line: { color: colour("accent"), width: 1, dash: "dot" } }],
  }), CONFIG);
}

/** Pool and subset in the plane; `state` says which class, how many ranks, and whether unmatched. */
function drawMap(element, run, state) {
  const plane = run.plane;
  const all = plane.row.map((_, place) => place);
  const isOfClass = (place) => state.label === null || plane.label[place] === state.label;
  const isChosen = (place) => plane.rank[place] >= 0;
  const byClass = isByClass(run);
  const colourOf = (place) =>
    byClass ? SERIES[plane.label[place] % SERIES.length] : colour("accent");
  const trace = (places, marker, name) => ({
    type: "scatter", mode: "markers", name, hoverinfo: "none",
    x: places.map((place) => plane.x[place]), y: places.map((place) => plane.y[place]),
    customdata: places, marker,
  });
  const pool = all.filter((place) => !isChosen(place));
  const ofClass = pool.filter(isOfClass);
  const others = state.label === null ? [] : pool.filter((place) => !isOfClass(place));
  const chosen = all.filter((place) => isChosen(place) && isOfClass(place)
    && plane.rank[place] < state.nFirst);
  const lost = state.unmatched ? pool.filter((place) => plane.unmatched[place] && isOfClass(place))
    : [];
  const tint = byClass ? ofClass.map(colourOf) : colour("pool");
  const share = (part) => `${(100 * plane.explained[part]).toFixed(1)} % of the variance`;
  Plotly.react(element, [
    trace(others, { size: 4, color: colour("pool"), opacity: 0.18 }, "other classes"),
    trace(ofClass, { size: 5, color: tint, opacity: byClass ? 0.32 : 0.6 }, "pool"),
    trace(lost, { size: 11, symbol: "circle-open", color: colour("lost"), line: { width: 2 } },
      "left unmatched"),
    trace(chosen, { size: chosen.length > 300 ? 8 : 11, color: chosen.map(colourOf), opacity: 1,
      line: { color: colour("surface"), width: 1.5 } }, "chosen"),
  ], baseLayout({
    dragmode: isCoarse ? false : "zoom",
    xaxis: { title: titled(`first direction · ${share(0)}`), zeroline: false,
      showticklabels: false },
    yaxis: { title: titled(`second direction · ${share(1)}`), zeroline: false,
      showticklabels: false, scaleanchor: "x" },
    margin: { l: 40, r: 14, t: 14, b: 44 }, uirevision: "map",
  }), CONFIG);
}

/** One measure by method, best at the top. `entries`: {title, kind, mean, sd, n, note}. */
function drawComparison(element, entries, measure) {
  const sign = measure.better === "lower" ? 1 : -1;
  const sorted = entries.filter((entry) => entry.mean !== null)
    .sort((a, b) => sign * (b.mean - a.mean));
  const kinds = { gadc: colour("accent"), ablation: SERIES[6], peer: colour("soft"),
    random: SERIES[1] };
  element.style.height = `${Math.max(240, 30 * sorted.length + 110)}px`;
  const labels = sorted.map((entry) => plain(shortened(entry.title, isNarrow() ? 14 : 40)));
  Plotly.react(element, [{
    type: "scatter", mode: "markers", x: sorted.map((entry) => entry.mean),
    y: sorted.map((_, place) => place),
    marker: { size: 11, color: sorted.map((entry) => kinds[entry.kind] || colour("soft")) },
    error_x: { type: "data", array: sorted.map((entry) => entry.sd || 0), thickness: 1.6, width: 5,
      color: colour("soft") },
    text: sorted.map((entry) => plain(entry.title + (entry.sd === null ? ""
      : ` · sd ${format(entry.sd)} over ${entry.n} seeds`))),
    hovertemplate: "%{text}<br>%{x:.5~g}<extra></extra>",
  }], baseLayout({
    xaxis: { title: titled(plain(comparisonTitle(measure))),
      zeroline: false, fixedrange: true },
    yaxis: { tickvals: sorted.map((_, place) => place), ticktext: labels, zeroline: false,
      range: [-0.7, sorted.length - 0.3], fixedrange: true, ticklabelstandoff: 8,
      tickfont: { color: colour("ink") } },
    margin: { l: 24, r: 24, t: 14, b: 50 },
  }), CONFIG);
}

/** One value of training runs by step. `runs`: {name, colour, dash, steps, values}. */
function drawLosses(element, runs, title) {
  Plotly.react(element, runs.map((run) => ({
    type: "scatter", mode: run.steps.length > 1 ? "lines" : "markers", name: plain(run.name),
    x: run.steps, y: run.values, connectgaps: false,
    line: { color: run.colour, width: 1.8, dash: run.dash }, marker: { color: run.colour },
    hovertemplate: `${plain(shortened(run.name, isNarrow() ? 24 : 70))}<br>`
      + "step %{x:,}: %{y:.5~g}<extra></extra>",
  })), baseLayout({
    dragmode: isCoarse ? false : "zoom",
    xaxis: { title: titled("step"), rangemode: "tozero", zeroline: false },
    yaxis: { title: titled(plain(title)), zeroline: false },
    margin: { l: 60, r: 24, t: 18, b: 50 },
    uirevision: title,
  }), CONFIG);
}

function comparisonTitle(measure) {
  return isNarrow() ? shortened(measure.title, 24)
    : `${shortened(measure.title, 60)} · ${measure.better} is better`;
}

function isNarrow() {
  return window.innerWidth <= 560;
}

function format(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const text = size === 0 || (size >= 0.0005 && size < 1000) ? value.toFixed(4)
    : size >= 1000 && size < 1e7 ? value.toFixed(1) : value.toExponential(2);
  return text.replace("-", "−");
}
