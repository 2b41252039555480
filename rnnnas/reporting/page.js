"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg", root = document.documentElement;
  const make = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    parent.append(node);
    return node;
  };
  const colour = (op) => "var(--op-" + op.replace(/[^a-zA-Z0-9_-]/g, "-") + ")";
  const write = (parent, x, y, text, plain) => {
    const at = make("text", { x, y: y + 4.2, "text-anchor": "middle" }, parent);
    if (plain) { at.textContent = text; return; }
    let low = false;
    text.split(/_\{([^}]*)\}/).forEach((part, i) => {
      const sub = i % 2 === 1;
      if (!part) return;
      const span = make("tspan", sub !== low ? { dy: sub ? 3 : -3 } : {}, at);
      if (sub) span.setAttribute("font-size", 9);
      span.textContent = part;
      low = sub;
    });
  };
  const box = (parent, [x, y, w, h], rx, fill, stroke) =>
    make("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx, fill, stroke, "stroke-width": 1.4 }, parent);
  // A cell as the page's own drawings have it; width and height are those of the largest frame.
  const draw = (svg, cell, width, height, label) => {
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.setAttribute("aria-label", label);
    const all = make("g", { transform: `translate(${(width - cell.w) / 2} ${(height - cell.h) / 2})` }, svg);
    for (const [x, y, text] of cell.c) make("text", { x, y, "font-weight": "bold" }, all).textContent = text;
    for (const [kind, op, path, head, place] of cell.l) {
      const stroke = kind === "op" ? colour(op) : kind === "input" ? "var(--ink)" : "var(--faint)";
      make("path", { d: path, fill: "none", stroke, "stroke-width": kind === "concat" ? 1 : 2 }, all);
      if (head) make("polygon", { points: head, fill: stroke }, all);
      if (place) { box(all, place, 9, "var(--card)", stroke); write(all, place[0], place[1], op, true); }
    }
    for (const [x, y, w, h, kind, text] of cell.b) {
      box(all, [x, y, w, h], 7, kind === "node" ? "var(--card)" : "var(--wash)", "var(--ink)");
      write(all, x, y, text, false);
    }
  };
  for (const part of document.querySelectorAll(".frames")) {
    const data = JSON.parse(part.querySelector("script").textContent);
    const range = part.querySelector("input"), go = part.querySelector(".go");
    if (!range) continue;
    const said = part.querySelector("output"), genes = part.querySelector(".genes code");
    const svg = part.querySelector(".wide > svg");
    const width = Math.max(...data.cells.map((c) => c.w)), height = Math.max(...data.cells.map((c) => c.h));
    const span = data.high - data.low;
    let shown = -1;
    const show = () => {
      const frame = data.frames[+range.value], text = data.texts[frame.g];
      said.textContent = `${data.noun} ${frame.e} of ${data.total}`;
      range.setAttribute("aria-valuetext", `${data.noun} ${frame.e}: ${text}`);
      genes.textContent = text[0] === "{" ? "" : text;
      if (shown !== frame.g) draw(svg, data.cells[frame.g], width, height, text);
      shown = frame.g;
      for (const maps of part.querySelectorAll(".maps")) {
        const table = frame.a[maps.dataset.cell], names = data.names[maps.dataset.cell];
        const kept = new Set(frame.k[maps.dataset.cell]), count = names.ops.length;
        maps.querySelectorAll("svg").forEach((map, o) => map.querySelectorAll("rect").forEach((rect, row) => {
          const share = table[row * count + o] / 1e4;
          const part = span > 0 ? (share - data.low) / span : 0.5;
          rect.setAttribute("fill-opacity", (data.floor + (1 - data.floor) * part).toFixed(2));
          rect.classList.toggle("kept", kept.has(row * count + o));
          rect.firstChild.textContent = `${names.rows[row]}, ${names.ops[o]}: ${share.toFixed(3)}`;
        }));
      }
    };
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; go.textContent = "play"; go.setAttribute("aria-label", "Play"); };
    go.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (+range.value === +range.max) range.value = 0;
      show();
      go.textContent = "pause";
      go.setAttribute("aria-label", "Pause");
      timer = setInterval(() => {
        if (+range.value === +range.max) { stop(); return; }
        range.value = +range.value + 1;
        show();
      }, Math.max(120, Math.min(700, 12000 / data.frames.length)));
    });
    range.addEventListener("input", () => { if (timer) stop(); show(); });
    show();
  }
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => {
      const code = button.parentElement.querySelector("code");
      getSelection().selectAllChildren(code);
      const done = () => { button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500); };
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, () => {});
      else if (document.execCommand("copy")) done();
    });
  }
  const theme = document.querySelector(".theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "light" : "dark"; theme.setAttribute("aria-label", `Show the ${theme.textContent} theme`); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();
})();
