// The service's page: its health and times, and one image scored.
const $ = (id) => document.getElementById(id);
const REFRESH_MS = 2000;
let token = "";
let shown = null; // what the canvas shows: {map, side, image, scale}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("access").hidden = false;
  return answer;
}

async function messageOf(answer) {
  try {
    return (await answer.json()).error || `status ${answer.status}`;
  } catch {
    return `status ${answer.status}`;
  }
}

// Lines "name{label="value",...} number" of Prometheus's text format.
function parseMetrics(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^(\w+)\{(.*)\} (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries(
      [...match[2].matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((each) => [each[1], each[2]]));
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return found;
}

function sumOf(metrics, name, model, accept = () => true) {
  return metrics
    .filter((each) => each.name === name && each.labels.model === model.name
      && each.labels.version === model.version && accept(each.labels))
    .reduce((sum, each) => sum + each.value, 0);
}

function fillRow(row, texts) {
  row.replaceChildren(...texts.map((text) => {
    const cell = document.createElement("td");
    cell.textContent = text;
    return cell;
  }));
}

let refreshing = false;

async function refresh() {
  if (refreshing) return;
  refreshing = true;
  try {
    const ready = await fetch("v2/health/ready");
    $("health").textContent = ready.ok ? "The service is ready." : "The service is not ready.";
    const index = await ask("v2/repository/index", { method: "POST" });
    if (!index.ok) return;
    const models = await index.json();
    const answer = await ask("metrics");
    const metrics = answer.ok ? parseMetrics(await answer.text()) : [];
    await showModels(models, metrics);
  } catch {
    $("health").textContent = "The service does not answer.";
  } finally {
    refreshing = false;
  }
}

async function metadataOf(path) {
  const answer = await ask(`v2/models/${path}`);
  return answer.ok ? answer.json() : { platform: "" };
}

const pathOf = (model) => `${model.name}/versions/${model.version}`;

async function showModels(models, metrics) {
  const rows = [];
  for (const model of models) {
    const row = document.createElement("tr");
    const count = sumOf(metrics, "scrd_request_seconds_count", model);
    const seconds = sumOf(metrics, "scrd_request_seconds_sum", model);
    fillRow(row, [
      model.name, model.version,
      model.state === "READY" ? (await metadataOf(pathOf(model))).platform : `not loaded. ${model.reason}`,
      sumOf(metrics, "scrd_requests_total", model, (labels) => labels.status === "OK"),
      sumOf(metrics, "scrd_requests_total", model, (labels) => labels.status !== "OK"),
      sumOf(metrics, "scrd_pending_images", model),
      count ? ((1000 * seconds) / count).toFixed(1) : "none yet"]);
    rows.push(row);
  }
  $("models").replaceChildren(...rows);
  const names = models.filter((model) => model.state === "READY")
    .map(pathOf);
  const options = [...$("model").options].map((option) => option.value);
  if (names.join() !== options.join()) {
    $("model").replaceChildren(...names.map((name) => new Option(
      name.replace("/versions/", ", version "), name)));
  }
}

// The body of a request for one encoded image, in the protocol's binary layout.
function requestFor(bytes) {
  const head = new TextEncoder().encode(JSON.stringify({
    inputs: [{ name: "files", datatype: "BYTES", shape: [1],
      parameters: { binary_data_size: bytes.length + 4 } }],
    outputs: ["score", "map", "error"].map((name) => ({ name, parameters: { binary_data: false } })),
  }));
  const body = new Uint8Array(head.length + 4 + bytes.length);
  body.set(head);
  new DataView(body.buffer).setUint32(head.length, bytes.length, true);
  body.set(bytes, head.length + 4);
  return { body, headers: { "Inference-Header-Content-Length": String(head.length),
    "Content-Type": "application/octet-stream" } };
}

async function scoreFile(file) {
  try {
    await scoreAndShow(file);
  } catch {
    $("result").textContent = "Not scored: the service does not answer.";
  }
}

async function scoreAndShow(file) {
  const model = $("model").value;
  if (!file || !model) return;
  $("picture").hidden = true;
  $("result").textContent = "Scoring.";
  const began = performance.now();
  const request = requestFor(new Uint8Array(await file.arrayBuffer()));
  const answer = await ask(`v2/models/${model}/infer`, { method: "POST", ...request });
  if (!answer.ok) {
    $("result").textContent = `Not scored: ${await messageOf(answer)}`;
    return;
  }
  const outputs = Object.fromEntries((await answer.json()).outputs.map((each) => [each.name, each]));
  const milliseconds = performance.now() - began;
  if (outputs.error.data[0]) {
    $("result").textContent = `Not scored: ${outputs.error.data[0]}`;
    return;
  }
  $("result").textContent =
    `Score ${outputs.score.data[0].toPrecision(5)}, in ${milliseconds.toFixed(0)} ms`;
  const image = await createImageBitmap(file).catch(() => null); // browsers show no DICOM
  const map = outputs.map.data;
  const known = (await metadataOf(model)).parameters?.map_scale;
  const scale = known ?? [0, map.reduce((a, b) => Math.max(a, b), 0)];
  shown = { map, side: outputs.map.shape[1], image, scale };
  $("picture").hidden = false;
  $("strength").parentElement.hidden = image === null;
  $("caption").textContent = [image === null
    ? "The anomaly map alone: this browser cannot show the image itself."
    : "The image with its anomaly map over it.",
  known ? "Its colours are the same for all images of this model."
    : "Its colours are of its own range, as the model is not calibrated: they tell where, not how"
      + " much."].join(" ");
  draw();
}

// From dark over red and yellow to white, as the value grows from 0 to 1.
function colourOf(value) {
  return [Math.min(1, 3 * value), Math.min(1, Math.max(0, 3 * value - 1)),
    Math.min(1, Math.max(0, 3 * value - 2))].map((each) => Math.round(255 * each));
}

function draw() {
  const { map, side, image, scale: [low, high] } = shown;
  const heat = new OffscreenCanvas(side, side);
  const pixels = new ImageData(side, side);
  map.forEach((value, i) => {
    const part = high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0;
    pixels.data.set([...colourOf(part), image === null ? 255 : Math.round(255 * part)], 4 * i);
  });
  heat.getContext("2d").putImageData(pixels, 0, 0);
  const canvas = $("overlay");
  canvas.width = 512;
  canvas.height = image === null ? 512 : Math.round((512 * image.height) / image.width);
  const context = canvas.getContext("2d");
  if (image !== null) {
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = Number($("strength").value);
  }
  context.drawImage(heat, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", $("caption").textContent);
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("access").hidden = true;
  refresh();
});
$("file").addEventListener("change", (event) => scoreFile(event.target.files[0]));
$("strength").addEventListener("input", draw);
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") scoreFile(event.dataTransfer.files[0]);
  });
}
refresh();
setInterval(refresh, REFRESH_MS);
