// Zoom, search and keys of the flamegraph. It knows the frames by their attributes alone: data-x and data-n are
// a frame's first child and number of children in counts, so that a zoom is one multiplication.
(function () {
  "use strict";
  var root = document.documentElement;
  var canvas = document.getElementById("canvas");
  var frames = Array.prototype.slice.call(document.querySelectorAll(".f"));
  var legend = Array.prototype.slice.call(document.querySelectorAll(".l"));
  var details = document.getElementById("details");
  var matched = document.getElementById("matched");
  var reset = document.getElementById("reset");
  var input = document.getElementById("search");
  var total = +canvas.getAttribute("data-total");
  var row = +canvas.getAttribute("data-row");
  var graphHeight = +canvas.getAttribute("data-height");
  var top = +canvas.getAttribute("data-top");
  var margin = 10, charWidth = 6.63;
  var zoomed = null;
  var width = 1200;

  var isTime = canvas.getAttribute("data-weight") === "zombie-seconds";  // then the numbers are milliseconds
  function amount(n) { return isTime ? (n / 1000).toFixed(3) + " s" : n; }
  function num(node, name) { return +node.getAttribute("data-" + name); }

  frames.forEach(function (f) {
    f.x = num(f, "x"); f.n = num(f, "n"); f.d = num(f, "d");
    f.rect = f.querySelector("rect"); f.label = f.querySelector("text");
    f.name = f.getAttribute("data-label");
    f.title = f.querySelector("title").textContent;
    f.text = f.title.toLowerCase();
  });

  function fit(name, room) {
    var most = Math.floor((room - 6) / charWidth);
    if (most < 3) { return ""; }
    var taken = "", cells = 0, cut = -1;
    for (var c of name) {
      if (cells < most) { cut = taken.length; }
      cells += c.codePointAt(0) < 0x1100 ? 1 : 2;  // about what a terminal makes of it
      if (cells > most) { return taken.slice(0, cut) + "…"; }
      taken += c;
    }
    return taken;
  }

  function layout() {
    width = Math.max(640, window.innerWidth || 1200);
    root.setAttribute("width", width);
    var from = zoomed ? zoomed.x : 0, span = zoomed ? zoomed.n : total;
    var scale = (width - 2 * margin) / span;
    frames.forEach(function (f) {
      var below = zoomed && f.d < zoomed.d;
      var ancestor = below && f.x <= zoomed.x && f.x + f.n >= zoomed.x + zoomed.n;
      var x = ancestor ? 0 : (f.x - from) * scale, w = ancestor ? width - 2 * margin : f.n * scale;
      var hidden = (below && !ancestor) || x < -0.01 || x + w > width - 2 * margin + 0.01 || w < 0.3;
      f.style.display = hidden ? "none" : "";
      f.classList.toggle("a", Boolean(ancestor));
      if (hidden) { return; }
      f.rect.setAttribute("x", (margin + x).toFixed(2));
      f.rect.setAttribute("width", Math.max(w - 0.5, 0.3).toFixed(2));
      f.label.setAttribute("x", (margin + x + 3).toFixed(2));
      f.label.textContent = fit(f.name, w);
    });
    var right = document.querySelectorAll(".right");
    for (var i = 0; i < right.length; i++) { right[i].setAttribute("transform", "translate(" + (width - 1200) + ",0)"); }
    var lx = margin, ly = top + graphHeight + 30;
    legend.forEach(function (l) {
      var w = num(l, "w");
      if (lx > margin && lx + w > width - margin) { lx = margin; ly += 20; }
      l.setAttribute("transform", "translate(" + lx + "," + ly + ")");
      lx += w;
    });
    root.setAttribute("height", ly + 24);
    root.setAttribute("viewBox", "0 0 " + width + " " + (ly + 24));
    reset.style.display = zoomed ? "" : "none";
  }

  function zoom(f) { zoomed = f && f.n < total ? f : null; layout(); }

  function search(words) {
    words = words.trim().toLowerCase();
    var covered = [], sum = 0;
    frames.forEach(function (f) {
      var hit = Boolean(words) && f.text.indexOf(words) >= 0;
      f.classList.toggle("hit", hit);
      if (hit) { covered.push([f.x, f.x + f.n]); }
    });
    root.classList.toggle("searching", Boolean(words));
    covered.sort(function (a, b) { return a[0] - b[0] || b[1] - a[1]; });
    var end = 0;
    covered.forEach(function (c) {
      if (c[1] > end) { sum += c[1] - Math.max(c[0], end); end = c[1]; }
    });
    matched.textContent = words ? "matched " + amount(sum) + " of " + amount(total) + " (" + (100 * sum / total).toFixed(1) + " %)" : "";
  }

  function neighbour(f, key) {
    var best = null;
    frames.forEach(function (g) {
      if (g === f || g.style.display === "none") { return; }
      var inside = g.x <= f.x && g.x + g.n >= f.x + f.n;
      var over = f.x <= g.x && f.x + f.n >= g.x + g.n;
      if (key === "ArrowDown" && g.d === f.d - 1 && inside) { best = g; }
      if (key === "ArrowUp" && g.d === f.d + 1 && over && (!best || g.n > best.n)) { best = g; }
      if (key === "ArrowLeft" && g.d === f.d && g.x < f.x && (!best || g.x > best.x)) { best = g; }
      if (key === "ArrowRight" && g.d === f.d && g.x > f.x && (!best || g.x < best.x)) { best = g; }
    });
    return best;
  }

  function frameOf(node) { return node && node.closest ? node.closest(".f") : null; }
  function show(f) { details.textContent = f ? fit(f.title.replace(/\n/g, " · "), width - 20) : ""; }

  canvas.addEventListener("click", function (e) { var f = frameOf(e.target); if (f) { zoom(f); } });
  canvas.addEventListener("mouseover", function (e) { show(frameOf(e.target)); });
  canvas.addEventListener("mouseleave", function () { show(null); });
  canvas.addEventListener("focusin", function (e) {
    var f = frameOf(e.target);
    frames.forEach(function (g) { g.setAttribute("tabindex", g === f ? "0" : "-1"); });
    show(f);
  });
  reset.addEventListener("click", function () { zoom(null); });
  input.addEventListener("input", function () { search(input.value); });
  legend.forEach(function (l) {
    function choose() { input.value = input.value === l.getAttribute("data-label") ? "" : l.getAttribute("data-label"); search(input.value); }
    l.addEventListener("click", choose);
    l.addEventListener("keydown", function (e) { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(); } });
  });
  window.addEventListener("resize", layout);
  window.addEventListener("keydown", function (e) {
    if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === "f" || e.key === "/" && document.activeElement !== input) {
      e.preventDefault(); input.focus(); input.select(); return;
    }
    if (e.key === "Escape") { input.value = ""; search(""); zoom(null); input.blur(); return; }
    var f = frameOf(document.activeElement);
    if (!f) { return; }
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); zoom(zoomed === f ? null : f); f.focus(); }
    var next = neighbour(f, e.key);
    if (next) { e.preventDefault(); next.focus(); }
  });
  root.classList.add("scripted");
  layout();
})();
