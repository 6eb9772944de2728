(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("figures").textContent);

  // Storage is refused for local files by some browsers; the choice then lasts as long as the page.
  const stored = { get() { try { return localStorage.getItem("biases-theme"); } catch { return null; } },
                   set(value) { try { localStorage.setItem("biases-theme", value); } catch { return; } } };

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

  function draw() {
    const styles = getComputedStyle(root);
    for (const [id, figure] of Object.entries(figures)) {
      const element = document.getElementById(id);
      const { data, layout } = resolved(figure, styles, "");
      layout.width = element.clientWidth;
      layout.font.family = getComputedStyle(document.body).fontFamily;
      if (layout.width < 520) {
        layout.font.size = 11;
        if (layout.xaxis.nticks) layout.xaxis.nticks = 4;
        if (layout.showlegend) layout.height += 20 * data.filter(trace => trace.showlegend !== false).length;
      }
      element.style.minHeight = `${layout.height}px`;
      try {
        Plotly.react(element, data, layout, { displayModeBar: false });
      } catch (error) {
        element.textContent = "This chart could not be drawn; its numbers are in the tables.";
        console.error(error);
      }
    }
  }

  function theme(choice) {
    if (choice) root.dataset.theme = choice;
    draw();
  }

  const evidence = document.getElementById("evidence");
  function show(body) {
    const summary = body.closest("details").querySelector("summary");
    document.getElementById("evidence-title").replaceChildren(...summary.cloneNode(true).childNodes);
    document.getElementById("evidence-body").replaceChildren(...body.cloneNode(true).childNodes);
    evidence.showModal();
    evidence.scrollTop = 0;
  }

  function unfold(target) {
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView({ block: "center" });
  }

  async function copy(button) {
    const pre = button.closest(".block").querySelector("pre");
    try {
      await navigator.clipboard.writeText(pre.textContent);
    } catch {
      getSelection().selectAllChildren(pre);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  document.addEventListener("click", event => {
    const cell = event.target.closest("a.cell");
    if (cell && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      show(document.getElementById(cell.getAttribute("href").slice(1)));
    } else if (event.target.matches("button.copy")) {
      copy(event.target);
    } else if (event.target === evidence || event.target.id === "evidence-close") {
      evidence.close();
    }
  });
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    stored.set(next);
    theme(next);
  });
  dark.addEventListener("change", () => theme());
  addEventListener("hashchange", () => {
    const target = /^#result-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (target) unfold(target);
  });

  theme(stored.get());
  const main = document.getElementById("main");
  let width = main.clientWidth;
  new ResizeObserver(() => {
    if (main.clientWidth === width) return;
    width = main.clientWidth;
    requestAnimationFrame(draw);
  }).observe(main);
  if (location.hash) dispatchEvent(new Event("hashchange"));
})();
