// Makes the timeline the first time that anything about it changes, and has it drawn again every time after.

function start(models) {
  if (!models.x_range.neuronprof) {
    const timeline = models.x_range.neuronprof = new Timeline(models)
    timeline.listeners.push({drawn: () => {
      [models.strip, models.legend.figure, ...timeline.figures()].forEach(calm)
      explain(timeline)
    }})
  }
  models.x_range.neuronprof.schedule()
}

// Lays out the legend of the chosen colouring: one line, or two where it does not fit.
function explain({models: {legend, colour}, scenes, keys}) {
  const width = legend.figure.inner_width
  if (!width || !scenes.length || legend.shown == `${width} ${colour.value} ${keys}`)
    return
  legend.shown = `${width} ${colour.value} ${keys}`
  const entries = new Map(scenes.flatMap(({shared}) => shared.legend[colour.value]))
  const out = {x: [], y: [], text_x: [], text: [], colour: []}
  let x = 8, line = 0
  for (const [name, place] of entries) {
    const text = name.length > 24 ? `${name.slice(0, 23)}…` : name
    const needs = 34 * scale() + textWidth(text, 12)
    if (x + needs > width && x > 8) {
      x = 8
      line += 1
    }
    out.x.push(x + 5 * scale())
    out.y.push(-line)
    out.text_x.push(x + 15 * scale())
    out.text.push(text)
    out.colour.push(place)
    x += needs
  }
  legend.figure.x_range.setv({start: 0, end: width})
  legend.figure.y_range.setv({start: -Math.max(line, 1) - 0.5, end: 0.5})
  if (line == 0)
    legend.figure.y_range.setv({start: -1, end: 1})
  legend.source.data = out
}
