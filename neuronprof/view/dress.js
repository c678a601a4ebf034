// How figures look on this screen: dark where dark is preferred, larger where the screen is wide.

const DARK = matchMedia("(prefers-color-scheme: dark)")
const PLAIN = [["#1b2330", "#ffffff", "#b42318"], ["#e6e9ef", "#12161d", "#f97066"]] // ink, paper, limits: light and dark, as in page.css
// Colours of neuronprof/view/tracks.py that a dark page would swallow: what stands there instead, and words in it.
const SWALLOWED = {"#332288": ["#6633ff", "#ffffff"], "#882255": ["#bb3333", "#ffffff"], "#661100": ["#7777ff", "#0b0e14"]}
const WIDE = 2560, USUAL = 1920, LARGEST = 2 // pixels; from where on all is larger, what it is made for, and how much larger at most

globalThis.neuronprofScale = innerWidth < WIDE ? 1 : Math.min(innerWidth / USUAL, LARGEST)
document.documentElement.style.setProperty("--scale", globalThis.neuronprofScale)

const models = () => Bokeh.documents.flatMap((document) => document.roots()).flatMap((root) => [...root.references()])

// What a screen reader says of figures, which are pictures to it, and of choices, by the names of their models.
const NAMES = {
  lanes: "Events over time, a row a track", overview: "The whole trace, with the window that is shown", legend: "What the colours mean",
  schedule: "Pipeline stages over time", topology: "Chips of the job", traffic: "Bytes from rank to rank", "rank map": "Ranks over steps",
  distribution: "How many ranks wait and work how long", memory: "HBM in use over time", roofline: "Operators under the roofs of the machine",
  rank: "What is shown", colour: "What colours mean", measure: "What the map of ranks shows", "chips by": "What the chips show",
}

function nameThem() {
  for (const one of models().filter(({type}) => ["Figure", "Select"].includes(type))) {
    const view = Bokeh.index.find_one(one), place = view?.input_el ?? view?.canvas_view?.el
    place?.setAttribute("aria-label", NAMES[one.name] ?? `${one.left?.[0]?.axis_label ?? one.name} over time`)
    if (one.type == "Figure" && place) {
      place.setAttribute("role", "img")
      hideLayers(place)
    }
  }
}

// The canvases that a figure and its legends are drawn on.
function hideLayers({shadowRoot}) {
  shadowRoot?.querySelectorAll("canvas").forEach((layer) => layer.setAttribute("aria-hidden", "true"))
  shadowRoot?.querySelectorAll("*").forEach(hideLayers)
}

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

const asMade = new WeakMap() // palettes as they came: those of the light page
function paintPalettes(pale, ink) {
  const palettes = models().filter(({name}) => ["colours", "words"].includes(name))
  palettes.forEach((one) => asMade.has(one) || asMade.set(one, one.palette))
  const places = asMade.get(palettes.find(({name}) => name == "colours")) ?? []
  const instead = (one, place) => DARK.matches ? SWALLOWED[places[place]]?.[one.name == "colours" ? 0 : 1] : undefined
  for (const one of palettes) {
    const own = asMade.get(one).slice(0, -2).map((colour, place) => instead(one, place) ?? colour)
    one.palette = [...own, ...(one.name == "colours" ? pale : [ink, ink])]
  }
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
  models().forEach((one) => one.setv(change[one.type] ?? {}))
  paintPalettes(pale, ink)
  for (const name of ["lanes", "overview"])
    model(name)?.left[0].setv({major_label_text_color: ink})
  model("legend")?.setv({outline_line_color: null})
  // Glyphs and lines whose colours are the light or the dark page's own.
  const plain = Object.fromEntries(PLAIN.flatMap((page) => page.map((colour, place) => [colour, PLAIN[Number(DARK.matches)][place]])))
  for (const {glyph} of models().filter(({type}) => type == "GlyphRenderer"))
    for (const [name, value] of Object.entries(glyph.attributes))
      if (name.endsWith("_color") && value?.value in plain)
        glyph.setv({[name]: {value: plain[value.value]}})
  for (const line of models().filter(({type}) => type == "Span"))
    if ((line.line_color?.value ?? line.line_color) in plain)
      line.line_color = plain[line.line_color?.value ?? line.line_color]
}
