// How figures look on this screen: dark where dark is preferred, larger where the screen is wide.

const DARK = matchMedia("(prefers-color-scheme: dark)")
const PLAIN = [["#1b2330", "#ffffff"], ["#e6e9ef", "#12161d"]] // ink and paper, light and dark, as in page.css
const WIDE = 2560, USUAL = 1920, LARGEST = 2 // pixels; from where on all is larger, what it is made for, and how much larger at most

globalThis.neuronprofScale = innerWidth < WIDE ? 1 : Math.min(innerWidth / USUAL, LARGEST)
document.documentElement.style.setProperty("--scale", globalThis.neuronprofScale)

const models = () => Bokeh.documents.flatMap((document) => document.roots()).flatMap((root) => [...root.references()])

function dress() {
  if (DARK.matches)
    paint()
  if (globalThis.neuronprofScale > 1)
    models().forEach(enlarge)
}

const larger = (size) => size.replace(/^[\d.]+/, (number) => number * globalThis.neuronprofScale)

const enlarged = new WeakSet()
function enlarge(model) {
  if (enlarged.has(model))
    return
  enlarged.add(model)
  const change = {}
  for (const [name, value] of Object.entries(model.attributes)) {
    const size = name.endsWith("font_size") && (value?.value ?? value)
    if (typeof size == "string" && size.endsWith("px"))
      change[name] = value.value ? {...value, value: larger(size)} : larger(size)
    else if (["Figure", "Select"].includes(model.type) && ["height", "width", "min_border_left"].includes(name) && value > 0)
      change[name] = value * globalThis.neuronprofScale
    else if (model.type == "Scatter" && name == "size" && value?.value > 0)
      change[name] = {value: value.value * globalThis.neuronprofScale}
  }
  model.setv(change)
}

// Figures are drawn on canvases, which no style sheet reaches: they take the page's colours one by one.
function paint() {
  const style = getComputedStyle(document.documentElement)
  const [ink, faint, line, paper, ...pale] = ["ink", "faint", "line", "paper", "pale", "paler"].map((name) => style.getPropertyValue(`--${name}`).trim())
  const change = {
    Figure: {background_fill_color: paper, outline_line_color: line},
    LinearAxis: {major_label_text_color: faint, axis_label_text_color: ink},
    LogAxis: {major_label_text_color: faint, axis_label_text_color: ink},
    CategoricalAxis: {major_label_text_color: ink, axis_label_text_color: ink},
    Grid: {grid_line_color: line},
    Label: {text_color: faint},
    Title: {text_color: ink},
    ColorBar: {background_fill_color: null, major_label_text_color: faint, title_text_color: ink},
    Legend: {label_text_color: ink, background_fill_color: paper},
  }
  const palettes = {colours: pale, words: [ink, ink]}
  for (const one of models()) {
    one.setv(change[one.type] ?? {})
    if (one.name in palettes)
      one.palette = [...one.palette.slice(0, -2), ...palettes[one.name]]
  }
  for (const name of ["lanes", "overview"])
    model(name)?.left[0].setv({major_label_text_color: ink})
  model("legend")?.setv({outline_line_color: null})
  // Glyphs whose colours are the light or the dark page's ink or paper.
  const plain = Object.fromEntries(PLAIN.map((pair) => [ink, paper].map((colour, place) => [pair[place], colour])).flat())
  for (const {glyph} of models().filter(({type}) => type == "GlyphRenderer"))
    for (const [name, value] of Object.entries(glyph.attributes))
      if (name.endsWith("_color") && value?.value in plain)
        glyph.setv({[name]: {value: plain[value.value]}})
}
