(function () {
  "use strict";
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var coarse = window.matchMedia("(pointer: coarse)");
  var config = {
    displaylogo: false, responsive: true, plotlyServerURL: "", showSendToCloud: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]
  };
  var hidden = {};
  var printing = false;

  function themed(layout) {
    var isDark = dark.matches && !printing;
    var fore = isDark ? "#e7eaee" : "#1b1f24";
    var line = isDark ? "#363d46" : "#d5dae0";
    var copy = JSON.parse(JSON.stringify(layout));
    copy.paper_bgcolor = "rgba(0,0,0,0)";
    copy.plot_bgcolor = "rgba(0,0,0,0)";
    copy.font.color = fore;
    copy.hoverlabel.bgcolor = isDark ? "#262c34" : "#ffffff";
    copy.hoverlabel.bordercolor = isDark ? "#8a95a1" : "#5b6470";
    copy.hoverlabel.font = { color: fore, size: 12 };
    copy.modebar = { bgcolor: "rgba(0,0,0,0)", color: isDark ? "#8a95a1" : "#8a95a1", activecolor: fore };
    ["xaxis", "yaxis"].forEach(function (name) {
      var axis = copy[name];
      axis.gridcolor = line;
      axis.zerolinecolor = line;
      axis.linecolor = isDark ? "#8a95a1" : "#5b6470";
      axis.title = axis.title || { text: "" };
    });
    copy.dragmode = coarse.matches ? false : "zoom";
    if (printing) {
      copy.width = 640;
      copy.autosize = false;
      if (!copy.annotations) { copy.height = 320; }
    }
    return copy;
  }

  function draw(box) {
    var figure = figures[box.getAttribute("data-figure")];
    var data = figure.data.map(function (trace) {
      var copy = Object.assign({}, trace);
      if (trace.legendgroup) { copy.visible = !hidden[trace.legendgroup]; }
      return copy;
    });
    Plotly.react(box, data, themed(figure.layout), config);
  }

  function drawAll() {
    Array.prototype.forEach.call(document.querySelectorAll("[data-figure]"), draw);
  }

  Array.prototype.forEach.call(document.querySelectorAll("[data-group]"), function (button) {
    button.addEventListener("click", function () {
      var group = button.getAttribute("data-group");
      hidden[group] = !hidden[group];
      button.setAttribute("aria-pressed", String(!hidden[group]));
      drawAll();
    });
  });

  Array.prototype.forEach.call(document.querySelectorAll("[data-show]"), function (button) {
    button.addEventListener("click", function () {
      Array.prototype.forEach.call(button.parentNode.children, function (other) {
        other.setAttribute("aria-pressed", String(other === button));
      });
      var box = document.getElementById(button.getAttribute("aria-controls"));
      box.setAttribute("data-figure", button.getAttribute("data-show"));
      draw(box);
    });
  });

  dark.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", function () { printing = true; drawAll(); });
  window.addEventListener("afterprint", function () { printing = false; drawAll(); });
  drawAll();
})();
