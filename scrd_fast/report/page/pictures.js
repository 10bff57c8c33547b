// Pictures and their maps on canvases, with the colours and the rule of the package's overlays.

const COLOURS = decode(DATA.colours); // 256 times red, green, blue
const STRENGTH = 0.65; // of the strongest colour, unless the slider says otherwise
const PLAIN = { opacity: STRENGTH, own: false, width: 255, level: 127.5 };

/** Values (height x width) of 8-bit steps between two values. */
function unpack(bytes, about, start) {
  const { height, width, low, high } = about;
  const step = (high - low) / 255;
  const steps = bytes.subarray(start, start + height * width);
  return { height, width, values: Float32Array.from(steps, (each) => low + each * step) };
}

/** The map of an item, null where it has none. */
function readMap(item) {
  return item.map === null ? null : unpack(decode(item.bytes), item.map, 0);
}

/** The distances of the three scales, empty where there are none. */
function readDistances(item) {
  if (item.distances === null) return [];
  const bytes = decode(item.bytes);
  let start = item.map === null ? 0 : item.map.height * item.map.width;
  return item.distances.map((about) => {
    const found = unpack(bytes, about, start);
    start += about.height * about.width;
    return found;
  });
}

/** The picture's pixels (ImageData), null where there is none. */
async function readPicture(item) {
  if (item.picture === null) return null;
  const image = new Image();
  image.src = `data:image/webp;base64,${item.picture}`;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Where colour begins and is strongest: the run's values, or the median and 99.9 % of one map. */
function scaleOf(map, own) {
  if (!own || map === null) return DATA.scale;
  const rising = Array.from(map.values).sort((a, b) => a - b);
  const at = (share) => rising[Math.min(rising.length - 1, Math.ceil(share * rising.length))];
  return [at(0.5), at(0.999)];
}

/** Between which two neighbours, and where between them, each of `count` pixels takes its value. */
function spread(count, size) {
  return Array.from({ length: count }, (_, i) => {
    const place = Math.min(size - 1, Math.max(0, ((i + 0.5) * size) / count - 0.5));
    const before = Math.floor(place);
    return [before, Math.min(before + 1, size - 1), place - before];
  });
}

/** Draw a picture with its window and, in colour over it, its map, enlarged bilinearly. */
function paint(canvas, picture, map, { opacity, own, width, level }) {
  const image = new ImageData(new Uint8ClampedArray(picture.data), picture.width, picture.height);
  const pixels = image.data;
  const window = Uint8ClampedArray.from({ length: 256 },
    (_, value) => ((value - level + width / 2) * 255) / width);
  for (let i = 0; i < pixels.length; i++) if (i % 4 < 3) pixels[i] = window[pixels[i]];
  if (map !== null) blend(image, map, scaleOf(map, own), opacity);
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function blend(image, map, [low, high], opacity) {
  const pixels = image.data;
  const range = Math.max(high - low, 1e-12);
  const columns = spread(image.width, map.width);
  const mix = (row, [left, right, along]) => map.values[row * map.width + left] * (1 - along)
    + map.values[row * map.width + right] * along;
  let at = 0;
  for (const [top, bottom, down] of spread(image.height, map.height)) {
    for (const column of columns) {
      const value = mix(top, column) * (1 - down) + mix(bottom, column) * down;
      const heat = Math.min(1, Math.max(0, (value - low) / range));
      const colour = 3 * Math.floor(heat * 255);
      const alpha = opacity * heat;
      for (let k = 0; k < 3; k++) {
        pixels[at + k] = (1 - alpha) * pixels[at + k] + alpha * COLOURS[colour + k];
      }
      at += 4;
    }
  }
}

/** Draw values alone, a pixel for each. */
function paintValues(canvas, { height, width, values }, [low, high]) {
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const heat = Math.min(1, Math.max(0, (value - low) / Math.max(high - low, 1e-12)));
    const colour = 3 * Math.floor(heat * 255);
    image.data.set([...COLOURS.subarray(colour, colour + 3), 255], 4 * i);
  });
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}
