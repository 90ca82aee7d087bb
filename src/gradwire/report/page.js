(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const config = {
    displaylogo: false, plotlyServerURL: "", showSendToCloud: false,
    modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"]
  };
  const names = ["method", "seeds", "rounds", "seed", "round", "client"];
  const boxes = Array.from(document.querySelectorAll("[data-figure]"));
  const seen = new Set();
  const hidden = {};
  let loaded = false;
  let printing = false;

  function each(selector, act) {
    document.querySelectorAll(selector).forEach(act);
  }

  async function unpacked(id) {
    const text = atob(document.getElementById(id).textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) { bytes[i] = text.charCodeAt(i); }
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function themed(layout, onPaper) {
    const isDark = dark.matches && !onPaper;
    const fore = isDark ? "#e7eaee" : "#1b1f24";
    const line = isDark ? "#363d46" : "#d5dae0";
    const grey = isDark ? "#8a95a1" : "#5b6470";
    const copy = JSON.parse(JSON.stringify(layout));
    copy.paper_bgcolor = copy.plot_bgcolor = onPaper ? "#ffffff" : "rgba(0,0,0,0)";
    copy.font.color = fore;
    copy.hoverlabel.bgcolor = isDark ? "#262c34" : "#ffffff";
    copy.hoverlabel.bordercolor = grey;
    copy.hoverlabel.font = { color: fore, size: 12 };
    copy.modebar = { bgcolor: "rgba(0,0,0,0)", color: "#8a95a1", activecolor: fore };
    ["xaxis", "yaxis"].forEach(function (name) {
      const axis = copy[name];
      axis.gridcolor = axis.zerolinecolor = line;
      axis.linecolor = grey;
      axis.title = axis.title || { text: "" };
    });
    copy.dragmode = coarse.matches ? false : "zoom";
    if (onPaper) {
      copy.width = 640;
      if (!copy.annotations) { copy.height = 320; }
    }
    return copy;
  }

  function traces(figure) {
    return figure.data.map(function (trace) {
      return trace.legendgroup ? Object.assign({}, trace, { visible: !hidden[trace.legendgroup] }) : trace;
    });
  }

  function draw(box) {
    if (!loaded) { return; }
    const figure = figures[box.dataset.figure];
    const layout = themed(figure.layout, printing);
    if (!printing) { layout.width = box.clientWidth; }
    layout.xaxis.nticks = Math.max(3, Math.floor(layout.width / 60));
    box.style.height = layout.height + "px";
    Plotly.react(box, traces(figure), layout, config);
  }

  function drawAll() {
    boxes.forEach(function (box) {
      if (printing) { seen.add(box); }
      if (seen.has(box)) { draw(box); }
    });
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 60000);
  }

  function cell(value) {
    let text = value === null ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) { text = "'" + text; }  // no formula in a spreadsheet
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  async function saveSheet(button) {
    const sheet = JSON.parse(await unpacked("sheet-" + button.dataset.sheet));
    const wanted = button.dataset.columns ? button.dataset.columns.split(" ") : Object.keys(sheet);
    const columns = names.concat(wanted.filter(function (name) { return !names.includes(name); }))
      .filter(function (name) { return name in sheet; });
    const lines = sheet[columns[0]].map(function (_, i) {
      return columns.map(function (name) { return cell(sheet[name][i]); }).join(",");
    });
    save(new Blob([columns.join(",") + "\r\n" + lines.join("\r\n") + "\r\n"], { type: "text/csv" }),
      button.dataset.csv + ".csv");
  }

  async function saveImage(button) {
    const name = document.getElementById(button.dataset.of).dataset.figure;
    const layout = themed(figures[name].layout, true);
    const size = { format: button.dataset.image, width: 800, height: layout.annotations ? layout.height : 560 };
    layout.width = size.width;
    layout.height = size.height;
    if (!layout.annotations) {  // outside the page there is no legend but its own
      layout.showlegend = true;
      layout.legend = { orientation: "h", x: 0, y: -0.18, yanchor: "top" };
    }
    const image = await Plotly.toImage({ data: traces(figures[name]), layout: layout }, size);
    const text = decodeURIComponent(image.slice(image.indexOf(",") + 1));
    const bytes = size.format === "svg" ? text : Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); });
    save(new Blob([bytes], { type: size.format === "svg" ? "image/svg+xml" : "image/png" }), name + "." + size.format);
  }

  each("[data-group]", function (button) {
    button.addEventListener("click", function () {
      const group = button.dataset.group;
      hidden[group] = !hidden[group];
      button.setAttribute("aria-pressed", String(!hidden[group]));
      drawAll();
    });
  });

  each("[data-show]", function (button) {
    button.addEventListener("click", function () {
      Array.from(button.parentNode.children).forEach(function (other) {
        other.setAttribute("aria-pressed", String(other === button));
      });
      const box = document.getElementById(button.getAttribute("aria-controls"));
      box.dataset.figure = button.dataset.show;
      seen.add(box);
      draw(box);
    });
  });

  each("[data-csv]", function (button) { button.addEventListener("click", function () { saveSheet(button); }); });
  each("[data-image]", function (button) { button.addEventListener("click", function () { saveImage(button); }); });

  // Room for what is not drawn yet, so that nothing moves when it is.
  boxes.forEach(function (box) { box.style.height = figures[box.dataset.figure].layout.height + "px"; });

  // What is far below is drawn when it comes near: a page of many charts is there at once.
  const near = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting && !seen.has(entry.target)) {
        seen.add(entry.target);
        near.unobserve(entry.target);
        setTimeout(function () { draw(entry.target); });
      }
    });
  }, { rootMargin: "400px" });

  let waiting = 0;
  window.addEventListener("resize", function () {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 100);
  });
  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", function () { printing = true; drawAll(); });
  window.addEventListener("afterprint", function () { printing = false; drawAll(); });

  unpacked("plotly").then(function (code) {
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
    loaded = true;
    drawAll();
    boxes.forEach(function (box) { near.observe(box); });
  });
})();
