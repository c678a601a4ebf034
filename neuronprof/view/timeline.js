// Puts what is visible at this zoom into the small sources that Bokeh draws. `models` are the Bokeh models that
// neuronprof/view/timeline.py passes; everything else comes from a source of scenes.

const PAD = 0.12 // free part of a row above and below its events
const LEAST = 0.14 // height of a bar whose busy share is nearly nothing
const BIN_PIXELS = 1.5 // narrowest bin that events are merged into
const OVERSCAN = 0.25 // drawn beyond each edge, as a share of the window, so that panning is free
const THINNEST = 1.5 // pixels; a rectangle of one pixel that lies across two would be pale
const SEAM = 5 // events wider than this many pixels get a seam
const NARROWEST = 16 // pixels that a word inside an event needs at least
const PATIENCE = 60 // milliseconds that a picture waits for what belongs to it, instead of showing the one before once more
const SCENE = 2 ** 40 // rows of one scene, as they are numbered in what is drawn

class Timeline {
  constructor(models) {
    this.models = models
    this.source = models.packed ? new Embedded(models.packed) : new Served(models.url, (...sentence) => this.tell(...sentence))
    this.rows = new Rows()
    this.shifts = [] // of the scenes that are loaded next
    this.advice = []
    this.scenes = []
    this.pending = false
    this.laid = 0 // how often rows changed
    this.drawn = null
    this.overviewed = ""
    this.listeners = []
  }

  // What the page around the timeline wants to know: a sentence to show, or that something was drawn.
  tell(...sentence) {
    this.listeners.forEach((listener) => listener.tell?.(...sentence))
  }

  schedule() {
    if (this.pending)
      return
    this.pending = true
    queueMicrotask(async () => {
      try {
        await this.load(this.models.rank.value.split(","))
        await this.draw()
        this.listeners.forEach((listener) => listener.drawn?.())
      } catch (error) {
        if (error.message != "refused")
          throw error
        this.last = this.view()
      } finally {
        this.pending = false
      }
      if (this.stale())
        this.schedule()
    })
  }

  async load(keys) {
    if (keys.join() == this.keys)
      return
    const {names, x_range, whole} = this.models
    this.scenes = await Promise.all(keys.map(async (key, place) =>
      ({key, title: names[key] ?? key, shift: this.shifts[place] ?? 0, shared: await this.source.shared(key)})))
    this.shifts = []
    const before = this.keys
    this.keys = keys.join()
    const start = Math.min(...this.scenes.map(({shared}) => shared.origin))
    const end = Math.max(...this.scenes.map(({shared}) => shared.origin + shared.span))
    const span = Math.max(end - start, x_range.min_interval), margin = 0.004 * span
    const [low, high] = [start - margin, start + span + margin]
    if (whole.start != low || whole.end != high) {
      const moved = before !== undefined || x_range.start != whole.start || x_range.end != whole.end
      Object.assign(whole, {start: low, end: high})
      x_range.setv({bounds: [low, high], ...(moved && x_range.end > low && x_range.start < high ? {} : {start: low, end: high})})
      this.models.strip.x_range.setv({start: low, end: high})
    }
    this.known().forEach(([name, quantity]) => adapt(name, quantity, this.scenes[0].shared))
    this.lay()
  }

  // Draws events of several scenes one below the other: their tracks at the top, all but the first scene later or earlier than it is.
  align(events) {
    const [first] = events.values()
    const shown = this.scenes.filter(({key}) => events.has(key))
    this.scenes.forEach((scene) => { scene.shift = 0 })
    shown.forEach((scene) => { scene.shift = first.start - events.get(scene.key).start })
    this.rows.raise([...new Set(shown.map((scene) => trackAt(scene, events.get(scene.key).row)))])
    this.lay()
    this.schedule()
  }

  shiftOf(key) {
    return this.scenes.find((scene) => scene.key == key)?.shift ?? 0
  }

  // The quantities of which the first rank has any; where nothing is computed again, MFU says it all.
  known() {
    const [{shared}] = this.scenes, {rates, held} = shared
    const has = {
      memory: held.memory,
      sbuf: held.sbuf,
      psum: held.psum,
      mfu: rates.mfu?.limit,
      flops: rates.flops && !(rates.mfu?.limit && shared.legend.phase.every(([phase]) => phase != "recompute")),
    }
    return Object.entries(this.models.quantities).filter(([name]) => name in has ? has[name] : rates[name])
  }

  // All tracks from top to bottom, in groups: pinned quantities over time, pinned rows of events, rows, quantities.
  tracks() {
    const [pinnedRows, rows] = this.rows.parted(Rows.tracks(this.scenes))
    const [pinned, quantities] = this.rows.parted(this.known().map(([, {label}]) => label))
    return [pinned, pinnedRows, rows, quantities]
  }

  // Rows after a change of what is shown.
  lay() {
    this.scenes.forEach((scene) => adviceRows(scene, this.advice))
    this.rows.lay(this.scenes)
    this.rows.show(this.models.main)
    const {main, grid} = this.models
    const [above, , , below] = this.tracks()
    const figures = new Map(this.known().map(([, {label, figure}]) => [label, figure]))
    const shown = [...above.map((track) => figures.get(track)), main, ...below.filter((track) => this.rows.shows(track)).map((track) => figures.get(track))]
    if (shown.length != grid.children.length || shown.some((figure, place) => grid.children[place][0] != figure))
      grid.children = shown.map((figure, row) => [figure, row, 0])
    this.laid += 1
    this.overviewed = ""
  }

  view() {
    const {x_range, main, colour, rank} = this.models, {start, end} = x_range
    return {start, end, pixel: (end - start) / (main.inner_width || 1000), colour: colour.value, rank: rank.value, laid: this.laid}
  }

  stale() {
    const now = this.view()
    return Object.keys(now).some((key) => now[key] != this.last[key])
  }

  async draw() {
    const now = this.last = this.view()
    const was = this.drawn
    const same = was && was.colour == now.colour && was.rank == now.rank && was.laid == now.laid && Math.abs(was.pixel / now.pixel - 1) < 1e-6
    if (!same || now.start < was.from || now.end > was.to) {
      const reach = OVERSCAN * (now.end - now.start)
      const drawn = {...now, from: now.start - reach, to: now.end + reach}
      await this.painted(Promise.all(this.scenes.map(async (scene) => {
        scene.seen = await this.source.window(scene.key, drawn.from - scene.shift, drawn.to - scene.shift, level(scene.shared, now.pixel))
      })))
      this.drawn = drawn
      this.events = this.fill(drawn, this.scenes, (scene, lane) => scene.places.get(lane.row.join()))
      this.models.events.data = this.events
      this.quantities()
      await this.overview(now)
    }
    this.advised = adviceBoxes(this.scenes, this.advice, now.pixel)
    this.put(this.models.advice, columnsOf(["left", "right", "top", "bottom", "number"], this.advised))
    this.models.labels.data = this.labels(this.view())
  }

  // Holds the paint of a window back until what is in it is known: one paint then shows both.
  async painted(known) {
    const hold = (held) => this.figures().forEach((figure) => { figure.hold_render = held })
    hold(true)
    const late = setTimeout(hold, PATIENCE, false)
    try {
      await known
    } finally {
      clearTimeout(late)
      hold(false)
    }
  }

  // The figures over time.
  figures() {
    return this.models.grid.children.map(([figure]) => figure)
  }

  // Rectangles of everything between `from` and `to`: bars first, so that events stand before them.
  fill({from, to, pixel, colour}, scenes, placed, only = () => true) {
    const out = new Rectangles(pixel)
    const height = 1 - 2 * PAD
    scenes.forEach((scene, number) => {
      const {seen, shift} = scene, at = level(seen, pixel)
      for (const lane of seen.lanes) {
        const row = placed(scene, lane)
        if (row === undefined || !only(lane))
          continue
        const floor = -row - 1 + PAD
        bars(seen, lane, at, from - shift, to - shift, (bar) => {
          const share = LEAST + (1 - LEAST) * seen.columns.bar_share[bar] / 255
          out.add(seen.bar_start[bar] + shift, seen.bar_end[bar] + shift, floor, floor + share * height,
                  this.paint(scene, lane, seen.bar_event[bar], colour), -1 - bar - number * SCENE)
        })
        events(seen, lane, at, from - shift, to - shift, (event) => {
          out.add(seen.start[event] + shift, seen.end[event] + shift, floor, floor + height, this.paint(scene, lane, event, colour), event + number * SCENE)
        })
      }
    })
    return out.columns()
  }

  paint({seen, shared}, lane, event, colour) {
    const alike = seen.columns.alike[event]
    if (lane.row[1] == "step")
      return this.models.step_colours[event % 2]
    if (BANDS.includes(lane.row[1]) || colour == "phase")
      return seen.columns.colour_phase[alike]
    return colour == "engine" ? shared.rows.find(({row}) => row.join() == lane.row.join()).colour : seen.columns.colour_name[alike]
  }

  // A source whose data stay the same need not be drawn anew.
  put(source, data) {
    if (Object.entries(data).some(([name, column]) => column.join() != source.data[name].join()))
      source.data = data
  }

  // The scene of a row of what is drawn, and the event (or -1 - bar) in it.
  at(row) {
    const number = Math.floor((row < 0 ? -1 - row : row) / SCENE)
    return {scene: this.scenes[number], row: row < 0 ? row + number * SCENE : row - number * SCENE}
  }

  describe(value, part) {
    const {scene, row} = this.at(value)
    return describe(scene.seen, row, part)
  }

  describeAdvice(number, part) {
    return describeAdvice(this.advice[number], number, part)
  }

  // The words inside events and advice that are wide enough for them, kept inside the window.
  labels({start, end, pixel}) {
    const out = []
    const say = (left, right, y, colour, text) => {
      const from = Math.max(left, start), room = (Math.min(right, end) - from) / pixel - 8
      const fits = room > NARROWEST && text(room)
      if (fits)
        out.push({x: from + 4 * pixel, y, text: fits, colour})
    }
    const {left, right, top, bottom, colour, row} = this.events
    for (let i = 0; i < left.length; i++)
      if (row[i] >= 0)
        say(left[i], right[i], (top[i] + bottom[i]) / 2, colour[i], (room) => {
          const {scene, row: event} = this.at(row[i])
          return title(scene.seen, scene.seen.columns.alike[event], 11, room)
        })
    for (const box of this.advised)
      say(box.left, box.right, (box.top + box.bottom) / 2, YELLOW, (room) => fitted(this.advice[box.number].wrong, 11, room))
    return columnsOf(["x", "y", "text", "colour"], out)
  }

  // Quantities are those of the first rank that is shown.
  quantities() {
    const {seen} = this.scenes[0], {drawn} = this
    const at = level(seen, drawn.pixel)
    for (const [name, {source, areas, words, figure, slots}] of Object.entries(this.models.quantities))
      if (!slots && seen.rates[name])
        source.data = rate(seen, name, at, drawn.from, drawn.to)
      else if (slots && seen.held[name]) {
        const about = seen.held[name]
        source.data = heldBytes(seen, name, slots, at, drawn)
        areas.data = stacked(source.data, slots, about)
        nameLayers(figure, this.models.main.inner_width, words, slotNames(about, slots), about)
      }
  }

  // The whole trace in one strip: the lane of the tensor engine, or else the first of any other.
  async overview({colour, rank}) {
    const {whole, strip, strip_source} = this.models
    const width = strip.inner_width || 1000
    const key = [colour, rank, width].join()
    if (key == this.overviewed)
      return
    this.overviewed = key
    const [scene] = this.scenes
    const window = {from: whole.start, to: whole.end, pixel: (whole.end - whole.start) / width, colour}
    const seen = await this.source.window(scene.key, whole.start, whole.end, level(scene.shared, window.pixel))
    const engines = seen.lanes.filter((lane) => !BANDS.includes(lane.row[1]))
    const lane = engines.find((lane) => lane.row[1] == "tensor") ?? engines[0]
    strip_source.data = this.fill(window, [{...scene, seen}], () => 0, (other) => other == lane)
  }
}

const columnsOf = (names, rows) => Object.fromEntries(names.map((name) => [name, rows.map((row) => row[name])]))

function level({top, level}, pixel) {
  return level ?? Math.max(0, Math.min(top, Math.ceil(Math.log2(BIN_PIXELS * pixel))))
}

// Quads that no screen loses; wide ones end a little early, so that neighbours can be told apart.
class Rectangles {
  constructor(pixel) {
    this.pixel = pixel
    this.lists = {left: [], right: [], bottom: [], top: [], colour: [], row: []}
  }

  add(start, end, bottom, top, colour, row) {
    const {lists, pixel} = this
    lists.left.push(start)
    lists.right.push(end - start > SEAM * pixel ? end - pixel : Math.max(end, start + THINNEST * pixel))
    lists.bottom.push(bottom)
    lists.top.push(top)
    lists.colour.push(colour)
    lists.row.push(row)
  }

  columns() {
    return Object.fromEntries(Object.entries(this.lists).map(([name, list]) => [name, Float64Array.from(list)]))
  }
}

// Brings a quantity's plot to the scale of its limit and its largest value.
function adapt(name, {figure, limit, note, slots}, shared) {
  const about = (slots ? shared.held : shared.rates)[name]
  const capacity = slots ? about.capacity : about.limit
  const most = slots ? about.most : about.largest
  const near = capacity && (!slots || most > NEAR * capacity)
  const top = Math.max(near ? capacity : 0, most) || 1
  figure.y_range.setv({start: 0, end: 1.22 * top})
  figure.left[0].ticker.setv({ticks: [0, top / 2, top]})
  const print = {flops: (value) => count(value, "FLOP/s"), mfu: (value) => percent(value / capacity)}[name] ?? (slots ? size : (value) => count(value, "B/s"))
  const word = slots ? "capacity" : "peak"
  limit.setv({location: capacity ?? 0, visible: Boolean(near)})
  note.setv({y: near ? capacity : top, visible: Boolean(capacity),
             text: near ? `${word} ${print(capacity)}` : `peak ${print(most)}, ${percent(most / (capacity || 1))} of ${print(capacity || 0)}`})
}

const NEAR = 0.25 // memory that peaks below this share of the capacity is drawn to its own scale

// The layers of a stack as areas, each from the one below it to its own top.
function stacked(layers, slots, about) {
  const {x} = layers, back = x.toReversed()
  const shown = [...Array(Math.min(slots, about.names.length)).keys()]
  return {
    xs: shown.map(() => x.concat(back)),
    ys: shown.map((slot) => layers[`y${slot + 1}`].concat(layers[`y${slot}`].toReversed())),
    colour: shown.map((slot) => colourOf(slot, about)),
  }
}

const colourOf = (slot, {colours}) => colours[Math.min(slot, colours.length - 1)]

// What the layers are, from the right edge on.
function nameLayers(figure, width, words, names, about) {
  const key = `${width} ${names}`
  if (!width || words.tags[0] == key)
    return
  words.tags = [key]
  const out = {x: [], text_x: [], text: [], colour: []}
  const needs = names.map((name) => 28 * scale() + textWidth(name, 11))
  let x = width - needs.reduce((sum, one) => sum + one, 0)
  names.forEach((name, slot) => {
    out.x.push(x + 6 * scale())
    out.text_x.push(x + 15 * scale())
    out.text.push(name)
    out.colour.push(colourOf(slot, about))
    x += needs[slot]
  })
  figure.extra_x_ranges.pixels.setv({start: 0, end: width})
  words.data = out
}
