// What a reader could not read of a page, as a list of sentences; empty: all is well. An expression: a function of the
// element to look into.
(root) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const seen = new Map();
  // Any colour that CSS can write, as [r, g, b, alpha].
  const rgba = (colour) => {
    if (!seen.has(colour)) {
      brush.clearRect(0, 0, 1, 1);
      brush.fillStyle = "#000";
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
      seen.set(colour, [r, g, b, a / 255]);
    }
    return seen.get(colour);
  };
  const over = (top, under) => {
    const alpha = top[3] + under[3] * (1 - top[3]);
    if (!alpha) return [0, 0, 0, 0];
    return [...[0, 1, 2].map((i) => (top[i] * top[3] + under[i] * under[3] * (1 - top[3])) / alpha), alpha];
  };
  const dark = getComputedStyle(document.documentElement).colorScheme.trim() === "dark"
    || (/dark/.test(getComputedStyle(document.documentElement).colorScheme) && matchMedia("(prefers-color-scheme: dark)").matches);
  const canvasColour = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement ?? e.getRootNode().host) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduceRight((under, top) => over(top, under), canvasColour);
  };
  const opacity = (element) => {
    let share = 1;
    for (let e = element; e; e = e.parentElement) share *= parseFloat(getComputedStyle(e).opacity);
    return share;
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const contrast = (a, b) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const problems = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest("style, script, noscript, template, title, option, [hidden]")) continue;
    if (!element.checkVisibility({ checkVisibilityCSS: true, contentVisibilityAuto: true })) continue;
    const style = getComputedStyle(element), said = JSON.stringify(node.data.trim().slice(0, 40));
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (element.closest("[data-visually-hidden], .lf-skip") || style.clipPath !== "none" || element.closest("thead")?.getBoundingClientRect().width === 1) continue;
    if (box.width < 1 || box.height < 1) problems.push(`${said} has a size of ${box.width} x ${box.height}`);
    if (parseFloat(style.fontSize) < 10) problems.push(`${said} is ${style.fontSize} high`);
    const under = ground(element), ink = rgba(style.color);
    const ratio = contrast(over([ink[0], ink[1], ink[2], ink[3] * opacity(element)], under), under);
    if (ratio < 4.5) problems.push(`${said} has a contrast of ${ratio.toFixed(2)}: ${style.color} on ${under.map(Math.round)}`);
  }
  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth) {
    const wide = [...root.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 3);
    problems.push(`the page is ${page.scrollWidth} wide in a window of ${innerWidth}: ${wide.map((e) => e.outerHTML.slice(0, 80))}`);
  }
  return problems;
}
