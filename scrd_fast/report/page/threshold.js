// The threshold: a slider over all different decisions, a number, and what follows from them.

const FIRST = DATA.threshold ?? between(Math.floor(DISTINCT.length / 2));
const listeners = [];
let threshold = FIRST;

/** How many different scores do not lie above a threshold: the place of the slider. */
function placeOf(value) {
  let low = 0;
  let high = DISTINCT.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (DISTINCT[middle] > Math.fround(value)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** A threshold with so many different scores not above it, in as few digits as will do. */
function between(place) {
  if (DISTINCT.length === 0) return 0;
  const [least, most] = [DISTINCT[0], DISTINCT.at(-1)];
  const gap = Math.max((most - least) / DISTINCT.length, Math.abs(most) * 1e-6, 1e-6);
  const low = place === 0 ? least - gap : DISTINCT[place - 1];
  const high = place === DISTINCT.length ? low + gap : DISTINCT[place];
  for (let digits = 2; digits < 10; digits++) {
    const value = Number(((low + high) / 2).toPrecision(digits));
    if (placeOf(value) === place) return value;
  }
  return low; // the two are neighbours
}

/** Move the threshold and tell everything that shows it. */
function setThreshold(value) {
  threshold = value;
  const place = placeOf(value);
  const slider = byId("threshold");
  slider.value = place;
  byId("threshold-value").value = String(value);
  const counts = countOutcomes(value);
  slider.setAttribute("aria-valuetext", `${show(value, 6)}, ${count(counts.above, "image")} above`);
  byId("status").textContent = describeCounts(counts);
  if (LABELLED) showFigures(counts);
  for (const listen of listeners) listen(counts);
}

function describeCounts(counts) {
  const above = `${counts.above} of ${count(SCORES.length, "image")} above ${show(threshold, 6)}`;
  return LABELLED ? `${above}: ${counts.found} found, ${counts.missed} missed, ${
    count(counts.alarms, "false alarm")}, ${counts.spared} spared.` : `${above}.`;
}

function showFigures(counts) {
  for (const name of ["found", "missed", "alarms", "spared"]) byId(name).textContent = counts[name];
  const above = (i) => isAbove(i, threshold);
  const shares = {
    sensitivity: estimateShare((i) => LABELS[i] === 1, above),
    specificity: estimateShare((i) => LABELS[i] === 0, (i) => !above(i)),
    precision: estimateShare((i) => LABELS[i] >= 0 && above(i), (i) => LABELS[i] === 1),
  };
  for (const [name, share] of Object.entries(shares)) {
    byId(name).textContent = share === null ? "–" : share.value.toFixed(3);
    byId(`${name}-interval`).textContent = share === null ? ""
      : `${share.low.toFixed(3)} to ${share.high.toFixed(3)}`;
  }
  const { found, missed, alarms } = counts;
  byId("f1").textContent = (2 * found / (2 * found + missed + alarms)).toFixed(3);
}

function startThreshold() {
  const slider = byId("threshold");
  slider.max = DISTINCT.length;
  slider.addEventListener("input", () => {
    const place = Number(slider.value);
    setThreshold(place === placeOf(FIRST) ? FIRST : between(place));
  });
  const field = byId("threshold-value");
  // What an arrow key adds there: a hundredth of the scores' range, or less.
  const span = DISTINCT.length > 1 ? DISTINCT.at(-1) - DISTINCT[0] : 1;
  field.step = Number((10 ** Math.floor(Math.log10(span / 100))).toPrecision(1));
  field.addEventListener("change", () => {
    const value = field.valueAsNumber;
    setThreshold(Number.isFinite(value) ? value : threshold);
  });
  byId("threshold-reset").addEventListener("click", () => setThreshold(FIRST));
}
