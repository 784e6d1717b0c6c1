// The picture: NiiVue on the page's canvas, and the little that is asked of it.

const { Niivue, NVImage, SLICE_TYPE, DRAG_MODE } = niivue;
// For each plane the axis across it (to the right, front, top), those that are across and up on the screen, and the sides
// of the patient that are left, up, right and down there.
const VIEWS = {
  all: { name: "All" },
  axial: { name: "Axial", slice: SLICE_TYPE.AXIAL, axis: 2, moves: [0, 1], sides: "RALP" },
  coronal: { name: "Coronal", slice: SLICE_TYPE.CORONAL, axis: 1, moves: [0, 2], sides: "RSLI" },
  sagittal: { name: "Sagittal", slice: SLICE_TYPE.SAGITTAL, axis: 0, moves: [1, 2], sides: "ASPI" },
  render: { name: "3D", slice: SLICE_TYPE.RENDER },
};
const HALF = 0.4985; // of the canvas: what is left is the line between two tiles
const TILES = [
  ["axial", [0, 0]],
  ["coronal", [1 - HALF, 0]],
  ["sagittal", [0, 1 - HALF]],
  ["render", [1 - HALF, 1 - HALF]],
];
const FOG = { alone: 45, aroundLabels: 2.2 };
const MOST_ZOOM = 12;

// "#rrggbb" as three numbers up to 255.
const channelsOf = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.zoom = 1;
    this.nv = new Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      backColor: [0.043, 0.051, 0.063, 1],
      crosshairColor: [1, 1, 1, 0.55],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      isOrientationTextVisible: false,
      dragMode: DRAG_MODE.windowing,
      dragAndDropEnabled: false,
      loadingText: "",
      logLevel: "error",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
    });
    this.nv.resetBriCon = () => {}; // what a double click or a long touch would do: the page has its own windows
  }

  // "scan" and "labels" are NIfTI files; "labels" is null where there is no label map.
  async open(scan, labels, colours, range) {
    const nv = this.nv;
    await nv.attachToCanvas(this.canvas, true);
    nv.setCustomSliceShader(SLICE_SHADER);
    nv.renderShader = new nv.renderShader.constructor(nv.gl, RENDER_VERTEX_SHADER, RENDER_SHADER);
    nv.initRenderShader(nv.renderShader);
    this.scan = await NVImage.new(scan, "scan.nii", "gray", 1, null, range.low, range.high, true);
    nv.addVolume(this.scan);
    if (labels) {
      this.labels = await NVImage.new(labels, "labels.nii", "gray", 1);
      const [R, G, B] = [0, 1, 2].map((part) => [0, ...colours.map((colour) => channelsOf(colour)[part])]);
      const indices = Array.from(R.keys());
      this.labels.setColormapLabel({ R, G, B, A: indices.map((index) => (index ? 255 : 0)), I: indices });
      nv.addVolume(this.labels);
    }
  }

  set(shader, values) {
    shader.use(this.nv.gl);
    for (const [name, value] of Object.entries(values)) {
      const place = shader.uniforms[name];
      if (Array.isArray(value)) this.nv.gl.uniform3fv(place, value);
      else this.nv.gl.uniform1f(place, value);
    }
  }

  // How labels look: opacity of their areas, and of the areas that agree; whether there is an edge; whether any is seen.
  style({ fill, faint, outline, any }) {
    const agreed = channelsOf(DIFFERENCES[0].colour).map((part) => part / 255);
    this.set(this.nv.customSliceShader, { fill, faint, outline: outline ? 1.25 * this.nv.uiData.dpr : 0, agreed });
    this.set(this.nv.renderShader, { density: any ? FOG.aroundLabels : FOG.alone });
    this.nv.drawScene();
  }

  // To be called when the indices in "labels.img" have changed.
  redrawLabels() {
    this.nv.refreshLayers(this.labels, 1);
    this.nv.drawScene();
  }

  setRange(low, high) {
    this.scan.cal_min = low;
    this.scan.cal_max = high;
    this.nv.refreshLayers(this.scan, 0);
    this.nv.drawScene();
  }

  setChannel(channel) {
    this.nv.setFrame4D(this.scan.id, channel);
  }

  setView(view) {
    if (view === "all") {
      this.nv.opts.sliceType = SLICE_TYPE.MULTIPLANAR;
      this.nv.setCustomLayout(TILES.map(([name, [left, top]]) => ({
        sliceType: VIEWS[name].slice, position: [left, top, HALF, HALF],
      })));
    } else {
      this.nv.clearCustomLayout();
      this.nv.setSliceType(VIEWS[view].slice);
    }
  }

  // Around the crosshair, which stays where it is on the screen.
  setZoom(zoom) {
    const { nv } = this;
    this.zoom = clamp(zoom, 1, MOST_ZOOM);
    const at = nv.frac2mm(nv.scene.crosshairPos);
    const [x, y, z, before] = nv.scene.pan2Dxyzmm;
    const pan = [x, y, z].map((value, axis) => (this.zoom === 1 ? 0 : value + (before - this.zoom) * at[axis]));
    nv.setPan2Dxyzmm([...pan, this.zoom]);
    nv.setScale(Math.min(2, Math.sqrt(this.zoom)));
    nv.drawScene();
  }

  get mm() { return Array.from(this.nv.frac2mm(this.nv.scene.crosshairPos, 0, true)).slice(0, 3); }

  goTo(mm) {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm, 0, true);
    this.moved();
  }

  // By voxels to the patient's right, front and top, as NiiVue turns every scan.
  step(right, front, top) {
    const size = this.scan.dimsRAS.slice(1, 4);
    const move = [right, front, top];
    const at = this.slices.map((slice, axis) => clamp(slice + move[axis], 1, size[axis]));
    this.nv.scene.crosshairPos = at.map((slice, axis) => (slice - 0.5) / size[axis]);
    this.moved();
  }

  moved() {
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  // Slice numbers from 1, of the sagittal, coronal and axial slice, counted to the right, front and top.
  get slices() {
    const size = this.scan.dimsRAS.slice(1, 4);
    return Array.from(this.nv.scene.crosshairPos).map((part, axis) =>
      clamp(Math.floor(part * size[axis]) + 1, 1, size[axis]));
  }
}
