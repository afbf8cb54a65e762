"use strict";
/* The page's own behaviour. Text from data is only ever set as `textContent`. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const redraws = [];

function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/* ---- colours ---- */

const THEMES = [["", "Auto", "Colours: as the system"], ["light", "Light", "Colours: light"],
  ["dark", "Dark", "Colours: dark"]];

function stored(value) {
  try {
    if (value === undefined) return localStorage.getItem("gadc-theme") || "";
    localStorage.setItem("gadc-theme", value);
  } catch { /* a browser that keeps nothing for files */ }
  return "";
}

function setTheme(name) {
  const [value, text, label] = THEMES.find((theme) => theme[0] === name) || THEMES[0];
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  const button = document.getElementById("theme");
  button.textContent = text;
  button.setAttribute("aria-label", label);
  for (const redraw of redraws) redraw();
}

function setUpTheme() {
  document.getElementById("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "";
    const place = THEMES.findIndex((theme) => theme[0] === now);
    const next = THEMES[(place + 1) % THEMES.length][0];
    stored(next);
    setTheme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const redraw of redraws) redraw();
  });
  setTheme(stored());
}

/* ---- charts are drawn when they come near the screen ---- */

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    entry.target.dispatchEvent(new Event("draw"));
  }
}, { rootMargin: "400px" });

/** Draw now or when first seen, and again when asked; returns the function that asks. */
function drawn(element, draw) {
  let isSeen = false;
  let isAsked = false;
  const redraw = () => {
    if (!isSeen || isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      draw();
    });
  };
  element.addEventListener("draw", () => {
    isSeen = true;
    draw();
    element.dispatchEvent(new Event("drawn"));
  }, { once: true });
  observer.observe(element);
  redraws.push(redraw);
  return redraw;
}

/* ---- pictures ---- */

function picture(run, row, article) {
  const tile = article.querySelector(`[data-row="${row}"] img`);
  if (tile) {
    const image = make("img", { src: tile.src, alt: "" });
    if (tile.classList.contains("crisp")) image.className = "crisp";
    return image;
  }
  const [path, base64, width, height] = run.images[row] || [""];
  if (!base64) return make("span", { className: "no-picture", textContent: path });
  const image = make("img", { src: `data:image/webp;base64,${base64}`, alt: "", width, height });
  if (Math.max(width, height) <= 48) image.className = "crisp";
  return image;
}

/* ---- one selection ---- */

function setUpSelection(run) {
  const article = document.getElementById(`run-${run.number}`);
  const byPlace = new Map();
  const chosenRows = new Map(run.chosen.map((image) => [image.row, image]));
  article.querySelectorAll(".tile").forEach((tile, number) => {
    const image = run.chosen[number];
    tile.dataset.row = image.row;
    byPlace.set(tile, image);
    tile.addEventListener("click", () => showDetail(run, article, byPlace, tile, chosenRows));
  });
  const state = { nFirst: Number(article.querySelector(".first").max), label: null,
    unmatched: false };
  const redrawChosen = setUpChosen(run, article, state);
  const redrawMap = setUpMap(run, article, state, chosenRows);
  article.querySelector(".first").addEventListener("input", (event) => {
    state.nFirst = Number(event.target.value);
    redrawChosen();
    redrawMap();
  });
}

function setUpChosen(run, article, state) {
  const slider = article.querySelector(".first");
  const output = article.querySelector(".slider output");
  const summary = article.querySelector(".first-summary");
  const curve = article.querySelector(".curve");
  const tiles = Array.from(article.querySelectorAll(".tiles > li"));
  const redrawCurve = drawn(curve, () => drawCurve(curve, run, state.nFirst));
  slider.disabled = slider.max === "1";
  if (run.curve.length < 2) curve.hidden = true;
  const update = () => {
    output.textContent = state.nFirst;
    slider.setAttribute("aria-valuetext", `first ${state.nFirst} of each class`);
    let nShown = 0;
    for (const tile of tiles) {
      tile.hidden = Number(tile.dataset.rank) >= state.nFirst;
      nShown += !tile.hidden;
    }
    summary.textContent =
      `${nShown.toLocaleString("en")} images · objective ${format(run.curve[state.nFirst - 1] ?? null)}`;
    redrawCurve();
  };
  const filter = article.querySelector(".class-filter");
  if (filter) {
    filter.addEventListener("change", () => {
      for (const section of article.querySelectorAll(".class")) {
        section.hidden = filter.value !== "" && section.dataset.label !== filter.value;
      }
    });
  }
  update();
  return update;
}

function setUpMap(run, article, state, chosenRows) {
  const element = article.querySelector(".map");
  if (!element) return () => {};
  const redraw = drawn(element, () => drawMap(element, run, state));
  element.addEventListener("drawn", () => {
    element.on("plotly_hover", (event) => showCard(run, article, event, chosenRows));
    element.on("plotly_click", (event) => showCard(run, article, event, chosenRows));
    element.on("plotly_unhover", hideCard);
    element.on("plotly_relayout", hideCard);
  });
  if (isByClass(run)) {
    const legend = article.querySelector(".legend");
    run.classes.forEach((name, label) => {
      const dot = make("i", { className: "dot", ariaHidden: "true" });
      dot.style.background = SERIES[label];
      legend.append(make("li", { className: "of-class" }, dot, make("span", { textContent: name })));
    });
  }
  const filter = article.querySelector(".map-class");
  if (filter) {
    filter.addEventListener("change", () => {
      state.label = filter.value === "" ? null : Number(filter.value);
      redraw();
    });
  }
  article.querySelector(".map-unmatched").addEventListener("change", (event) => {
    state.unmatched = event.target.checked;
    article.querySelector(".of-unmatched").hidden = !state.unmatched;
    redraw();
  });
  return redraw;
}

const card = document.getElementById("card");

function showCard(run, article, event, chosenRows) {
  const place = event.points[0].customdata;
  const row = run.plane.row[place];
  const chosen = chosenRows.get(row);
  const rank = run.plane.rank[place];
  const what = rank >= 0 ? `chosen, rank ${rank + 1}`
    : run.plane.unmatched[place] ? "left unmatched" : "in the pool";
  const path = chosen ? chosen.path : (run.images[row] || [""])[0];
  const shown = picture(run, row, article);
  card.replaceChildren(...(shown.tagName === "IMG" ? [shown] : []),
    make("p", { textContent: path }),
    make("p", { className: "sub", textContent: `${run.classes[run.plane.label[place]]} · ${what}` }));
  card.hidden = false;
  const at = event.event.touches ? event.event.touches[0] : event.event;
  const left = at.clientX + 18 + card.offsetWidth > window.innerWidth
    ? at.clientX - card.offsetWidth - 18 : at.clientX + 18;
  const top = Math.min(at.clientY + 12, window.innerHeight - card.offsetHeight - 8);
  card.style.left = `${Math.max(8, left)}px`;
  card.style.top = `${Math.max(8, top)}px`;
}

function hideCard() {
  card.hidden = true;
}

/* ---- one chosen image ---- */

const detail = document.getElementById("detail");
let step = () => {};

function showDetail(run, article, byPlace, tile, chosenRows) {
  const image = byPlace.get(tile);
  document.getElementById("detail-title").textContent = image.path;
  document.getElementById("detail-picture").replaceChildren(picture(run, image.row, article));
  const facts = [["Class", run.classes[image.label]], ["Rank", String(image.rank + 1)],
    [image.rank ? "Change of objective" : "Objective alone", format(-image.gain)],
    ["Stands for", `${image.weight.toLocaleString("en", { maximumFractionDigits: 1 })} images`],
    ["SHA-256", image.sha256 || "not known"]];
  document.getElementById("detail-facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  document.getElementById("detail-near").hidden = image.near.length === 0;
  document.getElementById("detail-list").replaceChildren(...image.near.map(([row, distance]) => {
    const other = chosenRows.get(row);
    const path = other ? other.path : run.images[row][0];
    const item = make("li", { title: path }, picture(run, row, article),
      make("span", { className: "caption", textContent: distance.toFixed(2) }));
    item.querySelector("img")?.setAttribute("alt", path);
    if (other) item.className = "is-chosen";
    return item;
  }));
  const tiles = Array.from(byPlace.keys()).filter((each) => each.offsetParent !== null);
  const place = tiles.indexOf(tile);
  step = (by) => {
    const next = tiles[place + by];
    if (next) showDetail(run, article, byPlace, next, chosenRows);
  };
  document.getElementById("detail-previous").disabled = place <= 0;
  document.getElementById("detail-next").disabled = place < 0 || place >= tiles.length - 1;
  if (!detail.open) detail.showModal();
  detail.onclose = () => tile.focus();
}

function setUpDetail() {
  detail.querySelector("[data-close]").addEventListener("click", () => detail.close());
  detail.addEventListener("click", (event) => {
    if (event.target === detail) detail.close();
  });
  document.getElementById("detail-previous").addEventListener("click", () => step(-1));
  document.getElementById("detail-next").addEventListener("click", () => step(1));
  detail.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}

/* ---- tables ---- */

function sortKey(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.classList.contains("n") ? null : cell.textContent.trim();
}

function compareKeys(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // what is empty comes last
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function setUpSorting(table) {
  table.addEventListener("click", (event) => {
    const heading = event.target.closest("thead button")?.closest("th");
    if (!heading) return;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [sortKey(row.cells[heading.cellIndex]), row]);
    rows.sort((a, b) => compareKeys(a[0], b[0], sign));
    body.append(...rows.map(([, row]) => row));
  });
}

/* ---- one comparison ---- */

function setUpComparison(comparison) {
  const article = document.getElementById(`comparison-${comparison.number}`);
  const setting = article.querySelector(".setting");
  const measure = article.querySelector(".measure");
  const chart = article.querySelector(".bars");
  comparison.settings.forEach((each, place) => setting.append(make("option", { value: place,
    textContent: `${each.n_per_class} per class · ${each.space} · ${each.split}` })));
  comparison.measures.forEach((each, place) => measure.append(make("option", { value: place,
    textContent: each.title })));
  const cells = new Map(comparison.cells.map(([s, method, m, mean, sd, n, note]) =>
    [`${s},${method},${m}`, { mean, sd, n, note }]));
  const cell = (method, m) => cells.get(`${setting.value},${method},${m}`);
  const redraw = drawn(chart, () => {
    const entries = comparison.methods.map((method, place) =>
      ({ ...method, mean: null, ...cell(place, measure.value) }));
    drawComparison(chart, entries, comparison.measures[measure.value]);
  });
  const fill = () => fillMatrix(article, comparison, cell);
  setting.addEventListener("change", () => { fill(); redraw(); });
  measure.addEventListener("change", redraw);
  fill();
}

function fillMatrix(article, comparison, cell) {
  const table = article.querySelector(".matrix");
  const shown = comparison.measures.map((_, m) => m)
    .filter((m) => comparison.methods.some((_, place) => cell(place, m)));
  const isMethod = (place) => comparison.methods[place].kind !== "reference";
  const best = new Map(shown.map((m) => {
    const values = comparison.methods
      .map((_, place) => (isMethod(place) ? cell(place, m)?.mean : null))
      .filter((mean) => mean !== null && mean !== undefined);
    return [m, comparison.measures[m].better === "lower" ? Math.min(...values)
      : Math.max(...values)];
  }));
  const heading = (text, properties, sub) => make("th", { scope: "col", ...properties },
    make("button", { type: "button", textContent: text }),
    ...(sub ? [make("small", { className: "direction", textContent: ` ${sub}` })] : []));
  const head = make("tr", {}, heading("Method", {}), ...shown.map((m) =>
    heading(comparison.measures[m].title, { className: "n" },
      comparison.measures[m].better === "lower" ? "lower" : "higher")));
  const notes = [];
  const rows = comparison.methods.map((method, place) => {
    const row = make("tr", {}, make("th", { scope: "row", textContent: method.title }));
    for (const m of shown) {
      row.append(matrixCell(cell(place, m), isMethod(place) ? best.get(m) : null, notes));
    }
    return row;
  }).filter((row) => row.querySelector("[data-value]"));
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  article.querySelector(".remarks").replaceChildren(
    ...notes.map((note, place) => make("li", { textContent: `${place + 1}  ${note}` })));
}

function matrixCell(found, best, notes) {
  const element = make("td", { className: "n" });
  if (!found) return element;
  element.append(format(found.mean));
  if (found.mean !== null) element.dataset.value = found.mean;
  if (found.sd !== null) element.append(make("small", { textContent: ` ± ${format(found.sd)}` }));
  if (found.mean !== null && found.mean === best) element.classList.add("best");
  if (found.note) {
    if (!notes.includes(found.note)) notes.push(found.note);
    element.append(make("sup", { textContent: notes.indexOf(found.note) + 1, title: found.note }));
  }
  return element;
}

/* ---- training runs ---- */

const DASHES = ["solid", "dash", "dot", "dashdot"];

function setUpTraining(training) {
  const section = document.getElementById(`training-${training.number}`);
  const chart = section.querySelector(".losses");
  if (!chart) return;
  const setting = section.querySelector(".setting");
  const measure = section.querySelector(".measure");
  training.settings.forEach((name, value) =>
    setting.append(make("option", { value, textContent: name })));
  training.measures.forEach((name, value) =>
    measure.append(make("option", { value, textContent: name })));
  section.querySelector(".setting-label").hidden = training.settings.length < 2;
  const colourOf = (group) => SERIES[group % SERIES.length];
  const dashOf = (group) => DASHES[Math.floor(group / SERIES.length) % DASHES.length];
  const boxes = training.groups.map(() =>
    make("input", { type: "checkbox", checked: true }));
  const redraw = drawn(chart, () => drawLosses(chart, training.runs
    .filter((run) => run.setting === Number(setting.value) && boxes[run.group].checked
      && run.values[measure.value])
    .map((run) => ({ name: run.name, steps: run.steps, values: run.values[measure.value],
      colour: colourOf(run.group), dash: dashOf(run.group) })), training.measures[measure.value]));
  section.querySelector(".groups").append(...training.groups.map((name, group) => {
    const dot = make("i", { className: "dot", ariaHidden: "true" });
    dot.style.background = colourOf(group);
    return make("li", {},
      make("label", {}, boxes[group], dot, make("span", { textContent: name, title: name })));
  }));
  for (const control of [setting, measure, ...boxes]) control.addEventListener("change", redraw);
}

/* ---- */

for (const run of DATA.selections) setUpSelection(run);
for (const comparison of DATA.comparisons) setUpComparison(comparison);
for (const training of DATA.trainings) setUpTraining(training);
for (const table of document.querySelectorAll("table.sortable")) setUpSorting(table);
setUpDetail();
setUpTheme();
addEventListener("scroll", hideCard, { passive: true });
document.documentElement.dataset.ready = "true";
