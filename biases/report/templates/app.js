(() => {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Storage is refused for local files by some browsers; the choice then lasts as long as the page.
  const stored = { get() { try { return localStorage.getItem("biases-theme"); } catch { return null; } },
                   set(value) { try { localStorage.setItem("biases-theme", value); } catch { return; } } };

  function theme(choice) {
    if (choice) root.dataset.theme = choice;
    charts.refresh();
  }

  const evidence = document.getElementById("evidence");
  function show(title, body) {
    document.getElementById("evidence-title").replaceChildren(...title);
    document.getElementById("evidence-body").replaceChildren(...body);
    evidence.showModal();
    evidence.scrollTop = 0;
  }

  function paragraph(text, name) {
    const element = document.createElement("p");
    element.className = name;
    element.textContent = text;
    return element;
  }

  function showCell(cell) {
    const target = document.getElementById(cell.getAttribute("href").slice(1));
    const folded = cell.dataset.told !== undefined;
    if (folded) {
      const promise = target.querySelector("dd").textContent;
      const body = [paragraph(promise, "promise"), paragraph(cell.dataset.told, "note")];
      if (cell.dataset.message) body.push(paragraph(cell.dataset.message, ""));
      show([cell.getAttribute("aria-label")], body);
    } else {
      const summary = target.closest("details").querySelector("summary");
      show(summary.cloneNode(true).childNodes, target.cloneNode(true).childNodes);
    }
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

  function filter(ledger) {
    const wanted = [...ledger.querySelectorAll("select.filter")].map(each => [each.dataset.filter, each.value]);
    const entries = [...ledger.querySelectorAll(".claim")];
    for (const entry of entries) entry.hidden = wanted.some(([key, value]) => value && entry.dataset[key] !== value);
    const shown = entries.filter(entry => !entry.hidden).length;
    ledger.querySelector(".filtered").textContent = `${shown} of ${entries.length}`;
  }

  document.addEventListener("click", event => {
    const cell = event.target.closest("a.cell");
    if (cell && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      showCell(cell);
    } else if (event.target.matches("button.copy")) {
      copy(event.target);
    } else if (event.target.matches("button.export")) {
      charts.exported(event.target.dataset.chart, event.target.dataset.format);
    } else if (event.target === evidence || event.target.id === "evidence-close") {
      evidence.close();
    }
  });
  document.addEventListener("change", event => {
    if (event.target.matches("select.filter")) filter(event.target.closest(".ledger"));
  });
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    stored.set(next);
    theme(next);
  });
  dark.addEventListener("change", () => theme());
  function follow() {
    const target = /^#(result|claim)-[\w-]+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (target) unfold(target);
  }
  addEventListener("hashchange", follow);

  const choice = stored.get();
  if (choice) root.dataset.theme = choice;
  const main = document.getElementById("main");
  let width = main.clientWidth;
  new ResizeObserver(() => {
    if (main.clientWidth === width) return;
    width = main.clientWidth;
    requestAnimationFrame(() => charts.refresh(true));
  }).observe(main);
  follow();
})();
