// The page's data: read from beside it or out of it; and which index each voxel of the shown label map has.

const about = JSON.parse(document.getElementById("about").textContent);
const HEADER_BYTES = 352;

// Drawn after the labels' own indices; names as the key under "Highlight differences" gives them.
const DIFFERENCES = [
  { name: "Agreed", colour: "#c3cad3" },
  { name: "Missed", colour: "#ff5c8a" },
  { name: "Added", colour: "#19d3f3" },
  { name: "Another label", colour: "#ffd43b" },
];

// A file of the page: unpacked from the element that holds it, or fetched; "progress" is told which part is there.
async function readFile(name, progress) {
  const inside = document.querySelector(`script[data-file="${name}"]`);
  if (inside) {
    const text = atob(inside.textContent);
    inside.remove();
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(unpacked).arrayBuffer();
  }
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is no longer served: is medcontext view still running?`);
  const bytes = new Uint8Array(Number(answer.headers.get("Content-Length")));
  let place = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return bytes.buffer;
    bytes.set(value, place);
    place += value.length;
    progress(place / bytes.length);
  }
}

// The indices in a label map's file, which was written with this page's number of labels in mind.
function indicesOf(buffer) {
  const bits = new DataView(buffer).getInt16(72, true);
  return bits === 8 ? new Uint8Array(buffer, HEADER_BYTES) : new Uint16Array(buffer, HEADER_BYTES);
}

// Fill "target" with what is drawn: visible labels of a map, or how it differs from the reference as far as visible
// labels go. Labels that are hidden count as background in both.
function drawIndices(target, map, reference, visible, differences) {
  const classes = visible.length;
  if (!differences) {
    const table = visible.map((shown, index) => (shown ? index : 0));
    for (let i = 0; i < target.length; i++) target[i] = table[map[i]];
    return;
  }
  const kind = new Uint16Array(classes * classes);
  for (let a = 0; a < classes; a++) for (let b = 0; b < classes; b++) kind[a * classes + b] = differenceOf(a, b, visible);
  for (let i = 0; i < target.length; i++) {
    const found = kind[reference[i] * classes + map[i]];
    target[i] = found < 0xffff ? classes + found : 0;
  }
}

// Which of DIFFERENCES a voxel is that is "a" in the reference and "b" in the other map; 0xffff where neither is seen.
function differenceOf(a, b, visible) {
  const was = visible[a] ? a : 0;
  const is = visible[b] ? b : 0;
  if (!was && !is) return 0xffff;
  if (was === is) return 0;
  return is ? (was ? 3 : 2) : 1;
}

// Millilitres of one voxel of the scan's own grid.
const voxelMl = about.voxelMl;

function ml(voxels) {
  const volume = voxels * voxelMl;
  if (volume > 0 && volume < 0.001) return "< 0.001";
  return volume >= 1000 ? Math.round(volume).toLocaleString("en") : String(Number(volume.toPrecision(volume < 1 ? 2 : 3)));
}

// Voxel index (of the shown voxels) of a point in mm, from the affine of the shown grid.
const toVoxel = inverse(about.affine);

function inverse(affine) {
  const [[a, b, c, x], [d, e, f, y], [g, h, i, z]] = affine;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((value) => value / det));
  return rows.map((row) => [...row, -(row[0] * x + row[1] * y + row[2] * z)]);
}

const apply = (matrix, point) => matrix.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const shownShape = about.shape.map((length, axis) => Math.ceil(length / about.step[axis]));

// The voxel of a label that lies nearest to the label's centre, in mm; null where the map has none.
function middleOf(map, index) {
  const [nx, ny] = shownShape;
  let count = 0;
  const sum = [0, 0, 0];
  for (let i = 0; i < map.length; i++) {
    if (map[i] !== index) continue;
    count++;
    sum[0] += i % nx;
    sum[1] += Math.floor(i / nx) % ny;
    sum[2] += Math.floor(i / (nx * ny));
  }
  if (!count) return null;
  const centre = sum.map((total) => total / count);
  const sizes = about.spacing.map((size, axis) => size * about.step[axis]);
  let nearest = Infinity;
  let voxel = null;
  for (let i = 0; i < map.length; i++) {
    if (map[i] !== index) continue;
    const place = [i % nx, Math.floor(i / nx) % ny, Math.floor(i / (nx * ny))];
    const apart = place.reduce((total, value, axis) => total + ((value - centre[axis]) * sizes[axis]) ** 2, 0);
    if (apart < nearest) [nearest, voxel] = [apart, place];
  }
  return apply(about.affine, voxel);
}
