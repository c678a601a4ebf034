// Keys that move the window of the page's timeline.

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
