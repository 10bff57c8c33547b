// The histogram, in which the threshold can be moved, and the two curves.

const KINDS = [[0, "normal", "normal"], [1, "anomalous", "anomalous"], [-1, "unknown", "no label"]];
const BINS = 46;
const BOX = { left: 56, right: 470, top: 12, bottom: 228 }; // of the histogram
const SQUARE = { left: 56, right: 388, top: 10, bottom: 332 }; // of a curve

/** Round numbers within two limits, about so many. */
function listTicks(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const ticks = [];
  const first = Math.ceil(low / step);
  for (let k = 0; k <= 3 * about && (first + k) * step <= high; k++) {
    ticks.push(Number(((first + k) * step).toPrecision(9)));
  }
  return ticks;
}

/** From a value between two limits to its place in a picture. */
function scale(low, high, start, end) {
  return (value) => start + ((value - low) / (high - low || 1)) * (end - start);
}

function drawLine(kind, x1, y1, x2, y2) {
  return draw("line", { class: kind, x1, y1, x2, y2 });
}

function drawText(kind, x, y, anchor, text) {
  return draw("text", { class: kind, x, y, "text-anchor": anchor }, text);
}

function drawAxes(svg, { left, right, top, bottom }, x, y, xTicks, yTicks, xName, yName) {
  for (const tick of xTicks) {
    svg.append(drawLine("grid", x(tick), top, x(tick), bottom),
      drawText("tick", x(tick), bottom + 18, "middle", show(tick)));
  }
  for (const tick of yTicks) {
    svg.append(drawLine("grid", left, y(tick), right, y(tick)),
      drawText("tick", left - 6, y(tick) + 4, "end", show(tick)));
  }
  const name = drawText("axis", 0, 0, "middle", yName);
  name.setAttribute("transform", `translate(14 ${(top + bottom) / 2}) rotate(-90)`);
  svg.append(name, drawText("axis", (left + right) / 2, bottom + 40, "middle", xName),
    draw("rect", { class: "frame", x: left, y: top, width: right - left, height: bottom - top }));
}

/** How many scores of each kind lie in each of the bins between two limits. */
function fillBins(start, end) {
  const bins = KINDS.map(() => new Array(BINS).fill(0));
  SCORES.forEach((score, i) => {
    const bin = Math.min(BINS - 1, Math.floor(((score - start) / (end - start)) * BINS));
    bins[KINDS.findIndex(([label]) => label === LABELS[i])][bin]++;
  });
  return bins;
}

function startHistogram() {
  const svg = byId("histogram");
  const [low, high] = [DISTINCT[0] ?? 0, DISTINCT.at(-1) ?? 1];
  const margin = (high - low) * 0.03 || 1e-3;
  const [start, end] = [low - margin, high + margin];
  const bins = fillBins(start, end);
  const tallest = Math.max(1, ...bins[0].map((_, k) => sum(bins.map((kind) => kind[k]))));
  const x = scale(start, end, BOX.left, BOX.right);
  const y = scale(0, tallest * 1.05, BOX.bottom, BOX.top);
  drawAxes(svg, BOX, x, y, listTicks(start, end, 6),
    listTicks(0, tallest, 5).filter(Number.isInteger), "score", "images");
  const step = (BOX.right - BOX.left) / BINS;
  for (let k = 0; k < BINS; k++) {
    let below = 0;
    KINDS.forEach(([, kind], place) => {
      const above = below + bins[place][k];
      if (above > below) {
        svg.append(draw("rect", { class: kind, x: BOX.left + k * step + 0.5, y: y(above),
          width: step - 1, height: y(below) - y(above) }));
      }
      below = above;
    });
  }
  for (const [label, kind, name] of KINDS) {
    if (LABELS.includes(label)) {
      byId("legend").append(make("span", { class: `swatch ${kind}` }), name);
    }
  }
  const line = drawLine("now", 0, BOX.top - 6, 0, BOX.bottom);
  svg.append(line);
  listeners.push((counts) => {
    const at = Math.min(BOX.right, Math.max(BOX.left, x(threshold)));
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    svg.setAttribute("aria-label", `Histogram of ${count(SCORES.length, "score")} from ${
      show(low)} to ${show(high)}; ${counts.above} lie above the threshold`);
  });
  const toScore = scale(BOX.left, BOX.right, start, end);
  letMove(svg, (place) => setThreshold(Number(toScore(place).toPrecision(6))));
}

/** Call `move` with the place along the histogram, in its units, while a pointer is pressed. */
function letMove(svg, move) {
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    move(Math.min(BOX.right, Math.max(BOX.left, place)));
  };
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    follow(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) follow(event);
  });
}

function startCurves() {
  const points = listPoints();
  const known = LABELS.filter((label) => label >= 0);
  const share = sum(known) / known.length;
  startCurve("roc", "ROC curve", "1 − specificity", "sensitivity",
    points.map((point) => [point.alarms, point.recall]), [[0, 0], [1, 1]],
    ({ found, missed, alarms, spared }) => [alarms / (alarms + spared), found / (found + missed)]);
  startCurve("pr", "Precision-recall curve", "recall (sensitivity)", "precision",
    points.map((point) => [point.recall, point.precision]), [[0, share], [1, share]],
    ({ found, missed, alarms }) => [
      found / (found + missed), found + alarms > 0 ? found / (found + alarms) : 1]);
}

/** A curve, what chance gives, and the point of the threshold, which `locate` makes of counts. */
function startCurve(id, name, xName, yName, points, chance, locate) {
  const svg = byId(id);
  const x = scale(0, 1, SQUARE.left, SQUARE.right);
  const y = scale(0, 1, SQUARE.bottom, SQUARE.top);
  const ticks = [0, 0.2, 0.4, 0.6, 0.8, 1];
  const drawCurve = (kind, pairs) => draw("polyline", { class: kind,
    points: thin(pairs.map(([a, b]) => [x(a), y(b)])).map((pair) => pair.join()).join(" ") });
  drawAxes(svg, SQUARE, x, y, ticks, ticks, xName, yName);
  const dot = draw("circle", { class: "dot", r: 6 });
  svg.append(drawCurve("chance", chance), drawCurve("curve", points), dot);
  listeners.push((counts) => {
    const [a, b] = locate(counts);
    dot.setAttribute("cx", x(a));
    dot.setAttribute("cy", y(b));
    svg.setAttribute("aria-label", `${name}; at the threshold ${xName} is ${a.toFixed(3)} and ${
      yName} ${b.toFixed(3)}`);
  });
}

/** Points of a curve without those within a pixel of the one before, but for the last. */
function thin(points) {
  const kept = [points[0]];
  points.forEach(([x, y], i) => {
    const far = Math.abs(x - kept.at(-1)[0]) + Math.abs(y - kept.at(-1)[1]) > 0.7;
    if (far || i === points.length - 1) kept.push([x, y]);
  });
  return kept.map((point) => point.map((value) => value.toFixed(1)));
}
