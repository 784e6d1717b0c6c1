// The controls beside the picture. They change "state" and tell "changed" which part of it; nothing else is known here.

const $ = (id) => document.getElementById(id);

// An element with properties, and children or text. Text never becomes markup.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { className: "swatch" });
  made.style.background = colour;
  return made;
}

// Radio buttons that look like one switch.
function fillChoice(id, entries, chosen, choose) {
  $(id).append(...entries.map(([value, name]) => {
    const input = element("input", { type: "radio", name: id, value, checked: value === chosen });
    input.addEventListener("change", () => choose(value));
    return element("label", { title: name }, input, name);
  }));
}

function setChoice(id, value) {
  $(id).querySelector(`input[value="${value}"]`).checked = true;
}

function makeControls(state, changed) {
  const set = (name, value) => { state[name] = value; changed(name); };
  fillChoice("views", Object.entries(VIEWS).map(([value, view]) => [value, view.name]), state.view, (v) => set("view", v));
  $("in").addEventListener("click", () => set("zoom", state.zoom * 1.25));
  $("out").addEventListener("click", () => set("zoom", state.zoom / 1.25));
  $("reset").addEventListener("click", () => changed("reset"));
  if (about.maps.length > 1) makeMapControls(state, set);
  if (about.labels.length) makeLabelControls(state, set);
  makeIntensityControls(state, set);
  for (const [how, meaning] of HELP) {
    const keys = Array.isArray(how) ? how.flatMap((key) => [element("kbd", {}, key), " "]) : [how];
    $("keys").append(element("dt", {}, ...keys), element("dd", {}, meaning));
  }
}

function makeMapControls(state, set) {
  $("maps-section").hidden = false;
  fillChoice("maps", about.maps.map((map, n) => [String(n), map.title]), String(state.map), (n) => set("map", Number(n)));
  $("differences").addEventListener("change", (event) => set("differences", event.target.checked));
}

function makeLabelControls(state, set) {
  $("labels-section").hidden = false;
  $("labels").append(...about.labels.map((label, n) => {
    const box = element("input", { type: "checkbox", checked: true, id: `label-${n}` });
    box.setAttribute("aria-label", `Show ${label.name}`);
    box.addEventListener("change", () => {
      state.visible[n + 1] = box.checked;
      set("visible", state.visible);
    });
    const name = element("button", { type: "button", title: `${label.name} (${label.number}): go there` }, label.name);
    name.setAttribute("aria-label", `Go to ${label.name}`);
    name.addEventListener("click", () => set("goal", n + 1));
    const head = element("th", { scope: "row" }, element("label", { htmlFor: box.id }, box, swatch(label.colour)), name);
    return element("tr", {}, head);
  }));
  for (const [id, shown] of [["all", true], ["none", false]]) {
    $(id).addEventListener("click", () => set("visible", state.visible.fill(shown)));
  }
  $("fill").addEventListener("input", (event) => set("fill", event.target.value / 100));
  $("outline").addEventListener("change", (event) => set("outline", event.target.checked));
}

function makeIntensityControls(state, set) {
  $("channel-field").hidden = about.windows.length < 2;
  $("channel").append(...about.windows.map((_, n) => element("option", { value: n }, about.channels[n] ?? `${n}`)));
  $("channel").addEventListener("change", (event) => set("channel", Number(event.target.value)));
  $("window").addEventListener("change", (event) => set("range", about.windows[state.channel][event.target.value]));
  for (const id of ["level", "width"]) {
    $(id).addEventListener("change", () => {
      const [level, width] = [$("level").valueAsNumber, $("width").valueAsNumber];
      if (Number.isFinite(level) && width > 0) set("range", { low: level - width / 2, high: level + width / 2 });
    });
  }
}

// Make every control say what "state" says.
function showState(state) {
  setChoice("views", state.view);
  $("zoom").textContent = `${Math.round(100 * state.zoom)} %`;
  if (about.maps.length > 1) showMaps(state);
  if (about.labels.length) showLabels(state);
  showIntensity(state);
}

function showMaps(state) {
  setChoice("maps", state.map);
  $("differences").checked = state.differences;
  $("differences").disabled = state.map === 0;
  $("differences").nextElementSibling.textContent = `Highlight differences from ${about.maps[0].title}`;
  $("difference-key").hidden = !differing(state);
  if (!differing(state)) return;
  const totals = [0, 0, 0, 0];
  for (const [a, b, voxels] of about.maps[state.map].pairs) {
    const kind = differenceOf(a, b, state.visible);
    if (kind < totals.length) totals[kind] += voxels;
  }
  $("difference-key").replaceChildren(...DIFFERENCES.slice(1).map((difference, n) =>
    element("li", {}, swatch(difference.colour), difference.name, element("b", {}, `${ml(totals[n + 1])} ml`))));
}

const differing = (state) => state.differences && state.map > 0;

function showLabels(state) {
  const columns = state.map === 0 ? [0] : [0, state.map];
  $("label-heads").replaceChildren(element("td"), ...columns.map((n) => {
    const title = about.maps[n].title;
    return element("th", { scope: "col", title: `${title}, ml` }, columns.length > 1 ? `${title}, ml` : "ml");
  }));
  $("labels").childNodes.forEach((row, n) => {
    row.classList.toggle("off", !state.visible[n + 1]);
    row.querySelector("input").checked = state.visible[n + 1];
    row.querySelectorAll("td").forEach((cell) => cell.remove());
    row.append(...columns.map((map) => element("td", {}, ml(about.maps[map].voxels[n]))));
  });
  $("fill").value = Math.round(100 * state.fill);
  $("fill-said").textContent = `${Math.round(100 * state.fill)} %`;
  $("outline").checked = state.outline;
}

function showIntensity(state) {
  const windows = about.windows[state.channel];
  const { low, high } = state.range;
  const chosen = windows.findIndex((window) => window.low === low && window.high === high);
  $("channel").value = state.channel;
  $("window").replaceChildren(
    ...windows.map((window, n) => element("option", { value: n, selected: n === chosen }, window.name)),
    ...(chosen < 0 ? [element("option", { value: "", selected: true, disabled: true }, "As set")] : []));
  $("level").value = Number(((low + high) / 2).toPrecision(5));
  $("width").value = Number((high - low).toPrecision(5));
}

// The values at the crosshair: pairs of a name and a text, the latter with the colour of its label where it has one.
function showReadout(entries) {
  $("readout").replaceChildren(...entries.map(([name, text, colour]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, ...(colour ? [swatch(colour), " "] : []), text))));
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}
