// The viewer: one image, large, with its map, its window and, of a volume, its slices.

const viewer = { items: [], at: 0, item: null, picture: null, map: null };

function openViewer(items, at) {
  viewer.items = items;
  viewer.at = at;
  byId("viewer").showModal();
  showItem(items[at]);
}

/** Show an image; a later call overtakes one whose picture is still being read. */
async function showItem(item) {
  viewer.item = item;
  const picture = await readPicture(item);
  if (viewer.item !== item) return;
  viewer.picture = picture;
  viewer.map = readMap(item);
  byId("viewer-name").textContent = nameOf(item);
  byId("viewer-picture").hidden = picture === null;
  byId("viewer-without").hidden = picture !== null;
  enable("viewer-before", viewer.at > 0, "viewer-after");
  enable("viewer-after", viewer.at < viewer.items.length - 1, "viewer-before");
  showFacts(item);
  showSlices(item);
  showDistances(item);
  repaint();
}

function repaint() {
  const own = byId("own-scale").checked;
  const [low, high] = scaleOf(viewer.map, own);
  byId("bar-low").textContent = show(low, 3);
  byId("bar-high").textContent = show(high, 3);
  const [opacity, width, level] = ["opacity", "window", "level"]
    .map((id) => Number(byId(id).value));
  byId("opacity-value").textContent = `${opacity} %`;
  byId("window-value").textContent = width;
  byId("level-value").textContent = level;
  if (viewer.picture === null) return;
  const canvas = byId("viewer-picture");
  paint(canvas, viewer.picture, viewer.map, { own, opacity: opacity / 100, width, level });
  canvas.setAttribute("aria-label", `${nameOf(viewer.item)} with its anomaly map; colours from ${
    show(low, 3)} to ${show(high, 3)}`);
}

function showFacts(item) {
  const group = DATA.groups[item.at];
  const facts = [
    ["score", show(SCORES[item.at], 6)],
    ["p-value", item.p === null ? null : show(item.p, 3)],
    ["decision", isAbove(item.at, threshold) ? "called anomalous" : "called normal"],
    ["label", ["normal", "anomalous"][LABELS[item.at]] ?? null],
    ["group", group < 0 ? null : DATA.groupNames[group]],
    ["patient", patientOf(item)],
  ];
  byId("viewer-facts").replaceChildren(...facts.filter(([, value]) => value !== null)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", { dir: "auto" }, value)]));
}

/** The images that scroll together with this one, in the order of scoring. */
function volumeOf(item) {
  return item.volume === null ? [item] : DATA.items.filter((other) => other.volume === item.volume);
}

function showSlices(item) {
  const slices = volumeOf(item);
  byId("slice-row").hidden = slices.length === 1;
  byId("slice").max = slices.length - 1;
  byId("slice").value = slices.indexOf(item);
  const place = `${slices.indexOf(item) + 1} of ${slices.length} in this page`;
  byId("slice-number").textContent = place;
  byId("slice").setAttribute("aria-valuetext", place);
}

function showDistances(item) {
  byId("distances").replaceChildren(...readDistances(item).map((values, k) => {
    const canvas = make("canvas", { role: "img", "aria-label": `Distances of scale ${k + 1}` });
    paintValues(canvas, values, DATA.distanceScales[k]);
    const unused = DATA.weighting === "scale" ? "" : ", not used";
    const weight = item.weights === null ? "" : `, weight ${item.weights[k].toFixed(3)}${unused}`;
    return make("figure", {}, canvas, make("figcaption", {},
      `scale ${k + 1}, 1/${DATA.strides[k]} of the size${weight}`));
  }));
}

function goTo(at) {
  if (at < 0 || at >= viewer.items.length) return;
  viewer.at = at;
  showItem(viewer.items[at]);
}

function scrollSlices(by) {
  const slices = volumeOf(viewer.item);
  const next = slices[slices.indexOf(viewer.item) + by];
  if (next === undefined) return;
  const at = viewer.items.indexOf(next); // -1 where a filter left it out: the place stays
  if (at >= 0) viewer.at = at;
  showItem(next);
}

function resetWindow() {
  byId("window").value = PLAIN.width;
  byId("level").value = PLAIN.level;
  repaint();
}

/** Window and level by dragging, as viewers of medical images have it. */
function letDrag(canvas) {
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = event;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    byId("window").value = Number(byId("window").value) + (event.clientX - last.clientX);
    byId("level").value = Number(byId("level").value) + (event.clientY - last.clientY);
    last = event;
    repaint();
  });
  canvas.addEventListener("dblclick", resetWindow);
  canvas.addEventListener("wheel", (event) => {
    if (volumeOf(viewer.item).length === 1) return;
    event.preventDefault();
    scrollSlices(Math.sign(event.deltaY));
  }, { passive: false });
}

function startViewer() {
  const dialog = byId("viewer");
  const keys = { ArrowLeft: () => goTo(viewer.at - 1), ArrowRight: () => goTo(viewer.at + 1),
    ArrowUp: () => scrollSlices(-1), ArrowDown: () => scrollSlices(1) };
  dialog.addEventListener("keydown", (event) => {
    const held = event.ctrlKey || event.altKey || event.metaKey || event.shiftKey;
    if (held || event.target.matches("input") || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  byId("viewer-close").addEventListener("click", () => dialog.close());
  byId("viewer-before").addEventListener("click", () => goTo(viewer.at - 1));
  byId("viewer-after").addEventListener("click", () => goTo(viewer.at + 1));
  byId("slice").addEventListener("input", () => {
    const slices = volumeOf(viewer.item);
    scrollSlices(Number(byId("slice").value) - slices.indexOf(viewer.item));
  });
  for (const id of ["opacity", "window", "level", "own-scale"]) {
    byId(id).addEventListener("input", repaint);
  }
  byId("viewer-reset").addEventListener("click", () => {
    byId("opacity").value = 100 * STRENGTH;
    byId("own-scale").checked = false;
    resetWindow();
  });
  letDrag(byId("viewer-picture"));
  paintValues(byId("viewer-bar"), { height: 1, width: 256,
    values: Float32Array.from({ length: 256 }, (_, i) => i) }, [0, 255]);
}
