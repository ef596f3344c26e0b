// Folds and opens the groups of a drawing: computes the places that layout.py computes.
(() => {
  "use strict";

  const isEntry = (key) => key.includes("<");
  const isExit = (key) => key.includes(">");
  const isPort = (key) => isEntry(key) || isExit(key);
  const isLeaf = (block) => typeof block === "string";
  const round = (x) => String(Math.round(x * 10) / 10);

  const isLine = (block) =>
    isLeaf(block) ? isPort(block) : block.series ? block.series.every(isLine) : Boolean(block.lane);

  const startsAtPort = (block) =>
    isLeaf(block) ? isEntry(block)
      : block.series ? startsAtPort(block.series[0])
      : block.parallel ? block.parallel.every(startsAtPort) : false;

  const endsAtPort = (block) =>
    isLeaf(block) ? isExit(block)
      : block.series ? endsAtPort(block.series[block.series.length - 1])
      : block.parallel ? block.parallel.every(endsAtPort) : false;

  class Placer {
    constructor(data, view) {
      this.data = data;
      this.c = data.constants;
      this.view = view;
      this.extents = new Map();
      this.rectangles = new Map();
      this.ports = new Map();
      this.passages = new Map();
      this.skips = new Set();
      this.lines = new Map();
    }

    placeAll() {
      const { margin, bus } = this.c;
      const arrangement = this.arrangement(this.data.root);
      const extent = this.measure(arrangement.block);
      this.place(arrangement.block, margin + extent.left, margin + bus);
      this.routeLinks(this.data.root, arrangement);
      this.width = extent.left + extent.right + 2 * margin;
      this.height = extent.height + 2 * bus + 2 * margin;
    }

    arrangement(key) {
      const group = this.data.groups[key];
      return this.view.short.has(key) ? group.short : group.full;
    }

    measure(block) {
      if (!this.extents.has(block)) this.extents.set(block, this.computeExtent(block));
      return this.extents.get(block);
    }

    computeExtent(block) {
      const lane = this.c.lane / 2;
      if (isLeaf(block)) {
        if (isPort(block)) return { left: lane, right: lane, height: 0 };
        if (this.view.open.has(block)) return this.measureGroup(block);
        const [width, height] = this.data.sizes[block];
        return { left: width / 2, right: width / 2, height };
      }
      if (block.lane) return { left: lane, right: lane, height: 0 };
      if (block.series) {
        const inside = block.series.map((item) => this.measure(item));
        let height = inside.reduce((sum, e) => sum + e.height, 0);
        for (let i = 1; i < inside.length; i++) {
          height += this.gap(block.series[i - 1], block.series[i]);
        }
        return {
          left: Math.max(...inside.map((e) => e.left)),
          right: Math.max(...inside.map((e) => e.right)),
          height,
        };
      }
      if (block.parallel) {
        const axes = this.branchAxes(block);
        const inside = block.parallel.map((branch) => this.measure(branch));
        return {
          left: Math.max(...inside.map((e, i) => e.left - axes[i])),
          right: Math.max(...inside.map((e, i) => axes[i] + e.right)),
          height: Math.max(...inside.map((e) => e.height)),
        };
      }
      return this.measureRows(block);
    }

    measureGroup(key) {
      const content = this.measure(this.arrangement(key).block);
      const [top, bottom] = this.insets(key);
      const width = content.left + content.right + 2 * this.c.framePadding;
      const missing = Math.max(0, this.data.groups[key].title - width) / 2;
      return {
        left: content.left + this.c.framePadding + missing,
        right: content.right + this.c.framePadding + missing,
        height: content.height + top + bottom,
      };
    }

    insets(key) {
      const block = this.arrangement(key).block;
      return [startsAtPort(block) ? 0 : this.c.portGap, endsAtPort(block) ? 0 : this.c.exitGap];
    }

    gap(above, below) {
      if (isLeaf(above) && isLeaf(below)) {
        if (this.data.attached[below] === above) return 0;
        if (isPort(below)) return isPort(above) ? this.c.portGap + this.c.exitGap : this.c.exitGap;
        return isPort(above) ? this.c.portGap : this.c.gap;
      }
      return startsAtPort(above) ? this.c.portGap + this.c.bus : this.c.wideGap;
    }

    branchAxes(block) {
      const extents = block.parallel.map((branch) => this.measure(branch));
      let axes = extents.map(() => 0);
      let right = 0;
      const all = [...extents.keys()];
      const solid = all.filter((i) => !isLine(block.parallel[i]));
      const spine = block.spine;
      const order = spine === null ? solid : [spine, ...solid.filter((i) => i !== spine)];
      order.forEach((i, n) => {
        axes[i] = right + (n ? this.c.branchGap + extents[i].left : 0);
        right = axes[i] + extents[i].right;
      });
      if (order.length && spine === null) {
        const shift = (axes[order[0]] + axes[order[order.length - 1]]) / 2;
        axes = axes.map((x) => x - shift);
        right -= shift;
      }
      const lines = all.filter((i) => !solid.includes(i));
      for (const i of lines) {
        axes[i] = right + extents[i].left + (order.length ? this.c.lineGap : 0);
        right = axes[i] + extents[i].right;
      }
      if (!order.length) {
        const shift = (axes[lines[0]] + axes[lines[lines.length - 1]]) / 2;
        axes = axes.map((x) => x - shift);
      }
      return axes;
    }

    middle(block) {
      const places = block.rows.flatMap((row) => row.map(([, x]) => x));
      return (Math.min(...places) + Math.max(...places)) / 2;
    }

    unit(block) {
      let unit = 1;
      for (const row of block.rows) {
        for (let i = 1; i < row.length; i++) {
          const needed =
            this.measure(row[i - 1][0]).right + this.measure(row[i][0]).left + this.c.branchGap;
          unit = Math.max(unit, needed / Math.max(row[i][1] - row[i - 1][1], 1e-3));
        }
      }
      return unit;
    }

    measureRows(block) {
      const unit = this.unit(block);
      const middle = this.middle(block) * unit;
      const cells = block.rows.flatMap((row) => row.map(([c, x]) => [x * unit, this.measure(c)]));
      return {
        left: Math.max(...cells.map(([x, e]) => middle - x + e.left)),
        right: Math.max(...cells.map(([x, e]) => x - middle + e.right)),
        height: block.rows.reduce((sum, row) => sum + this.rowHeight(row), 0)
          + this.c.wideGap * (block.rows.length - 1),
      };
    }

    rowHeight(row) {
      return Math.max(...row.map(([cell]) => this.measure(cell).height));
    }

    placeGroup(key, axis, top) {
      const extent = this.measureGroup(key);
      const width = extent.left + extent.right;
      const frame = { x: axis - extent.left, y: top, width, height: extent.height, axis };
      this.rectangles.set(key, frame);
      const arrangement = this.arrangement(key);
      this.place(arrangement.block, axis, top + this.insets(key)[0]);
      const ports = new Set(arrangement.links.flatMap((l) => [l[0], l[1]]).filter(isPort));
      for (const port of ports) {
        this.ports.get(port)[1] = isEntry(port) ? frame.y : frame.y + frame.height;
      }
      this.routeLinks(key, arrangement);
    }

    routeLinks(key, arrangement) {
      const name = this.view.short.has(key) ? "short" : "full";
      arrangement.links.forEach((link, i) => {
        this.lines.set(`${key}/${name}/${i}`, this.route(link));
      });
    }

    place(block, axis, top) {
      if (isLeaf(block)) {
        this.placeLeaf(block, axis, top);
      } else if (block.series) {
        let y = top;
        block.series.forEach((item, i) => {
          this.place(item, axis, y);
          y += this.measure(item).height;
          if (i + 1 < block.series.length) y += this.gap(item, block.series[i + 1]);
        });
      } else if (block.parallel) {
        const height = this.measure(block).height;
        const axes = this.branchAxes(block);
        block.parallel.forEach((branch, i) => {
          const first = branch.series[0];
          if (first.lane) {
            this.addPassage(first, axis + axes[i], top, top + height);
            return;
          }
          this.place(branch, axis + axes[i], top);
          if (isLeaf(first) && branch.series.length === 1 && isPort(first)) {
            this.skips.add(first);
            if (isExit(first)) {
              this.addPassage({ lane: ["", first] }, axis + axes[i], top, top + height);
            }
          }
        });
      } else if (block.rows) {
        const unit = this.unit(block);
        const middle = this.middle(block);
        let y = top;
        for (const row of block.rows) {
          const height = this.rowHeight(row);
          for (const [cell, x] of row) {
            const at = axis + (x - middle) * unit;
            if (cell.lane) {
              this.addPassage(cell, at, y, y + height);
              continue;
            }
            this.place(cell, at, y);
            if (isLeaf(cell) && isExit(cell)) {
              this.addPassage({ lane: ["", cell] }, at, y, y + height);
            }
          }
          y += height + this.c.wideGap;
        }
      }
    }

    placeLeaf(key, axis, top) {
      if (isPort(key)) {
        this.ports.set(key, [axis, top]);
      } else if (this.view.open.has(key)) {
        this.placeGroup(key, axis, top);
      } else {
        const [width, height] = this.data.sizes[key];
        this.rectangles.set(key, { x: axis - width / 2, y: top, width, height, axis });
      }
    }

    addPassage(block, x, top, bottom) {
      const key = block.lane.join(" ");
      if (!this.passages.has(key)) this.passages.set(key, []);
      this.passages.get(key).push({ x, top, bottom });
    }

    route([source, target, value, sourceValue]) {
      const start = this.end(source, `${source}>${sourceValue}`, true);
      const end = this.end(target, `${target}<${value}`, false);
      const passages = [
        ...(this.passages.get(`${source} ${target}`) || []),
        ...(this.passages.get(` ${target}`) || []),
      ];
      const points = [start];
      for (const p of passages) {
        points.push(...this.turn(points[points.length - 1], [p.x, p.top]), [p.x, p.bottom]);
      }
      points.push(...this.turn(points[points.length - 1], end));
      return {
        points: simplify(points),
        isSkip: passages.length > 0 || this.skips.has(source) || this.skips.has(target),
        hasHead: !isExit(target) && !this.view.open.has(target),
      };
    }

    end(key, port, isSource) {
      if (isPort(key)) return this.ports.get(key);
      if (this.view.open.has(key)) return this.ports.get(port);
      const r = this.rectangles.get(key);
      return [r.axis, isSource ? r.y + r.height : r.y];
    }

    turn([x0, y0], [x1, y1]) {
      const bus = Math.max(y0, y1 - this.c.bus);
      return [[x0, bus], [x1, bus], [x1, y1]];
    }
  }

  function simplify(points) {
    const kept = [];
    for (const [x, y] of points) {
      const last = kept[kept.length - 1];
      if (last && Math.abs(last[0] - x) < 0.01 && Math.abs(last[1] - y) < 0.01) continue;
      if (kept.length > 1) {
        const [[x0, y0], [x1, y1]] = kept.slice(-2);
        if (Math.abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) < 0.01) kept.pop();
      }
      kept.push([x, y]);
    }
    return kept;
  }

  function formatPath(points, corner) {
    const distance = (a, b) => Math.abs(a[0] - b[0]) + Math.abs(a[1] - b[1]);
    const move = (a, b, by) => {
      const d = distance(a, b) || 1;
      return [a[0] + ((b[0] - a[0]) * by) / d, a[1] + ((b[1] - a[1]) * by) / d];
    };
    const at = (p) => `${round(p[0])} ${round(p[1])}`;
    let path = `M${at(points[0])}`;
    for (let i = 1; i + 1 < points.length; i++) {
      const [before, here, after] = points.slice(i - 1, i + 2);
      const radius = Math.min(corner, distance(before, here) / 2, distance(here, after) / 2);
      path += `L${at(move(here, before, radius))}`;
      path += `Q${at(here)} ${at(move(here, after, radius))}`;
    }
    return `${path}L${at(points[points.length - 1])}`;
  }

  function start(figure) {
    const data = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const svg = figure.querySelector(".scroll svg");
    const view = { open: new Set(data.open), short: new Set(data.short) };
    const find = (kind) =>
      [...svg.querySelectorAll(`[data-${kind}]`)].map((e) => [e.getAttribute(`data-${kind}`), e]);
    const [frames, titles, boxes, lines] = ["frame", "title", "box", "line"].map(find);

    function show(element, isShown) {
      if (isShown) element.removeAttribute("display");
      else element.setAttribute("display", "none");
    }

    function draw() {
      const placer = new Placer(data, view);
      placer.placeAll();
      const isOpen = (key) => placer.rectangles.has(key) && view.open.has(key);
      const move = (element, r) =>
        element.setAttribute("transform", `translate(${round(r.x)} ${round(r.y)})`);
      for (const [key, element] of [...frames, ...titles]) {
        show(element, isOpen(key));
        if (isOpen(key)) move(element, placer.rectangles.get(key));
      }
      for (const [key, element] of frames) {
        if (!isOpen(key)) continue;
        const r = placer.rectangles.get(key);
        for (const rect of element.children) {
          rect.setAttribute("width", round(r.width));
          rect.setAttribute("height", round(r.height));
          show(rect, view.short.has(key) || !rect.x.baseVal.value);
        }
      }
      for (const [key, element] of boxes) {
        const isShown = placer.rectangles.has(key) && !view.open.has(key);
        show(element, isShown);
        if (isShown) move(element, placer.rectangles.get(key));
      }
      for (const [key, element] of lines) {
        const line = placer.lines.get(key);
        show(element, Boolean(line));
        if (!line) continue;
        const kind = line.isSkip ? "line-skip" : "line";
        element.setAttribute("d", formatPath(line.points, data.constants.corner));
        element.setAttribute("class", line.isSkip ? "line skip" : "line");
        if (line.hasHead) element.setAttribute("marker-end", `url(#${data.prefix}-${kind})`);
        else element.removeAttribute("marker-end");
      }
      for (const [key, element] of repeats) {
        element.setAttribute("aria-pressed", String(!view.short.has(key)));
      }
      svg.setAttribute("viewBox", `0 0 ${round(placer.width)} ${round(placer.height)}`);
      svg.style.width = `${round(placer.width)}px`;
    }

    const repeats = find("repeat");

    function toggle(key) {
      if (view.open.has(key)) view.open.delete(key);
      else view.open.add(key);
      draw();
      const visible = [...svg.querySelectorAll(`[data-toggle="${key}"]`)];
      const next = visible.find((e) => e.getAttribute("display") !== "none");
      if (next) next.focus({ preventScroll: true });
    }

    function press(element) {
      const repeat = element.closest("[data-repeat]");
      if (repeat) {
        const key = repeat.getAttribute("data-repeat");
        if (view.short.has(key)) view.short.delete(key);
        else view.short.add(key);
        draw();
        return true;
      }
      const button = element.closest("[data-toggle]");
      if (button) toggle(button.getAttribute("data-toggle"));
      return Boolean(button);
    }

    svg.addEventListener("click", (event) => press(event.target));
    svg.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      if (press(event.target)) event.preventDefault();
    });
    const groups = Object.keys(data.groups).filter((key) => key !== data.root);
    for (const button of figure.querySelectorAll("button[data-all]")) {
      button.addEventListener("click", () => {
        const what = button.getAttribute("data-all");
        const open = what === "open" ? groups : what === "fold" ? [] : data.open;
        view.open = new Set([data.root, ...open]);
        draw();
      });
    }
    for (const button of figure.querySelectorAll("[hidden]")) button.hidden = false;
  }

  for (const figure of document.querySelectorAll(".netdsl-graph")) {
    if (!figure.dataset.ready) start(figure);
    figure.dataset.ready = "yes";
  }
})();
