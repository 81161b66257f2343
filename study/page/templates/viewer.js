// Three patients of a row, slice by slice: grey levels, entropy over them, and the outlines of truth, before and after.
"use strict";
const LAYERS = {
  truth: {color: "#F0E442", dash: "solid", width: 2.5},
  before: {color: "#56B4E9", dash: "dot", width: 2.5},
  after: {color: "#FF8A3D", dash: "solid", width: 1.8},
};
// cividis, told apart by every kind of colour vision, clear where the network is sure
const ENTROPY = [[0, "rgba(0,32,76,0)"], [0.25, "rgba(66,77,107,.35)"], [0.6, "rgba(149,143,120,.6)"], [1, "rgba(255,233,69,.85)"]];
const GREYS = [[0, "#000"], [1, "#fff"]];
const BARE = {visible: false, fixedrange: true, showgrid: false, zeroline: false};

/** The bytes of a volume that was zipped and written in base 64. */
async function unpack(text) {
  const zipped = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.volumes = new Map(); // unpacked, each once
    this.panels = [...root.querySelectorAll(".scan")];
    this.places = this.panels.map(() => 0);
    this.controls = root.querySelector(".controls");
    this.controls.addEventListener("input", () => this.drawAll());
    this.row.addEventListener("change", () => this.open());
    root.querySelector("[data-reset]").addEventListener("click", () => this.reset());
    this.panels.forEach((panel, n) => this.listen(panel, n));
  }

  get row() { return this.root.querySelector("[data-row]"); }
  patient(n) { return this.data.rows[this.row.value][n]; }

  listen(panel, n) {
    panel.querySelector("input").addEventListener("input", (event) => this.go(n, Number(event.target.value)));
    panel.querySelector(".slice").addEventListener("wheel", (event) => {
      const place = this.places[n] + Math.sign(event.deltaY);
      if (place < 0 || place >= this.data.patients[this.patient(n).name].shape[0]) return; // then the page is scrolled
      event.preventDefault();
      this.go(n, place);
    }, {passive: false});
  }

  /** Shows the patients of the row that is asked for, each at the slice in which most is true. */
  async open() {
    await Promise.all(this.panels.map(async (panel, n) => {
      const patient = this.patient(n);
      panel.hidden = !patient;
      if (!patient) return;
      const {shape, start} = this.data.patients[patient.name];
      panel.querySelector("h3").textContent = patient.title;
      panel.querySelector("p").textContent = patient.words;
      panel.querySelector("input").max = shape[0] - 1;
      await Promise.all(["image", "entropy", ...Object.keys(LAYERS)].map((name) => this.volume(n, name)));
      this.go(n, start);
    }));
  }

  /** Where a volume of the patient in panel n lies in the data: of the patient, or of what a row makes of it. */
  packed(n, name) {
    const {name: patient, row, before} = this.patient(n);
    if (name === "image" || name === "truth") return this.data.patients[patient][name];
    const made = (this.data.made[name === "before" ? before : row] ?? {})[patient];
    return made && (name === "entropy" ? made.entropy : made.mask);
  }

  async volume(n, name) {
    const packed = this.packed(n, name);
    if (packed && !this.volumes.has(packed)) this.volumes.set(packed, await unpack(packed));
  }

  /** One slice of it, a list of lines; nothing where the row lacks it. */
  plane(n, name) {
    const volume = this.volumes.get(this.packed(n, name));
    const [, height, width] = this.data.patients[this.patient(n).name].shape;
    const from = this.places[n] * height * width;
    return volume && Array.from({length: height}, (_, line) => volume.subarray(from + line * width, from + (line + 1) * width));
  }

  go(n, place) {
    const panel = this.panels[n];
    this.places[n] = place;
    panel.querySelector("input").value = place;
    panel.querySelector("output").textContent = `slice ${place + 1} of ${this.data.patients[this.patient(n).name].shape[0]}`;
    this.draw(n);
  }

  asked(name) { return this.controls.querySelector(`[data-show="${name}"]`).checked; }

  number(name) { return Number(this.controls.querySelector(`[data-number="${name}"]`).value); }

  reset() {
    this.controls.querySelectorAll("[data-number]").forEach((input) => { input.value = input.defaultValue; });
    this.drawAll();
  }

  drawAll() { this.panels.forEach((panel, n) => panel.hidden || this.draw(n)); }

  draw(n) {
    const bare = {showscale: false, hoverinfo: "skip"};
    const [window, level] = [this.number("window"), this.number("level")];
    const traces = [{...bare, type: "heatmap", z: this.plane(n, "image"), colorscale: GREYS, zmin: level - window / 2, zmax: level + window / 2}];
    if (this.asked("entropy") && this.plane(n, "entropy")) {
      traces.push({...bare, type: "heatmap", z: this.plane(n, "entropy"), colorscale: ENTROPY, zmin: 0, zmax: 255});
    }
    for (const [name, line] of Object.entries(LAYERS)) {
      const plane = this.asked(name) && this.plane(n, name);
      if (plane) traces.push({...bare, type: "contour", name, z: plane, line, autocontour: false, contours: {start: 0.5, end: this.data.classes - 1.5, size: 1, coloring: "none"}});
    }
    const {shape: [, height, width], spacing} = this.data.patients[this.patient(n).name];
    const layout = {
      height: 300, margin: {l: 0, r: 0, t: 0, b: 0}, paper_bgcolor: "#000", plot_bgcolor: "#000", showlegend: false,
      xaxis: {...BARE, range: [-0.5, width - 0.5], constrain: "domain"},
      yaxis: {...BARE, range: [height - 0.5, -0.5], constrain: "domain", scaleanchor: "x", scaleratio: spacing[1] / spacing[2]},
    };
    Plotly.react(this.panels[n].querySelector(".slice"), traces, layout, {responsive: true, displayModeBar: false});
  }
}

async function openViewer() {
  const root = document.getElementById("viewer-box");
  if (root) await new Viewer(root, JSON.parse(document.getElementById("viewer-data").textContent)).open();
}
