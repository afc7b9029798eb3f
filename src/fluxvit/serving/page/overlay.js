/** Draws which tokens of a clip were kept: over the playing video, and as a strip of small maps below it. */

const KEPT = "#ffd60a";
const DROPPED = "rgb(10 12 18 / 0.7)";
const UNSEEN = "rgb(10 12 18 / 0.5)"; // Over DROPPED: the network does not see this part of the frame.
const LARGEST_MAP = 56;
const SMALLEST_MAP = 26;
const MOST_LINES = 3; // Of maps; of a longer clip, those around the shown step are drawn.

export class Overlay {
  #video;
  #canvas;
  #strip;
  #answer = null;
  #maps = []; // For each step of time, for each patch, whether it was kept.
  #step = null;

  constructor(video, canvas, strip) {
    [this.#video, this.#canvas, this.#strip] = [video, canvas, strip];
    const redraw = () => this.draw(true);
    const sizes = new ResizeObserver(redraw);
    sizes.observe(canvas);
    sizes.observe(strip);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    for (const event of ["loadedmetadata", "seeked", "timeupdate"]) video.addEventListener(event, () => this.draw());
    if ("requestVideoFrameCallback" in video) {
      const frame = (_, shown) => {
        this.draw(false, shown.mediaTime);
        video.requestVideoFrameCallback(frame);
      };
      video.requestVideoFrameCallback(frame);
    }
  }

  /** Shows the kept tokens of an answer; null clears them. */
  show(answer) {
    this.#answer = answer;
    this.#maps = answer?.kept ? keptMaps(answer.kept) : [];
    this.draw(true);
  }

  /** Number of kept tokens at each step. */
  get counts() {
    return this.#maps.map((map) => map.filter(Boolean).length);
  }

  /** The tokens of the frame that is shown at `time`; nothing is drawn anew unless they differ or `force`. */
  draw(force = false, time = this.#video.currentTime) {
    const step = this.#maps.length && this.#video.videoWidth ? stepAt(time, this.#answer) : null;
    if (!force && step === this.#step) return;
    this.#step = step;
    this.#canvas.dataset.step = step ?? "";
    this.#drawOver();
    this.#drawStrip();
  }

  #drawOver() {
    const { context, width, height } = prepared(this.#canvas);
    const map = this.#maps[this.#step];
    if (!map) return;
    const { videoWidth, videoHeight } = this.#video;
    // The picture lies in the middle of the element, between bars if their aspects differ.
    const zoom = Math.min(width / videoWidth, height / videoHeight);
    const picture = { width: zoom * videoWidth, height: zoom * videoHeight };
    picture.x = (width - picture.width) / 2;
    picture.y = (height - picture.height) / 2;
    const { kept } = this.#answer;
    const view = {
      x: picture.x + kept.view.x * picture.width,
      y: picture.y + kept.view.y * picture.height,
      width: kept.view.width * picture.width,
      height: kept.view.height * picture.height,
    };
    const [, rows, columns] = kept.shape;
    const cells = new Path2D();
    forEachKept(map, columns, (x, y) => cells.rect(...cell(view, rows, columns, x, y)));
    const dropped = new Path2D(cells);
    dropped.rect(picture.x, picture.y, picture.width, picture.height);
    context.fillStyle = DROPPED;
    context.fill(dropped, "evenodd");
    if (kept.view.width < 0.99 || kept.view.height < 0.99) {
      const unseen = new Path2D();
      for (const box of [picture, view]) unseen.rect(box.x, box.y, box.width, box.height);
      context.fillStyle = UNSEEN;
      context.fill(unseen, "evenodd");
    }
    context.strokeStyle = KEPT;
    context.lineWidth = 2;
    context.lineCap = "round";
    context.stroke(outline(map, rows, columns, view));
  }

  #drawStrip() {
    if (!this.#maps.length) return;
    const [steps, rows, columns] = this.#answer.kept.shape;
    const width = this.#strip.clientWidth;
    const perLine = Math.min(steps, Math.max(1, Math.floor(width / SMALLEST_MAP)));
    const most = MOST_LINES * perLine;
    const first = most * Math.floor((this.#step ?? 0) / most);
    const pitch = width / perLine;
    const side = Math.min((0.85 * pitch) / columns, LARGEST_MAP / Math.max(rows, columns));
    const line = rows * side + 8;
    this.#strip.style.height = `${Math.ceil(Math.min(MOST_LINES, Math.ceil(steps / perLine)) * line)}px`;
    const { context } = prepared(this.#strip);
    const styles = getComputedStyle(this.#strip);
    const [keptColour, droppedColour, ink] = ["--kept", "--rule", "--ink"].map((name) => styles.getPropertyValue(name));
    const patch = side - Math.min(1, side / 4);
    this.#maps.slice(first, first + most).forEach((map, place) => {
      const left = ((place % perLine) + 0.5) * pitch - (side * columns) / 2;
      const top = Math.floor(place / perLine) * line;
      map.forEach((kept, i) => {
        context.fillStyle = kept ? keptColour : droppedColour;
        context.fillRect(left + (i % columns) * side, top + Math.floor(i / columns) * side, patch, patch);
      });
      if (first + place !== this.#step) return;
      context.fillStyle = ink;
      context.fillRect(left, top + rows * side + 3, side * columns - 1, 2);
    });
  }
}

/** For each step, a list of booleans, one for each patch. */
export function keptMaps({ shape: [steps, rows, columns], indices }) {
  const patches = rows * columns;
  const maps = Array.from({ length: steps }, () => Array(patches).fill(false));
  for (const index of indices) maps[Math.floor(index / patches)][index % patches] = true;
  return maps;
}

/** The step of the sampled frame that is nearest to `time`; null far outside of the sampled window. */
export function stepAt(time, { times, kept }) {
  let nearest = 0;
  times.forEach((at, i) => {
    if (Math.abs(at - time) < Math.abs(times[nearest] - time)) nearest = i;
  });
  const gap = times.length > 1 ? (times.at(-1) - times[0]) / (times.length - 1) : Infinity;
  if (Math.abs(times[nearest] - time) > 1.5 * gap + 0.1) return null;
  return Math.min(kept.shape[0] - 1, Math.floor(nearest / kept.tubelet));
}

function forEachKept(map, columns, act) {
  map.forEach((kept, i) => kept && act(i % columns, Math.floor(i / columns)));
}

function cell(view, rows, columns, x, y) {
  const [width, height] = [view.width / columns, view.height / rows];
  return [view.x + x * width, view.y + y * height, width, height];
}

/** The border of the kept patches. */
function outline(map, rows, columns, view) {
  const path = new Path2D();
  const isKept = (x, y) => x >= 0 && y >= 0 && x < columns && y < rows && map[y * columns + x];
  forEachKept(map, columns, (x, y) => {
    const [left, top, width, height] = cell(view, rows, columns, x, y);
    const sides = [
      [x - 1, y, left, top, left, top + height],
      [x + 1, y, left + width, top, left + width, top + height],
      [x, y - 1, left, top, left + width, top],
      [x, y + 1, left, top + height, left + width, top + height],
    ];
    for (const [nextX, nextY, fromX, fromY, toX, toY] of sides) {
      if (isKept(nextX, nextY)) continue;
      path.moveTo(fromX, fromY);
      path.lineTo(toX, toY);
    }
  });
  return path;
}

/** An empty canvas at the resolution of the screen, drawn in CSS pixels. */
function prepared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}
