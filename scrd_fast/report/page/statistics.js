// Counts and shares at a threshold, with intervals, and the curves of all thresholds.

const Z = 1.959963984540054; // 97.5 % of a normal distribution lie below
const DISTINCT = [...new Set(Array.from(SCORES).sort((a, b) => a - b))]; // rising

/** Which of the images lie above a threshold; compared as float32, as the engine does. */
function isAbove(i, threshold) {
  return SCORES[i] > Math.fround(threshold);
}

/** How many images a threshold judges in which way. */
function countOutcomes(threshold) {
  const counts = { above: 0, found: 0, missed: 0, alarms: 0, spared: 0 };
  for (let i = 0; i < SCORES.length; i++) {
    const above = isAbove(i, threshold);
    if (above) counts.above++;
    if (LABELS[i] === 1) above ? counts.found++ : counts.missed++;
    if (LABELS[i] === 0) above ? counts.alarms++ : counts.spared++;
  }
  return counts;
}

/**
 * A share of images with its 95 % interval; null where there is none of them.
 *
 * inside and hit tell of an image, by its number, whether it counts, and whether it is a hit.
 */
function estimateShare(inside, hit) {
  const sizes = new Map();
  const hits = new Map();
  for (let i = 0; i < SCORES.length; i++) {
    if (!inside(i)) continue;
    const patient = DATA.patients[i];
    sizes.set(patient, (sizes.get(patient) || 0) + 1);
    hits.set(patient, (hits.get(patient) || 0) + (hit(i) ? 1 : 0));
  }
  return estimate([...sizes.values()], [...hits.values()]);
}

/** The share of hits with its interval; sizes, hits: of each patient. */
function estimate(sizes, hits) {
  const images = sum(sizes);
  if (images === 0) return null;
  const value = sum(hits) / images;
  const patients = sizes.length;
  if (images === patients) {
    const [low, high] = wilson(value, images);
    return { value, low, high };
  }
  if (patients < 2) return { value, low: 0, high: 1 };
  // As many as Korn and Graubard leave (Survey Methodology 24, 1998).
  const left = (images / designEffect(sizes, hits)) * (Z / quantileOfT(patients - 1)) ** 2;
  const [low, high] = wilson(value, left);
  return { value, low, high };
}

/**
 * By how much the variance of a share is larger than that of as many images of different patients:
 * Rao and Scott, Biometrics 48, 1992. At least 1. Where all images agree nothing tells it, and a
 * patient counts as one image; where few patients differ little does, and it lies between.
 */
function designEffect(sizes, hits) {
  const images = sum(sizes);
  const patients = sizes.length;
  const largest = images / patients;
  const share = sum(hits) / images;
  if (share === 0 || share === 1) return largest;
  const squares = sum(sizes.map((size, k) => (hits[k] - share * size) ** 2));
  const variance = (patients / (patients - 1)) * squares / images ** 2;
  const found = Math.max(1, variance / (share * (1 - share) / images));
  const telling = Math.min(hits.filter((each) => each > 0).length,
    sizes.filter((size, k) => hits[k] < size).length); // patients with the rarer outcome
  const alike = Math.min(1, (found - 1) / (largest - 1)); // correlation of a patient's images
  return Math.max(found, 1 + (largest - 1) * (alike * telling + 1) / (telling + 1));
}

/** 97.5 % of Student's distribution lie below; to 1 % (Abramowitz and Stegun, 26.7.5). */
function quantileOfT(degrees) {
  if (degrees < 3) return [Infinity, 12.706204736, 4.30265273][degrees];
  return Z + (Z ** 3 + Z) / (4 * degrees) + (5 * Z ** 5 + 16 * Z ** 3 + 3 * Z) / (96 * degrees ** 2)
    + (3 * Z ** 7 + 19 * Z ** 5 + 17 * Z ** 3 - 15 * Z) / (384 * degrees ** 3);
}

/** Wilson's interval of a share of so many images, which need not be a whole number. */
function wilson(share, images) {
  const scale = 1 + Z ** 2 / images;
  const middle = (share + Z ** 2 / (2 * images)) / scale;
  const half = (Z / scale) * Math.sqrt(share * (1 - share) / images + Z ** 2 / (4 * images ** 2));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/**
 * The points of both curves, one for each threshold between two scores of images with a label,
 * from the highest on: false-positive rate, sensitivity (recall) and precision, which is 1 where
 * nothing is found.
 */
function listPoints() {
  const known = [...SCORES.keys()].filter((i) => LABELS[i] >= 0);
  known.sort((a, b) => SCORES[b] - SCORES[a]);
  const anomalous = known.filter((i) => LABELS[i] === 1).length;
  const normal = known.length - anomalous;
  const points = [{ alarms: 0, recall: 0, precision: 1 }];
  let found = 0;
  known.forEach((i, place) => {
    found += LABELS[i];
    if (place + 1 < known.length && SCORES[known[place + 1]] === SCORES[i]) return;
    points.push({ alarms: (place + 1 - found) / normal, recall: found / anomalous,
      precision: found / (place + 1) });
  });
  return points;
}
