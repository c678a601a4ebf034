// Ways to move: keys, and what the pointer does beside Bokeh's own tools.

const MOVES = {
  w: [0, 0.7], arrowup: [0, 0.7], s: [0, 1 / 0.7], arrowdown: [0, 1 / 0.7],
  a: [-0.2, 1], arrowleft: [-0.2, 1], d: [0.2, 1], arrowright: [0.2, 1], 0: [0, Infinity],
}

function moveWindow(range, pan, zoom) {
  const [low, high] = range.bounds
  const width = Math.min(Math.max((range.end - range.start) * zoom, range.min_interval), high - low)
  const middle = (range.start + range.end) / 2 + pan * (range.end - range.start)
  const start = Math.min(Math.max(middle - width / 2, low), high - width)
  range.setv({start, end: start + width})
}

// Shows a stretch of time with some room around it.
function fit(shown, start, end) {
  const {x_range} = shown.models
  const width = Math.max((end - start) * 1.4, x_range.min_interval)
  const middle = (start + end) / 2
  x_range.setv({start: middle - width / 2, end: middle + width / 2})
  moveWindow(x_range, 0, 1)
}

// Moves the window so that a time is in it.
function bring(shown, start, end) {
  const {x_range} = shown.models
  if (end >= x_range.start && start <= x_range.end)
    return
  if (end - start > x_range.end - x_range.start)
    fit(shown, start, end)
  else
    moveWindow(x_range, (start + end - x_range.start - x_range.end) / 2 / (x_range.end - x_range.start), 1)
}

function handleKeys(shown) {
  const actions = {
    f: () => fitChosen(shown),
    ",": () => neighbour(shown, -1),
    ".": () => neighbour(shown, 1),
    "[": () => chosen.event && followReleaser(shown),
    "]": () => chosen.releases?.[0] && choose(shown, chosen.key, chosen.releases[0].id),
    "/": () => element("search").focus(),
    n: () => nextHit(shown, 1),
    p: () => nextHit(shown, -1),
    m: () => mark(shown),
    "?": () => toggle("help"),
    escape: () => letGo(shown),
  }
  document.addEventListener("keydown", (event) => {
    const inside = event.composedPath()[0]
    const key = event.key.toLowerCase()
    const writing = ["INPUT", "SELECT", "TEXTAREA"].includes(inside.tagName) || inside.closest?.(".slick-viewport, .bk-tab")
    if (event.ctrlKey || event.metaKey || event.altKey || !(key in MOVES || key in actions))
      return
    if (writing)
      return void (key == "escape" && inside.blur())
    if (!onTimeline() && key != "/")
      return
    event.preventDefault()
    if (key == "0" && shown.scenes.some(({shift}) => shift))
      shown.align(new Map())
    if (key in MOVES)
      moveWindow(shown.models.x_range, ...MOVES[key])
    else
      actions[key]()
  })
  element("help-button").addEventListener("click", () => toggle("help"))
  shown.models.main.on_event("tap", ({x, y}) => pick(shown, x, y))
  shown.models.main.on_event("mousemove", ({x}) => { pointer = x })
  shown.models.main.on_event("selectiongeometry", ({geometry, final}) => final && chooseRange(shown, geometry.x0, geometry.x1))
}

let pointer = null // the time under the pointer

function toggle(id) {
  element(id).hidden = !element(id).hidden
  element(`${id}-button`).setAttribute("aria-expanded", !element(id).hidden)
}

// What is drawn under a point: an event is chosen, a bar is zoomed into, advice is shown, a heading folds its rank.
function pick(shown, x, y) {
  const pixel = shown.view().pixel
  const advice = shown.advised.find((box) => box.left <= x && x <= box.right && box.bottom <= y && y <= box.top)
  if (advice)
    return showAdvice(shown, shown.advice[advice.number])
  const {left, right, bottom, top, row} = shown.events
  for (let i = left.length - 1; i >= 0; i--) {
    if (x < left[i] - pixel || x > right[i] + pixel || y < bottom[i] || y > top[i])
      continue
    const {scene, row: at} = shown.at(row[i])
    if (at < 0)
      return fit(shown, left[i], right[i])
    return choose(shown, scene.key, scene.seen.columns.id[at], recordOf(scene.seen, at))
  }
  const heading = shown.rows.heading(Math.floor(-y), shown.scenes)
  if (heading) {
    const {folded} = shown.rows
    folded.has(heading.key) ? folded.delete(heading.key) : folded.add(heading.key)
    shown.lay()
    shown.schedule()
  }
}

function handleChoices(shown) {
  element("goto").addEventListener("change", ({target}) => {
    const found = target.value.match(/^\s*([\d.]+)\s*(ns|us|ms|s)\s*$/)
    target.setAttribute("aria-invalid", !found)
    if (!found)
      return tell(`'${target.value}' is not a time; write it like 1.5 ms or 300 us.`)
    tell("")
    const at = Number(found[1]) * TIME.find(([, name]) => name == found[2])[0]
    const {x_range} = shown.models
    const [low, high] = x_range.bounds
    const half = Math.min((x_range.end - x_range.start) / 2, (high - low) / 20)
    x_range.setv({start: at - half, end: at + half})
    moveWindow(x_range, 0, 1)
  })
}

function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children.filter((child) => child !== null))
  return node
}
