// Brings the data, the picture and the controls together.

// What is done with the mouse, and with which keys.
const HELP = [
  ["Click, drag", "Move the crosshair; turn the 3D view"],
  ["Wheel, pinch", "Next slice; wheel with Ctrl: zoom"],
  ["Right drag", "Level and width"],
  [["\u2190", "\u2192", "\u2191", "\u2193"], "Move the crosshair by a voxel"],
  [["PgUp", "PgDn"], "Next or previous slice"],
  [["T"], "Switch between label maps"],
  [["D"], "Highlight differences"],
  [["L"], "Hide or show labels"],
  [["O"], "Outline"],
  [["[", "]"], "Less or more fill"],
  [["W"], "Next window"],
  [["V"], "Next view"],
  [["+", "\u2212"], "Zoom"],
  [["R"], "Reset"],
];

const state = {
  view: "all",
  zoom: 1,
  map: about.maps.length > 1 ? 1 : 0,
  last: about.maps.length > 1 ? 1 : 0, // the map that T comes back to from the reference
  differences: false,
  visible: [true, ...about.labels.map(() => true)], // by index, the background's first
  hidden: false,
  fill: 0.4,
  outline: true,
  channel: 0,
  range: about.windows[0][0],
  goal: 0,
};

const picture = new Picture($("canvas"));
const maps = []; // class index of every shown voxel, for each label map

async function start() {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) throw new Error("This browser can't show volumes: it has no WebGL 2, or it is switched off.");
  const [longest, most] = [Math.max(...shownShape), gl.getParameter(gl.MAX_3D_TEXTURE_SIZE)];
  if (longest > most) throw new Error(`This device can show ${most} voxels along an axis; the scan has ${longest}.`);
  const parts = [about.file, ...about.maps.map((map) => map.file)];
  const buffers = [];
  for (const [n, name] of parts.entries()) {
    const say = (part) => notice(`Loading ${n ? about.maps[n - 1].title : "the scan"}: ${Math.round(100 * part)} %`);
    say(0);
    buffers.push(await readFile(name, say));
  }
  notice("Drawing");
  const [scan, ...labels] = buffers;
  maps.push(...labels.map(indicesOf));
  const colours = [...about.labels, ...DIFFERENCES].map((each) => each.colour);
  await picture.open(scan, labels.length ? labels[state.map].slice(0) : null, colours, state.range);
  picture.nv.onLocationChange = located;
  picture.nv.onIntensityChange = () => {
    state.range = { low: picture.scan.cal_min, high: picture.scan.cal_max };
    showState(state);
  };
  facts();
  makeControls(state, changed);
  changed("visible");
  changed("view");
  beginAtLabels();
  notice("");
}

// What changes when a part of the state has: "name" is the state's, or "reset".
function changed(name) {
  if (name === "reset") return reset();
  if (name === "map" && state.map > 0) state.last = state.map;
  if (["map", "visible", "differences", "hidden"].includes(name)) drawLabels();
  if (["fill", "outline"].includes(name)) style();
  if (name === "view") picture.setView(state.view);
  if (name === "zoom") {
    picture.setZoom(state.zoom);
    state.zoom = picture.zoom;
  }
  if (name === "channel") {
    picture.setChannel(state.channel);
    state.range = about.windows[state.channel][0];
  }
  if (["channel", "range"].includes(name)) picture.setRange(state.range.low, state.range.high);
  if (name === "goal") goTo(state.goal);
  showState(state);
  located();
}

function drawLabels() {
  if (maps.length) {
    const seen = state.hidden ? state.visible.map(() => false) : state.visible;
    drawIndices(picture.labels.img, maps[state.map], maps[0], seen, differing(state));
    picture.redrawLabels();
  }
  style();
}

function style() {
  const any = maps.length > 0 && !state.hidden && state.visible.some((shown, index) => shown && index > 0);
  const fill = differing(state) ? Math.max(state.fill, 0.8) : state.fill;
  picture.style({ fill, faint: state.fill / 3, outline: state.outline, any });
}

function goTo(index) {
  const place = middleOf(maps[state.map], index) ?? middleOf(maps[0], index);
  if (place) picture.goTo(place);
  else notice(`There is no ${about.labels[index - 1].name} in this label map.`);
  if (!place) setTimeout(() => notice(""), 2500);
}

// The middle of the largest label is a better beginning than the middle of the scan.
function beginAtLabels() {
  const voxels = about.maps[0]?.voxels ?? [];
  const largest = voxels.indexOf(Math.max(...voxels, 1));
  if (largest >= 0) goTo(largest + 1);
  else picture.moved();
}

function reset() {
  Object.assign(state, { zoom: 1, hidden: false, range: about.windows[state.channel][0] });
  state.visible.fill(true);
  for (const name of ["visible", "range", "zoom"]) changed(name);
  beginAtLabels();
}

// The crosshair has moved.
function located() {
  if (!picture.scan) return;
  const mm = picture.mm;
  const voxel = apply(toVoxel, mm).map((value, axis) => clamp(Math.round(value), 0, shownShape[axis] - 1));
  const place = voxel[0] + shownShape[0] * (voxel[1] + shownShape[1] * voxel[2]);
  const value = picture.scan.img[place + state.channel * shownShape.reduce((all, each) => all * each, 1)];
  const entries = [
    ["mm", mm.map((each) => each.toFixed(1)).join(", ")],
    ["voxel", voxel.map((each, axis) => each * about.step[axis]).join(", ")],
    ["value", String(Number(value.toPrecision(6)))],
  ];
  for (const [n, map] of maps.entries()) {
    const label = about.labels[map[place] - 1];
    entries.push([about.maps[n].title, label ? label.name : "\u2013", label?.colour]);
  }
  showReadout(entries);
  captions();
}

// What is written over the tiles: the plane and its slice, and the patient's sides.
function captions() {
  const tiles = state.view === "all" ? TILES.map(([name, place]) => [name, place, HALF]) : [[state.view, [0, 0], 1]];
  $("captions").replaceChildren(...tiles.map(([name, [left, top], size]) => {
    const { name: title, axis, sides = "" } = VIEWS[name];
    const text = axis === undefined ? title : `${title} ${picture.slices[axis]} / ${picture.scan.dimsRAS[axis + 1]}`;
    const made = element("div", {}, element("b", {}, text), ...Array.from(sides, (side) => element("span", {}, side)));
    Object.assign(made.style, { left: percent(left), top: percent(top), width: percent(size), height: percent(size) });
    return made;
  }));
}

const percent = (part) => `${100 * part}%`;

function facts() {
  const sizes = about.spacing.map((size) => Number(size.toPrecision(4))).join(" \u00d7 ");
  const [all, shown] = [about.shape, shownShape].map((shape) => shape.join(" \u00d7 "));
  const part = all === shown ? "" : `; shown at ${shown}, volumes counted in all`;
  $("facts").textContent = `${all} voxels of ${sizes} mm${part}`;
}

const KEYS = {
  t: () => about.maps.length > 1 && set("map", state.map ? 0 : state.last),
  d: () => about.maps.length > 1 && (state.map || set("map", state.last), set("differences", !state.differences)),
  l: () => set("hidden", !state.hidden),
  o: () => set("outline", !state.outline),
  "[": () => set("fill", Math.max(0, state.fill - 0.1)),
  "]": () => set("fill", Math.min(1, state.fill + 0.1)),
  w: () => set("range", next(about.windows[state.channel], state.range)),
  v: () => set("view", next(Object.keys(VIEWS), state.view)),
  "+": () => set("zoom", state.zoom * 1.25),
  "=": () => set("zoom", state.zoom * 1.25),
  "-": () => set("zoom", state.zoom / 1.25),
  r: reset,
  ArrowLeft: () => move(-1, 0, 0),
  ArrowRight: () => move(1, 0, 0),
  ArrowUp: () => move(0, 1, 0),
  ArrowDown: () => move(0, -1, 0),
  PageUp: () => move(0, 0, 1),
  PageDown: () => move(0, 0, -1),
};

function set(name, value) {
  state[name] = value;
  changed(name);
}

function next(list, current) {
  return list[(list.indexOf(current) + 1) % list.length];
}

// To the right and up on the screen, and through the slices, in the plane that is shown (all planes: the axial one).
function move(right, up, through) {
  const plane = VIEWS[state.view].moves ? VIEWS[state.view] : VIEWS.axial;
  const steps = [0, 0, 0];
  steps[plane.moves[0]] -= right; // the patient's right and front are on the left
  steps[plane.moves[1]] += up;
  steps[plane.axis] += through;
  picture.step(...steps);
}

// Before NiiVue, which has keys of its own on the canvas.
document.addEventListener("keydown", (event) => {
  const onCanvas = event.target === $("canvas");
  if (onCanvas) event.stopPropagation();
  const key = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!key || event.ctrlKey || event.metaKey || event.altKey || !picture.scan) return;
  // Letters are for number fields and lists what they are, and longer keys (arrows, Page Up) for all that moves by them.
  const busy = event.key.length > 1 ? "input:not([type=checkbox]), select, pre, .scroll" : "[type=number], select";
  if (event.target.closest(busy)) return;
  event.preventDefault();
  key();
}, { capture: true });

$("canvas").addEventListener("webglcontextlost", () => {
  notice("The graphics memory of this device was not enough, or has been taken away. Loading the page anew may help.");
});

$("canvas").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  set("zoom", state.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
}, { capture: true, passive: false });

start().catch((error) => notice(error.message));
