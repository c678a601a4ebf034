// What the page adds to its timeline: keys that move the window, and dark figures where dark is preferred.

const DARK = matchMedia("(prefers-color-scheme: dark)")

// Figures are drawn on canvases, which no style sheet reaches: they take the page's colours one by one.
function paint(timeline) {
  const style = getComputedStyle(document.documentElement)
  const of = (name) => style.getPropertyValue(`--${name}`).trim()
  const [ink, faint, line, paper] = ["ink", "faint", "line", "paper"].map(of)
  const change = {
    Figure: {background_fill_color: paper, outline_line_color: line},
    LinearAxis: {major_label_text_color: faint, axis_label_text_color: ink},
    Grid: {grid_line_color: line},
    Label: {text_color: faint},
    Legend: {label_text_color: ink, background_fill_color: paper},
  }
  for (const model of timeline.references())
    model.setv(change[model.type] ?? {})
  const name = (name) => timeline.document.get_model_by_name(name)
  name("lanes").left[0].major_label_text_color = ink
  name("overview").left[0].major_label_text_color = ink
  name("legend").setv({outline_line_color: null})
  name("legend names").glyph.text_color = {value: ink}
}

function whenDrawn() {
  const timeline = globalThis.Bokeh?.documents[0]?.get_model_by_name("timeline")
  if (!timeline)
    return void requestAnimationFrame(whenDrawn)
  if (timeline.type != "Column")
    return
  if (DARK.matches)
    paint(timeline)
  DARK.addEventListener("change", () => paint(timeline))
}

whenDrawn()

function move(range, pan, zoom) {
  const [low, high] = range.bounds
  const width = Math.min(Math.max((range.end - range.start) * zoom, range.min_interval), high - low)
  const middle = (range.start + range.end) / 2 + pan * (range.end - range.start)
  const start = Math.min(Math.max(middle - width / 2, low), high - width)
  range.setv({start, end: start + width})
}

const KEYS = {
  w: [0, 0.7], arrowup: [0, 0.7], s: [0, 1 / 0.7], arrowdown: [0, 1 / 0.7],
  a: [-0.2, 1], arrowleft: [-0.2, 1], d: [0.2, 1], arrowright: [0.2, 1], 0: [0, Infinity],
}

document.addEventListener("keydown", (event) => {
  const inside = event.composedPath()[0]
  const action = KEYS[event.key.toLowerCase()]
  const writing = ["INPUT", "SELECT", "TEXTAREA"].includes(inside.tagName) || inside.closest?.(".slick-viewport, .bk-tab")
  const range = globalThis.Bokeh?.documents[0]?.get_model_by_name("lanes")?.x_range
  if (!action || !range || writing || event.ctrlKey || event.metaKey || event.altKey)
    return
  event.preventDefault()
  move(range, ...action)
})
