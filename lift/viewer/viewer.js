// Linked three-plane views of volumes, around NiiVue's class. Labels are put in as text.
//
// openViewer(root, Niivue, volumes, options): volumes are {label, data}, data a NIfTI-1 file as
// an ArrayBuffer, little-endian, int16 or float32, as lift.viewer writes it.

const MULTIPLANAR = 3;
const NO_RENDER = 0;
const DRAG_CONTRAST = 1;
const ARROWS = {
  ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1],
  ArrowRight: [1, 0, 0], ArrowLeft: [-1, 0, 0],
  PageUp: [0, 1, 0], PageDown: [0, -1, 0],
};
// nothing is black, so that what differs stands out; the ends are blue and red
const DIVERGING = {
  R: [140, 30, 0, 255, 255], G: [200, 90, 0, 90, 220], B: [255, 255, 0, 30, 130],
  A: [255, 255, 255, 255, 255], I: [0, 64, 128, 192, 255],
};
const SLIDERS = ["left to right", "back to front", "down to up"];
const WINDOWS = { brain: [0, 80], "soft tissue": [-160, 240], bone: [-500, 1500] };
let count = 0;

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// ---- volumes as NIfTI-1

function header(data) {
  const view = new DataView(data);
  const at = view.getFloat32(108, true);
  return {
    shape: [1, 2, 3].map((axis) => view.getInt16(40 + 2 * axis, true)),
    affine: Array.from({ length: 12 }, (_, i) => view.getFloat32(280 + 4 * i, true)),
    slope: view.getFloat32(112, true) || 1,
    inter: view.getFloat32(116, true),
    voxels: view.getInt16(70, true) === 16 ? new Float32Array(data, at) : new Int16Array(data, at),
    at,
  };
}

function sameGrid(one, other) {
  const close = one.affine.every((value, i) => Math.abs(value - other.affine[i]) < 1e-3);
  return close && one.shape.every((length, i) => length === other.shape[i]);
}

// the second minus the first, and the largest difference but for one voxel in a thousand
function difference(first, second) {
  const [a, b] = [header(first), header(second)];
  const made = new ArrayBuffer(b.at + 4 * b.voxels.length);
  new Uint8Array(made).set(new Uint8Array(second, 0, b.at));
  const view = new DataView(made);
  view.setInt16(70, 16, true);
  view.setInt16(72, 32, true);
  view.setFloat32(112, 1, true);
  view.setFloat32(116, 0, true);
  const voxels = new Float32Array(made, b.at);
  for (let i = 0; i < voxels.length; i += 1) {
    voxels[i] = b.voxels[i] * b.slope + b.inter - (a.voxels[i] * a.slope + a.inter);
  }
  const sizes = voxels.filter((value) => value !== 0).map(Math.abs).sort();
  const span = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.999))] : 1;
  return { data: made, span: span || 1 };
}

// ---- the viewer

export async function openViewer(root, Niivue, volumes, options = {}) {
  if (!document.createElement("canvas").getContext("webgl2")) {
    root.replaceChildren(make("p", { class: "viewer-note" }, "This browser cannot draw volumes (it has no WebGL 2). The figures on this page and the files themselves hold the same images."));
    root.dataset.state = "unsupported";
    return;
  }
  count += 1;
  const own = `viewer-${count}`;
  const panes = [];
  const stage = make("div", { class: "viewer-stage", "data-layout": "side" });
  const spoken = make("p", { class: "viewer-hidden", "aria-live": "polite" });
  const written = make("p", { class: "viewer-position" }, "…");
  root.replaceChildren();

  let linking = false;
  let speaking;
  const tell = () => {
    const values = panes.filter((pane) => !pane.box.hidden).map((pane) => `${pane.label}: ${pane.value}`);
    const [x, y, z] = panes[0].box.dataset.positionMm.split(" ");
    [x, y, z].forEach((value, axis) => { sliders[axis].value = value; });
    written.textContent = `x ${x}  y ${y}  z ${z} mm · ${values.join(" · ")}`;
    clearTimeout(speaking);
    speaking = setTimeout(() => { spoken.textContent = written.textContent; }, 700);
  };

  const moved = (pane, place) => {
    const mm = Array.from(place.mm).slice(0, 3);
    pane.box.dataset.positionMm = mm.map((value) => value.toFixed(1)).join(" ");
    pane.value = place.values?.length ? Number(place.values[0].value).toPrecision(4) : "–";
    if (linking) return;
    linking = true;
    for (const other of panes) {
      if (other === pane || !other.ready) continue;
      other.view.scene.crosshairPos = other.view.mm2frac(pane.view.frac2mm(pane.view.scene.crosshairPos));
      other.view.scene.pan2Dxyzmm = [...pane.view.scene.pan2Dxyzmm];
      other.view.drawScene();
      other.view.createOnLocationChange();
    }
    linking = false;
    if (panes.every((one) => one.box.dataset.positionMm)) tell();
  };

  // for fingers and keyboards: a slice of each plane by its place in mm
  const sliders = SLIDERS.map((words, axis) => make("input", {
    type: "range", step: "any", id: `${own}-axis-${axis}`, "aria-label": `${words}, in mm`,
  }));

  function slide() {
    const { view } = panes[0];
    view.scene.crosshairPos = view.mm2frac(sliders.map((slider) => Number(slider.value)));
    view.drawScene();
    view.createOnLocationChange();
  }

  function setReach() {
    const { view } = panes[0];
    const ends = [view.frac2mm([0, 0, 0]), view.frac2mm([1, 1, 1])];
    sliders.forEach((slider, axis) => {
      const sides = ends.map((end) => end[axis]);
      [slider.min, slider.max] = [Math.min(...sides), Math.max(...sides)];
      slider.addEventListener("input", slide);
    });
  }

  async function addPane({ label, data }, colours) {
    const canvas = make("canvas", {
      tabindex: "0", role: "img",
      "aria-label": `${label}: axial, coronal and sagittal slices. Up and down, left and right, page up and page down move through the slices.`,
    });
    const holder = make("div", { class: "viewer-canvas" }, canvas);
    const caption = make("figcaption", {}, make("bdi", {}, label));
    const box = make("figure", { class: "viewer-pane" }, caption, holder);
    if (options.phantom) holder.append(make("span", { class: "viewer-phantom" }, "PHANTOM"));
    stage.append(box);
    const view = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.75, 0.2, 0.8], crosshairWidth: 0.7,
      dragAndDropEnabled: false, isRadiologicalConvention: true, isResizeCanvas: true,
      multiplanarShowRender: NO_RENDER, multiplanarForceRender: false, loadingText: "",
      dragMode: DRAG_CONTRAST, isNearestInterpolation: true, show3Dcrosshair: false,
      isColorbar: colours !== "gray", sliceType: MULTIPLANAR,
      isCornerOrientationText: true, fontColor: [1, 1, 1, 1],
    });
    const pane = { label, view, box, canvas, data, value: "–", ready: false };
    panes.push(pane);
    // the viewer's own keys reach into time series and dialogs that are not here
    holder.addEventListener("keydown", (event) => keyed(event, pane), true);
    await view.attachToCanvas(canvas, false);
    view.setSliceType(MULTIPLANAR);
    await view.loadFromArrayBuffer(data, "volume.nii");
    if (colours !== "gray") {
      view.addColormap(colours, DIVERGING);
      view.setColormap(view.volumes[0].id, colours);
    }
    view.setInterpolation(true);
    view.onLocationChange = (place) => moved(pane, place);
    view.onIntensityChange = (volume) => windowed(pane, volume.cal_min, volume.cal_max);
    pane.ready = true;
    return pane;
  }

  function keyed(event, pane) {
    if (event.key === "Tab" || event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    pane.view.moveCrosshairInVox(...step);
    pane.view.createOnLocationChange();
  }

  // ---- window and level: one for all volumes, the difference has its own

  const low = make("input", { type: "number", step: "any", id: `${own}-low` });
  const high = make("input", { type: "number", step: "any", id: `${own}-high` });
  const shown = () => panes.filter((pane) => pane !== differencePane);
  let differencePane = null;
  let automatic = [0, 1];

  function setWindow(from, to) {
    if (!(to > from)) return;
    for (const pane of shown()) {
      const volume = pane.view.volumes[0];
      [volume.cal_min, volume.cal_max] = [from, to];
      pane.view.updateGLVolume();
      pane.box.dataset.window = `${from} ${to}`;
    }
    [low.value, high.value] = [Number(from.toPrecision(5)), Number(to.toPrecision(5))];
  }

  function windowed(pane, from, to) {
    if (pane !== differencePane) setWindow(from, to);
  }

  const tools = make("div", { class: "viewer-tools", role: "group", "aria-label": "Window and layout" });
  tools.append(
    make("label", { for: low.id }, "black at"), low, make("label", { for: high.id }, "white at"), high,
  );
  for (const box of [low, high]) {
    box.addEventListener("change", () => setWindow(Number(low.value), Number(high.value)));
  }
  const presets = options.hounsfield ? ["auto", ...Object.keys(WINDOWS)] : ["auto"];
  for (const name of presets) {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => setWindow(...(name === "auto" ? automatic : WINDOWS[name])));
    tools.append(button);
  }

  // ---- layouts

  const divider = make("input", { type: "range", min: "0", max: "100", value: "50", class: "viewer-divider", "aria-label": "Divider of the swipe" });
  const reason = make("p", { class: "viewer-note" });
  const layouts = new Map();

  function cut() {
    stage.style.setProperty("--cut", `${divider.value}%`);
  }

  // which two are swiped and subtracted: indices of volumes
  let pair = [0, 1];
  let subtracted = "";

  async function subtract() {
    const [first, second] = pair.map((index) => volumes[index]);
    if (subtracted === pair.join()) return;
    const made = difference(first.data, second.data);
    const label = `${second.label} − ${first.label}`;
    if (!differencePane) {
      differencePane = await addPane({ label, data: made.data }, "diverging");
      differencePane.box.classList.add("viewer-difference");
    } else {
      const { view } = differencePane;
      view.removeVolume(view.volumes[0]);
      await view.loadFromArrayBuffer(made.data, "volume.nii");
      view.setColormap(view.volumes[0].id, "diverging");
      differencePane.label = label;
    }
    const volume = differencePane.view.volumes[0];
    [volume.cal_min, volume.cal_max] = [-made.span, made.span];
    differencePane.view.updateGLVolume();
    differencePane.box.dataset.window = `${-made.span} ${made.span}`;
    differencePane.box.querySelector("figcaption").textContent = `${label} (blue −${made.span.toPrecision(3)} to red +${made.span.toPrecision(3)})`;
    panes[0].view.createOnLocationChange();
    subtracted = pair.join();
  }

  async function setLayout(name) {
    if (name === "difference") await subtract();
    stage.dataset.layout = name;
    panes.forEach((pane, index) => {
      pane.box.classList.toggle("viewer-first", index === pair[0]);
      pane.box.classList.toggle("viewer-second", index === pair[1]);
      const apart = pane === differencePane || !pair.includes(index);
      pane.box.hidden = name === "swipe" ? apart : pane === differencePane && name !== "difference";
    });
    divider.hidden = name !== "swipe";
    cut();
    for (const [other, button] of layouts) button.setAttribute("aria-pressed", String(other === name));
    requestAnimationFrame(() => {
      for (const pane of panes) if (pane.ready && !pane.box.hidden) pane.view.resizeListener();
      tell();
    });
  }

  if (volumes.length > 1) {
    const grid = header(volumes[0].data);
    const comparable = volumes.every((volume) => sameGrid(grid, header(volume.data)));
    for (const [name, words] of [["side", "side by side"], ["swipe", "swipe"], ["difference", "difference"]]) {
      const button = make("button", { type: "button", "aria-pressed": String(name === "side") }, words);
      button.addEventListener("click", () => setLayout(name));
      layouts.set(name, button);
      tools.append(button);
    }
    if (volumes.length > 2 && comparable) {
      const choices = ["compare", "with"].map((words, place) => {
        const choice = make("select", { id: `${own}-${words}` });
        volumes.forEach((volume, index) => choice.append(make("option", { value: String(index) }, volume.label)));
        choice.value = String(place);
        choice.addEventListener("change", () => {
          const [one, two] = choices.map((each) => Number(each.value));
          if (one === two) {
            // the other one steps aside
            choices[1 - place].value = String(pair[place]);
          }
          pair = choices.map((each) => Number(each.value));
          setLayout(stage.dataset.layout);
        });
        tools.append(make("label", { for: choice.id }, words), choice);
        return choice;
      });
    }
    if (!comparable) {
      for (const name of ["swipe", "difference"]) layouts.get(name).disabled = true;
      reason.textContent = "Swipe and difference need volumes on one grid; these have different ones.";
    }
  }
  divider.hidden = true;
  divider.addEventListener("input", cut);
  reason.hidden = !reason.textContent;
  const places = make("div", { class: "viewer-places", role: "group", "aria-label": "Place in the volume" });
  SLIDERS.forEach((words, axis) => places.append(make("label", { for: sliders[axis].id }, words), sliders[axis]));
  root.append(tools, reason, divider, stage, places, written, spoken);

  for (const volume of volumes) await addPane(volume, "gray");
  const first = panes[0].view.volumes[0];
  automatic = [first.cal_min, first.cal_max];
  // of a CT what matters is whether bone is there: air and fat would take half of the automatic scale
  setWindow(...(options.hounsfield ? WINDOWS.bone : automatic));
  setReach();
  for (const pane of panes) pane.view.createOnLocationChange();
  root.dataset.state = "open";
}
