addEventListener("load", () => {
  const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) =>
    [r, g, b].map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const pale = new Set(), cut = new Set();
  for (const e of document.querySelectorAll("main *, header *, footer *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg title, svg desc, title")) continue;
    const svg = e.closest("svg"), style = getComputedStyle(e);
    if (!e.classList.contains("on-bar")) {
      const [a, b] = [light(rgb(svg ? style.fill : style.color)), light(behind(svg ? svg.parentElement : e))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) pale.add(`${e.tagName}.${e.getAttribute("class")}: ${ratio.toFixed(2)}`);
    }
    if (svg && svg.getAttribute("role") === "img") {
      const [t, s] = [e.getBoundingClientRect(), svg.getBoundingClientRect()];
      if (t.left < s.left - 1 || t.right > s.right + 1 || t.bottom > s.bottom + 1) cut.add(e.textContent);
    }
  }
  const wide = [...document.querySelectorAll("div.table")]
    .filter((t) => t.scrollWidth > t.clientWidth + 1 && t.offsetParent).map((t) => t.getAttribute("aria-label"));
  const found = {
    wide,
    title: document.title,
    foreign: document.querySelectorAll("script").length - 1 + document.querySelectorAll("img,iframe,object,embed,link,form,input").length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    cut: [...cut],
    pale: [...pale],
    sections: Object.fromEntries([...document.querySelectorAll("section[id]")].map((s) => [s.id, Math.round(s.getBoundingClientRect().height)])),
  };
  document.body.dataset.measured = JSON.stringify(found);
});
