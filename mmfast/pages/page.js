// Charts of a page: values at the pointer in every chart, smoothing, runs that are hidden; and a page that renews itself.
(() => {
  const kept = (() => {  // what was set, over a reload; a browser may forbid it to files
    try { return JSON.parse(sessionStorage.getItem(location.pathname)) || {}; } catch { return {}; }
  })();
  const keep = () => { try { sessionStorage.setItem(location.pathname, JSON.stringify(kept)); } catch {} };
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  document.body.classList.add("scripted");

  const told = value => {
    if (value === null) return "not finite";
    const size = Math.abs(value);
    return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(5));
  };

  class Chart {
    constructor(figure) {
      this.svg = figure.querySelector("svg");
      [this.x0, this.xs, this.y0, this.ys] = this.svg.dataset.scale.split(" ").map(Number);
      this.lines = JSON.parse(figure.querySelector("script").textContent);
      this.groups = all("g[data-line]", figure);
      this.values = all(".key b", figure);
      this.where = figure.querySelector("figcaption span");
      this.rest = this.values.map(b => b.textContent);
      this.at = this.svg.querySelector(".at");
    }
    x(value) { return this.x0 + this.xs * value; }
    y(value) { return this.y0 + this.ys * value; }

    // An average that leans on what came before, as the trackers draw it: unbiased from the first point on.
    smooth(weight) {
      this.lines.forEach((line, n) => {
        const [raw, curve] = all("path", this.groups[n]);
        raw.classList.toggle("raw", weight > 0 && line.smooth);
        curve.setAttribute("d", "");
        if (!weight || !line.smooth) return;
        let sum = 0, norm = 0, pen = "M", path = "";
        line.x.forEach((x, i) => {
          if (line.y[i] === null) { pen = "M"; return; }
          sum = sum * weight + line.y[i] * (1 - weight);
          norm = norm * weight + 1 - weight;
          path += `${pen}${this.x(x).toFixed(1)},${this.y(sum / norm).toFixed(1)}`;
          pen = "L";
        });
        curve.setAttribute("d", path);
      });
    }

    show(step) {
      this.at.setAttribute("d", step === null ? "" : `M${this.x(step)},${this.svg.dataset.top}V${this.svg.dataset.low}`);
      this.where.textContent = step === null ? "" : `${this.svg.dataset.across} ${step}`;
      this.lines.forEach((line, n) => {
        if (step === null) { this.values[n].textContent = this.rest[n]; return; }
        let i = line.x.findIndex(x => x >= step);  // the point at the step, or the last before it
        if (i < 0) i = line.x.length - 1; else if (line.x[i] > step) i -= 1;
        this.values[n].textContent = i < 0 ? "" : told(line.y[i]);
      });
    }

    nearest(event) {
      const box = this.svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width * this.svg.viewBox.baseVal.width - this.x0) / this.xs;
      let best = null;
      for (const line of this.lines) for (const x of line.x)
        if (best === null || Math.abs(x - at) < Math.abs(best - at)) best = x;
      return best;
    }
  }

  const charts = all(".chart[data-lines]").map(figure => new Chart(figure));
  for (const chart of charts) {
    chart.svg.addEventListener("pointermove", event => {
      const step = chart.nearest(event);
      for (const other of charts) other.show(other.svg.dataset.across === chart.svg.dataset.across ? step : null);
    });
    chart.svg.addEventListener("pointerleave", () => charts.forEach(other => other.show(null)));
  }

  const slider = document.querySelector("#smooth");
  if (slider) {
    const smooth = () => {
      kept.smooth = slider.value;
      slider.nextElementSibling.textContent = (+slider.value).toFixed(2);
      for (const chart of charts) chart.smooth(+slider.value);
      keep();
    };
    slider.value = kept.smooth ?? slider.defaultValue;
    slider.addEventListener("input", smooth);
    smooth();
  }

  for (const box of all(".runs input")) {
    const set = () => {
      for (const one of all(`[data-run="${box.value}"]`)) one.style.display = box.checked ? "" : "none";
      kept[`run ${box.value}`] = box.checked;
      keep();
    };
    box.checked = kept[`run ${box.value}`] ?? true;
    box.addEventListener("change", set);
    set();
  }

  all("details").forEach((one, n) => {
    if (kept[`open ${n}`] !== undefined) one.open = kept[`open ${n}`];
    one.addEventListener("toggle", () => { kept[`open ${n}`] = one.open; keep(); });
  });

  const seconds = +document.body.dataset.renew;
  if (seconds) {
    const age = () => {  // a run that was killed writes nothing more
      const minutes = Math.floor((Date.now() / 1000 - +document.body.dataset.written) / 60);
      if (minutes > 2) document.querySelector("#age").textContent = `, ${minutes} minutes ago: is it still running?`;
    };
    age();
    setInterval(() => { age(); if (!document.hidden && getSelection().isCollapsed) location.reload(); }, seconds * 1000);
  }
})();
