for (const svg of document.querySelectorAll("svg.hover")) {
  const left = +svg.dataset.left, right = +svg.dataset.right, most = +svg.dataset.nines;
  const cursor = svg.querySelector(".cursor");
  const tip = svg.parentNode.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
  const curves = [...svg.querySelectorAll("path[data-values]")].map(path => ({
    name: path.dataset.name, colour: getComputedStyle(path).stroke,
    values: path.dataset.values.split(" ").map(pair => pair.split(":").map(Number)),
  }));
  const show = us => us >= 999500 ? (us / 1e6).toFixed(2) + " s" : us >= 10000 ? (us / 1e3).toFixed(1) + " ms" : us.toFixed(us < 100 ? 1 : 0) + " µs";
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    if (x < left || x > right) { tip.hidden = true; cursor.innerHTML = ""; return; }
    const nines = (x - left) / (right - left) * most;
    const percent = 100 * (1 - 10 ** -nines);
    cursor.innerHTML = `<line x1="${x}" x2="${x}" y1="18" y2="352"/>`;
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: "p" + percent.toFixed(Math.max(0, Math.ceil(nines) - 1)) }));
    const table = tip.appendChild(document.createElement("table"));
    for (const curve of curves) {
      const point = curve.values.findLast(value => value[0] <= nines) ?? curve.values[0];
      const row = table.insertRow();
      row.insertCell().textContent = curve.name;
      row.cells[0].style.color = curve.colour;
      row.insertCell().textContent = nines > curve.values.at(-1)[0] + .3 ? "–" : show(point[1]);
    }
    tip.hidden = false;
    const parent = svg.parentNode.getBoundingClientRect(), at = event.clientX - parent.left;
    tip.style.left = (at + 18 + tip.offsetWidth > parent.width ? at - tip.offsetWidth - 18 : at + 18) + "px";
    tip.style.top = Math.max(8, event.clientY - parent.top - tip.offsetHeight / 2) + "px";
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.innerHTML = ""; });
}
