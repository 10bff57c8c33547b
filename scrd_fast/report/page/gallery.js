// The gallery: which images are shown, in which order, a page at a time.

const PER_PAGE = 24;
const collator = new Intl.Collator(undefined, { numeric: true });
let chosen = []; // what the filters leave, in order
let page = 0;

function nameOf(item) {
  return item.frame === null ? item.name : `${item.name}, image ${item.frame + 1}`;
}

function patientOf(item) {
  return DATA.patientNames[DATA.patients[item.at]];
}

/** What the threshold makes of an image, in words and as a class of its badge. */
function judge(item) {
  const label = LABELS[item.at];
  const called = isAbove(item.at, threshold);
  const words = called ? ["called anomalous", "called"] : ["called normal", "calm"];
  if (label === -1) return words;
  const right = called === (label === 1);
  const outcome = called ? (right ? "found" : "false alarm") : (right ? "spared" : "missed");
  return [`${label === 1 ? "anomalous" : "normal"}: ${outcome}`,
    right ? words[1] : `${words[1]} wrong`];
}

const ORDERS = {
  falling: (a, b) => SCORES[b.at] - SCORES[a.at],
  rising: (a, b) => SCORES[a.at] - SCORES[b.at],
  name: (a, b) => collator.compare(a.name, b.name) || a.frame - b.frame,
  p: (a, b) => (a.p ?? 2) - (b.p ?? 2) || ORDERS.falling(a, b),
  patient: (a, b) => collator.compare(patientOf(a) ?? "\uffff", patientOf(b) ?? "\uffff")
    || ORDERS.falling(a, b),
};

const DECISIONS = {
  "": () => true,
  above: (label, called) => called,
  below: (label, called) => !called,
  alarms: (label, called) => called && label === 0,
  missed: (label, called) => !called && label === 1,
};

function choose() {
  const text = byId("filter-name").value.toLowerCase();
  const label = byId("filter-label").value;
  const group = byId("filter-group").value;
  const decided = DECISIONS[byId("filter-decision").value];
  chosen = DATA.items.filter((item) => nameOf(item).toLowerCase().includes(text)
    && (label === "" || LABELS[item.at] === Number(label))
    && (group === "" || DATA.groups[item.at] === Number(group))
    && decided(LABELS[item.at], isAbove(item.at, threshold)));
  chosen.sort(ORDERS[byId("sort").value]);
}

/** Make the cards of the page anew; resolves when all pictures are drawn. */
async function showGallery() {
  choose();
  const pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const cards = chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(makeCard);
  byId("cards").replaceChildren(...cards.map((card) => card.element));
  byId("gallery-status").textContent = `${chosen.length} of ${count(DATA.items.length, "image")}`;
  byId("page-number").textContent = `page ${page + 1} of ${pages}`;
  enable("page-before", page > 0, "page-after");
  enable("page-after", page < pages - 1, "page-before");
  await Promise.all(cards.map((card) => card.drawn));
}

function makeCard(item, place) {
  const canvas = make("canvas", { width: 1, height: 1, "aria-hidden": "true" });
  const badge = make("span");
  showBadge(badge, item);
  const button = make("button", { type: "button", title: nameOf(item) }, canvas,
    make("bdi", { class: "name" }, nameOf(item)),
    make("span", { class: "score" }, make("span", {}, `score ${show(SCORES[item.at], 3)}`), " ",
      make("span", {}, item.p === null ? "" : `p ${show(item.p, 2)}`)), badge);
  button.addEventListener("click", () => openViewer(chosen, page * PER_PAGE + place));
  const element = make("li", { "data-at": item.at }, button);
  return { element, drawn: drawCard(canvas, item) };
}

async function drawCard(canvas, item) {
  const picture = await readPicture(item);
  if (picture !== null) paint(canvas, picture, readMap(item), PLAIN);
}

function showBadge(badge, item) {
  const [words, kind] = judge(item);
  badge.textContent = words;
  badge.setAttribute("class", `badge ${kind}`);
}

/** After a move of the threshold: other badges, and other cards where they are chosen by it. */
function followThreshold() {
  if (byId("filter-decision").value !== "") {
    showGallery();
    return;
  }
  const cards = byId("cards").children;
  chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE)
    .forEach((item, i) => showBadge(cards[i].querySelector(".badge"), item));
}

async function startGallery() {
  byId("filter-group").append(
    ...DATA.groupNames.map((name, i) => make("option", { value: i }, name)));
  const restart = () => {
    page = 0;
    showGallery();
  };
  byId("filter-name").addEventListener("input", restart);
  for (const id of ["sort", "filter-label", "filter-group", "filter-decision"]) {
    byId(id).addEventListener("change", restart);
  }
  const turn = (pages) => {
    page += pages;
    showGallery();
  };
  byId("page-before").addEventListener("click", () => turn(-1));
  byId("page-after").addEventListener("click", () => turn(1));
  await showGallery();
  listeners.push(followThreshold);
  performance.mark("gallery drawn"); // how long opening took
}
