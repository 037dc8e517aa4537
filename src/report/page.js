// Values under the pointer: the nearest point of each curve, read back from where it was drawn.
for (const svg of document.querySelectorAll("svg[data-field]")) {
  const lines = [...svg.querySelectorAll("polyline")];
  if (!lines.length) continue;
  const numbers = (text) => text.trim().split(/[ ,]+/).map(Number);
  const [left, top, wide, high] = numbers(svg.dataset.field);
  const axes = { x: numbers(svg.dataset.x), y: numbers(svg.dataset.y) };
  const value = ([from, to, log], place) =>
    log ? from * (to / from) ** place : from + (to - from) * place;
  const text = (v) => (Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toPrecision(3) : +v.toPrecision(4) + "");
  const curves = lines.map((line) => {
    const flat = numbers(line.getAttribute("points"));
    const points = [];
    for (let at = 0; at + 1 < flat.length; at += 2) points.push([flat[at], flat[at + 1]]);
    return { name: line.dataset.name, points };
  });
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
  rule.setAttribute("class", "axis dashed");
  const box = document.createElement("div");
  box.className = "read";
  const hide = () => { rule.remove(); box.remove(); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    if (place.x < left || place.x > left + wide || place.y < top || place.y > top + high) return hide();
    const near = curves.map(({ name, points }) => {
      const best = points.reduce((a, b) => (Math.abs(b[0] - place.x) < Math.abs(a[0] - place.x) ? b : a));
      return { name, x: best[0], y: best[1] };
    });
    const x = near.reduce((a, b) => (Math.abs(b.x - place.x) < Math.abs(a.x - place.x) ? b : a)).x;
    for (const [key, at] of [["x1", x], ["x2", x], ["y1", top], ["y2", top + high]]) rule.setAttribute(key, at);
    svg.append(rule);
    const at = text(value(axes.x, (x - left) / wide));
    box.textContent = [at, ...near.map((n) => `${n.name}: ${text(value(axes.y, 1 - (n.y - top) / high))}`)].join("\n");
    svg.parentNode.append(box);
    const frame = svg.parentNode.getBoundingClientRect();
    const beside = event.clientX - frame.left;
    box.style.top = `${event.clientY - frame.top + 14}px`;
    box.style.left = `${Math.max(0, Math.min(beside + 14, frame.width - box.offsetWidth - 4))}px`;
  });
}
