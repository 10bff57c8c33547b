// Tables of groups and patients, whose counts follow the threshold, and the start of the page.

const MOST_ROWS = 50;

/** Images of each name, with the largest score; numbers tell whose each image is, -1 nobody's. */
function gather(names, numbers) {
  const rows = names.map((name) => ({ name, images: [], largest: -Infinity }));
  numbers.forEach((number, i) => {
    if (number < 0 || names[number] === null) return;
    rows[number].images.push(i);
    rows[number].largest = Math.max(rows[number].largest, SCORES[i]);
  });
  return rows.filter((row) => row.images.length > 0).sort((a, b) => b.largest - a.largest);
}

function startTable(kind, names, numbers) {
  if (byId(`${kind}-rows`) === null) return;
  const rows = gather(names, numbers);
  const update = () => {
    const text = byId(`${kind}-search`).value.toLowerCase();
    const found = rows.filter((row) => row.name.toLowerCase().includes(text));
    byId(`${kind}-rows`).replaceChildren(...found.slice(0, MOST_ROWS).map(makeRow));
    byId(`${kind}-status`).textContent = found.length > MOST_ROWS
      ? `${MOST_ROWS} of ${found.length} shown; search for others`
      : `${found.length} of ${rows.length}`;
  };
  byId(`${kind}-search`).addEventListener("input", update);
  listeners.push(update);
}

function makeRow({ name, images, largest }) {
  const howMany = (test) => images.filter(test).length;
  const numbers = [images.length, howMany((i) => LABELS[i] === 1), howMany((i) => LABELS[i] === 0),
    howMany((i) => isAbove(i, threshold)), show(largest)];
  return make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, name)),
    ...numbers.map((value) => make("td", { class: "number" }, String(value))));
}

startThreshold();
startHistogram();
if (LABELLED) startCurves();
startTable("groups", DATA.groupNames, DATA.groups);
startTable("patients", DATA.patientNames, DATA.patients);
startViewer();
setThreshold(FIRST);
startGallery();
