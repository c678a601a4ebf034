"""What browser tests do with a page: wait for its picture, move its window, read it."""

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script></script>{{7*7}}$$x$$@row{safe}'

# Runs in the page: the models that tests look at, and where a time and a row are on the screen.
TOOLS = """
window.timeline = () => {
  const lanes = Bokeh.documents[0].get_model_by_name("lanes")
  const view = Bokeh.index.find_one(lanes)
  const drawn = lanes.renderers.find((r) => r.name == "events").data_source.data
  const words = lanes.renderers.find((r) => r.glyph.type == "Text").data_source.data
  return {lanes, view, drawn, words, range: lanes.x_range, state: lanes.x_range.neuronprof}
}
window.find = (name) => {
  const model = Bokeh.documents.map((document) => document.get_model_by_name(name)).find((model) => model)
  const view = model && Bokeh.index.find_one(model)
  return view && {model, view, box: view.el.getBoundingClientRect()}
}
// Where a row of the lanes or of the map is; in another figure, some place over the time.
window.spot = (x, row, name = "lanes") => {
  const {view: {frame}, box} = find(name)
  const at = {lanes: -row - 0.5, "rank map": row, schedule: row, topology: row}[name]
  return [box.left + frame.x_scale.compute(x), box.top + (at === undefined ? frame.bbox.y0 + 60 : frame.y_scale.compute(at))]
}
window.frame = (name) => {
  const {view: {frame}, box} = find(name)
  return [frame.bbox.x0, frame.bbox.x1].map((x) => Math.round(box.left + x))
}
window.rectangles = () => {
  const {drawn} = timeline()
  return Array.from(drawn.row, (row, i) => [drawn.left[i], drawn.right[i], Math.round(-drawn.top[i] - 0.12), row])
}
"""


def drawn(tab, change="() => 0"):
    """Makes a change and waits until the page has drawn what is in the window now."""
    tab.evaluate(change)
    tab.wait_for_function("() => { const s = timeline().state; return s && s.drawn && !s.pending && !s.stale() }")
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def window(tab, start, end):
    drawn(tab, f"() => timeline().range.setv({{start: {start}, end: {end}}})")


def limits(tab):
    return tab.evaluate("() => [timeline().range.start, timeline().range.end]")


def hover(tab, ns, row, name="lanes"):
    """The tooltip over a time, in a row of the lanes or in another plot."""
    tab.mouse.move(*tab.evaluate(f"() => spot({ns}, {row}, '{name}')"))
    tip = tab.locator(".bk-tooltip-content:visible")
    tip.wait_for()
    return tip.inner_text()
