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

  const cellsOf = row => [...row.querySelectorAll("td:not([hidden]) > a.cell")];
  const rowsOf = matrix => [...matrix.tBodies[0].rows].filter(row => !row.hidden);

  // The matrix is one tab stop; the arrows move inside it.
  function stopAt(matrix, cell) {
    for (const other of matrix.querySelectorAll("a.cell[tabindex='0']")) other.tabIndex = -1;
    if (cell) cell.tabIndex = 0;
  }

  function move(event, cell) {
    const matrix = cell.closest(".matrix");
    const row = cell.closest("tr");
    const rows = rowsOf(matrix);
    const cells = cellsOf(row);
    const beside = by => cells[cells.indexOf(cell) + by];
    const column = cell.parentElement.cellIndex;
    const below = by => {
      for (let at = rows.indexOf(row) + by; rows[at]; at += by) {
        const found = rows[at].cells[column].querySelector("a.cell");
        if (found) return found;
      }
    };
    const next = { ArrowLeft: () => beside(-1), ArrowRight: () => beside(1), ArrowUp: () => below(-1),
                   ArrowDown: () => below(1), Home: () => cells[0], End: () => cells.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    const target = next();
    if (!target) return;
    stopAt(matrix, target);
    target.focus();
  }

  // Rows and columns by name, and by whether something went wrong in them; a word that no row has is one of columns.
  function sieve(battery) {
    const [choice, search] = battery.querySelectorAll(".sieve");
    const word = search.value.trim().toLowerCase();
    const matrix = battery.querySelector(".matrix");
    const heads = [...matrix.tHead.rows[0].cells];
    const rows = [...matrix.tBodies[0].rows];
    const named = cells => cells.map(cell => cell.textContent.toLowerCase().includes(word));
    const kept = marks => marks.some(Boolean) ? marks : marks.map(() => true);
    const [ofRows, ofColumns] = [named(rows.map(row => row.cells[0])), named(heads.slice(1))];
    const none = word && ![...ofRows, ...ofColumns].some(Boolean);
    const wrong = choice.value === "wrong";
    const shows = cell => !none && (wrong ? cell.querySelector("a.cell:not(.passed, .not_applicable)") : true);
    const inColumn = kept(ofColumns);
    const inRow = kept(ofRows);
    const columns = heads.slice(1).map((_, at) => inColumn[at] && rows.some((row, i) => inRow[i] && shows(row.cells[at + 1])));
    rows.forEach((row, i) => {
      row.hidden = !inRow[i] || !columns.some((shown, at) => shown && shows(row.cells[at + 1]));
      columns.forEach((shown, at) => { row.cells[at + 1].hidden = !shown; });
    });
    columns.forEach((shown, at) => { heads[at + 1].hidden = !shown; });
    const shown = new Set(rowsOf(matrix).flatMap(cellsOf).map(cell => cell.getAttribute("href").slice(1)));
    for (const body of battery.querySelectorAll(".evidence .result-body")) body.parentElement.hidden = !shown.has(body.id);
    const [subjects, properties] = [rowsOf(matrix), heads.slice(1).filter(head => !head.hidden)].map(each => each.length);
    battery.querySelector(".sieved").textContent = `${subjects} ${subjects === 1 ? "subject" : "subjects"}, ${properties} ${properties === 1 ? "property" : "properties"}`;
    const stop = matrix.querySelector("a.cell[tabindex='0']");
    if (!stop || stop.closest("[hidden]")) stopAt(matrix, rowsOf(matrix).flatMap(cellsOf)[0]);
  }

  // A table that is wider than its place says so.
  const widths = new ResizeObserver(entries => {
    for (const region of new Set(entries.map(entry => entry.target.closest(".scroll")))) {
      const wider = region.scrollWidth > region.clientWidth + 1;
      region.classList.toggle("wider", wider);
      region.previousElementSibling.hidden = !wider;
    }
  });

  document.addEventListener("keydown", event => {
    const cell = event.target.closest?.("a.cell");
    if (cell && !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey) move(event, cell);
  });
  document.addEventListener("input", event => {
    if (event.target.matches(".sieve")) sieve(event.target.closest(".battery"));
  });
  document.addEventListener("click", event => {
    const cell = event.target.closest("a.cell");
    if (cell && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      stopAt(cell.closest(".matrix"), cell);
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

  for (const matrix of document.querySelectorAll(".matrix")) {
    matrix.setAttribute("role", "grid");
    for (const cell of matrix.querySelectorAll("a.cell")) cell.tabIndex = -1;
    stopAt(matrix, matrix.querySelector("a.cell"));
  }
  for (const region of document.querySelectorAll(".scroll")) {
    const hint = paragraph("Scroll sideways for more →", "hint");
    hint.hidden = true;
    hint.setAttribute("aria-hidden", "true");
    region.before(hint);
    widths.observe(region);
    widths.observe(region.querySelector("table"));
  }
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
