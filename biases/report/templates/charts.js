const charts = (() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  // Charts that were drawn, with the width that they were drawn for, those near the window, and those to be drawn next.
  const drawn = new Map();
  const near = new Set();
  const waiting = new Set();
  const [ON_PAPER, SMALL_ON_PAPER] = [640, 300];
  let plotly = null;

  async function load() {
    const packed = document.getElementById("plotly");
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent), character => character.charCodeAt(0));
    const stream = new DecompressionStream("gzip");
    const writer = stream.writable.getWriter();
    writer.write(bytes);
    writer.close();
    const decoder = new TextDecoder();
    let source = "";
    for (let reader = stream.readable.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
      source += decoder.decode(part.value, { stream: true });
    }
    const script = document.createElement("script");
    script.textContent = source + decoder.decode();
    document.head.append(script);
    packed.remove();
    script.remove();
    plotly = window.Plotly;
    if (!plotly) throw new Error("the library of the charts did not start");
  }

  function resolved(value, styles, key) {
    if (Array.isArray(value)) return value.map(item => resolved(item, styles, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolved(item, styles, name)]));
    }
    const token = typeof value === "string" && /color$/i.test(key) && /^var\((--[\w-]+)\)(?: ([\d.]+))?$/.exec(value);
    if (!token) return value;
    const colour = styles.getPropertyValue(token[1]).trim();
    if (!token[2]) return colour;
    const [red, green, blue] = [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
    return `rgba(${red},${green},${blue},${token[2]})`;
  }

  function figureFor(id, width) {
    const { data, layout } = resolved(figures[id], getComputedStyle(root), "");
    layout.width = width;
    layout.font.family = getComputedStyle(document.body).fontFamily;
    if (width < 520 && data[0].type !== "heatmap") {
      layout.font.size = 11;
      if (layout.xaxis.nticks) layout.xaxis.nticks = 4;
      if (layout.showlegend) layout.height += 20 * data.filter(trace => trace.showlegend !== false).length;
    }
    return { data, layout };
  }

  function failed(element, error) {
    element.textContent = "This chart could not be drawn.";
    element.classList.add("failed-chart");
    console.error(error);
  }

  async function paint(element, width) {
    const { data, layout } = figureFor(element.id, width);
    element.style.minHeight = `${layout.height}px`;
    try {
      await plotly.react(element, data, layout, { displayModeBar: false });
    } catch (error) {
      failed(element, error);
    }
  }

  async function draw(id) {
    const element = document.getElementById(id);
    const width = element.clientWidth;
    if (!width) return;
    await paint(element, width);
    drawn.set(id, width);
  }

  // One chart a task: a phone stays answerable while a page with many is drawn.
  function next() {
    const [id] = waiting;
    if (!id || !plotly) return;
    waiting.delete(id);
    draw(id).then(() => setTimeout(next));
  }

  function add(ids) {
    const idle = !waiting.size;
    for (const id of ids) waiting.add(id);
    if (idle) next();
  }

  // A chart is drawn when it comes near the window; in a closed fold it never does.
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting) near.add(entry.target.id);
      else near.delete(entry.target.id);
    }
    add([...near].filter(id => !drawn.has(id)));
  }, { rootMargin: "600px" });

  // What is unfolded, in the light palette and as wide as a page of A4: the browser prints when this returns, and
  // Plotly has drawn by the time that it hands out its promise.
  function drawOnPaper() {
    const chosen = root.dataset.theme;
    root.dataset.theme = "light";
    for (const element of document.querySelectorAll(".chart")) {
      if (element.closest("details:not([open])")) continue;
      const width = Math.min(element.clientWidth, element.closest(".small") ? SMALL_ON_PAPER : ON_PAPER);
      paint(element, width);
    }
    addEventListener("afterprint", () => {
      if (chosen) root.dataset.theme = chosen;
      else delete root.dataset.theme;
      refresh();
    }, { once: true });
  }

  // After a change of theme or width what is near is drawn again, the rest when it comes near.
  function refresh(width) {
    const same = id => width && drawn.get(id) === document.getElementById(id).clientWidth;
    for (const id of drawn.keys()) if (!same(id)) drawn.delete(id);
    add([...near].filter(id => !drawn.has(id)));
  }

  function save(name, address) {
    const link = document.createElement("a");
    link.download = name;
    link.href = address;
    link.click();
  }

  async function exported(id, format) {
    const figure = figures[id];
    const name = figure.title.replace(/&\w+;|<br>|[^\w]+/g, "-").replace(/^-+|-+$/g, "").toLowerCase() || id;
    if (format === "json") {
      const { data, layout } = figureFor(id, 900);
      const blob = new Blob([JSON.stringify({ data, layout })], { type: "application/json" });
      const address = URL.createObjectURL(blob);
      save(`${name}.json`, address);
      setTimeout(() => URL.revokeObjectURL(address), 10000);
      return;
    }
    if (!plotly) return;
    const { data, layout } = figureFor(id, Math.max(720, document.getElementById(id).clientWidth));
    layout.paper_bgcolor = getComputedStyle(root).getPropertyValue("--surface").trim();
    layout.title = { text: figure.title, x: 0.02, font: { size: 15 } };
    layout.margin.t += 40;
    layout.height += 40;
    const size = { format, width: layout.width, height: layout.height, scale: format === "png" ? 2 : 1 };
    save(`${name}.${format}`, await plotly.toImage({ data, layout }, size));
  }

  load().then(() => {
    document.querySelectorAll(".chart").forEach(element => observer.observe(element));
    addEventListener("beforeprint", drawOnPaper);
  }).catch(error => {
    document.querySelectorAll(".chart").forEach(element => failed(element, ""));
    console.error(error);
  });
  return { refresh, exported };
})();
