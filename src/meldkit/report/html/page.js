"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = figures.map((_, index) => document.getElementById(`figure-${index + 1}`));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours, which colour-blind people can tell apart; black gives way to the text's colour.
  const lines = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
  const linesOnDark = ["#56B4E9", "#E69F00", "#2FBF9B", "#E08DBD", "#F0E442", "#8FB8DE"];
  const even = (colours) => colours.map((colour, index) => [index / (colours.length - 1), colour]);
  const scales = {
    // The middle of a diverging scale is the page's own colour: no difference, nothing to see.
    light: {
      sequential: "Viridis",
      diverging: even(["#b2182b", "#ef8a62", "#fddbc7", "#f7f7f7", "#d1e5f0", "#67a9cf", "#2166ac"]),
    },
    dark: {
      sequential: "Viridis",
      diverging: even(["#fdae8b", "#d6604d", "#8a2f33", "#24262b", "#21507e", "#4393c3", "#a6d3ea"]),
    },
  };

  function themed(figure, print) {
    const night = dark.matches && !print;
    const style = getComputedStyle(document.documentElement);
    const colour = (name, onPaper) => (print ? onPaper : style.getPropertyValue(name).trim());
    const text = colour("--text", "#000000");
    const grid = colour("--grid", "#dddddd");
    const panel = colour("--panel", "#ffffff");
    const layout = structuredClone(figure.layout);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { family: "system-ui, sans-serif", size: 12, color: text };
    layout.colorway = [...(night ? linesOnDark : lines), text];
    layout.hoverlabel = { align: "left", bgcolor: panel, bordercolor: grid, font: { color: text } };
    for (const [name, axis] of Object.entries(layout)) {
      if (/^[xy]axis/.test(name)) {
        Object.assign(axis, { gridcolor: grid, zerolinecolor: grid, linecolor: grid, tickcolor: grid });
      }
    }
    // A finger that scrolls the page must not be caught by a plot.
    const mouse = matchMedia("(pointer: fine)").matches;
    layout.dragmode = mouse ? "zoom" : false;
    const data = figure.data.map((trace, index) => {
      const scale = figure.scales[index];
      if (!scale) return trace;
      // Gaps between narrow cells would take much of what is to be seen.
      const xgap = plots[0].clientWidth < 15 * trace.x.length ? 0 : trace.xgap;
      return { ...trace, xgap, colorscale: scales[night ? "dark" : "light"][scale] };
    });
    const config = { responsive: true, displaylogo: false, displayModeBar: mouse ? "hover" : false };
    return [data, layout, config];
  }

  const draw = (print) =>
    Promise.all(figures.map((figure, index) => Plotly.react(plots[index], ...themed(figure, print))));

  draw(false).then(() => document.documentElement.setAttribute("data-drawn", figures.length));
  dark.addEventListener("change", () => draw(false));
  addEventListener("beforeprint", () => draw(true));
  addEventListener("afterprint", () => draw(false));
})();
