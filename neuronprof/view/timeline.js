// Puts what is visible at this zoom into the small sources that Bokeh draws. `models` are the Bokeh models that
// neuronprof/view/timeline.py passes; everything else comes from a packed rank (neuronprof/view/lod.py).

const PAD = 0.12 // free part of a row above and below its events
const LEAST = 0.14 // height of a bar whose busy share is nearly nothing
const BIN_PIXELS = 1.5 // narrowest bin that events are merged into
const OVERSCAN = 0.5 // drawn beyond each edge, as a share of the window, so that panning is free
const THINNEST = 1.5 // pixels; a rectangle of one pixel that lies across two would be pale
const SEAM = 5 // events wider than this many pixels get a seam
const NARROWEST = 16 // pixels that a word inside an event needs at least

class Timeline {
  constructor(models) {
    this.models = models
    this.ranks = new Map()
    this.places = new Map(models.rows.map((key, place) => [key.join(), place]))
    this.pending = false
    this.drawn = null
    this.overviewed = ""
  }

  schedule() {
    if (this.pending)
      return
    this.pending = true
    requestAnimationFrame(async () => {
      try {
        await this.load(this.models.rank.value)
        this.draw()
      } finally {
        this.pending = false
      }
      if (this.stale())
        this.schedule()
    })
  }

  async load(name) {
    if (!this.ranks.has(name)) {
      const scene = await unpack(this.models.packed[name].data.packed)
      place(scene, this.places)
      this.ranks.set(name, scene)
    }
    this.scene = this.ranks.get(name)
  }

  view() {
    const {x_range, main, colour, rank} = this.models
    const width = main.inner_width || 1000
    return {start: x_range.start, end: x_range.end, pixel: (x_range.end - x_range.start) / width, colour: colour.value, rank: rank.value}
  }

  stale() {
    const now = this.view()
    return Object.keys(now).some((key) => now[key] != this.last[key])
  }

  draw() {
    const now = this.last = this.view()
    const was = this.drawn
    const same = was && was.colour == now.colour && was.rank == now.rank && Math.abs(was.pixel / now.pixel - 1) < 1e-6
    if (!same || now.start < was.from || now.end > was.to) {
      const reach = OVERSCAN * (now.end - now.start)
      this.drawn = {...now, from: now.start - reach, to: now.end + reach}
      this.events = this.fill(this.drawn, this.scene.lanes, (lane) => lane.place, 1 - 2 * PAD)
      this.models.events.data = this.events
      this.quantities()
    }
    this.models.labels.data = this.labels(now)
    this.overview(now)
  }

  level(pixel) {
    return Math.max(0, Math.min(this.scene.top, Math.ceil(Math.log2(BIN_PIXELS * pixel))))
  }

  // Rectangles of everything between `from` and `to`: bars first, so that events stand before them.
  fill({from, to, pixel, colour}, lanes, placed, height) {
    const out = new Rectangles(pixel)
    const level = this.level(pixel)
    for (const lane of lanes) {
      const floor = -placed(lane) - 1 + PAD
      bars(this.scene, lane, level, from, to, (bar) => {
        const share = LEAST + (1 - LEAST) * this.scene.columns.bar_share[bar] / 255
        out.add(this.scene.bar_start[bar], this.scene.bar_end[bar], floor, floor + share * height,
                this.paint(lane, this.scene.bar_event[bar], colour), -1 - bar)
      })
      events(this.scene, lane, level, from, to, (event) => {
        out.add(this.scene.start[event], this.scene.end[event], floor, floor + height, this.paint(lane, event, colour), event)
      })
    }
    return out.columns()
  }

  paint(lane, event, colour) {
    const {columns} = this.scene
    const row = columns.alike[event]
    if (lane.row[1] == "step")
      return this.models.step_colours[event % 2]
    if (lane.row[1] == "phase" || colour == "phase")
      return columns.colour_phase[row]
    return colour == "engine" ? lane.colour : columns.colour_name[row]
  }

  // The words inside events that are wide enough for them, kept inside the window.
  labels({start, end, pixel}) {
    const out = {x: [], y: [], text: [], colour: []}
    const {left, right, top, bottom, colour, row} = this.events
    for (let i = 0; i < left.length; i++) {
      const from = Math.max(left[i], start), to = Math.min(right[i], end)
      const room = (to - from) / pixel - 8
      const text = room > NARROWEST && row[i] >= 0 ? title(this.scene, row[i], 11, room) : ""
      if (!text)
        continue
      out.x.push(from + 4 * pixel)
      out.y.push((top[i] + bottom[i]) / 2)
      out.text.push(text)
      out.colour.push(colour[i])
    }
    return out
  }

  quantities() {
    const {scene, drawn} = this
    const level = this.level(drawn.pixel)
    for (const [name, source] of Object.entries(this.models.quantities))
      source.data = name == "memory" ? memory(scene, this.models.roles, level, drawn) : bandwidth(scene, name, level, drawn)
  }

  // The whole trace in one strip: the lane that the most events of the tensor engine, or else of any other, are in.
  overview({colour, rank}) {
    const {whole, strip, strip_source} = this.models
    const width = strip.inner_width || 1000
    const key = [colour, rank, width].join()
    if (key == this.overviewed)
      return
    this.overviewed = key
    const engines = this.scene.lanes.filter((lane) => !["step", "phase"].includes(lane.row[1]))
    const lane = engines.find((lane) => lane.row[1] == "tensor") ?? engines[0]
    const window = {from: whole.start, to: whole.end, pixel: (whole.end - whole.start) / width, colour}
    strip_source.data = this.fill(window, lane ? [lane] : [], () => 0, 1 - 2 * PAD)
  }
}

// Quads that no screen loses; wide ones end a little early, so that neighbours can be told apart.
class Rectangles {
  constructor(pixel) {
    this.pixel = pixel
    this.left = []
    this.right = []
    this.bottom = []
    this.top = []
    this.colour = []
    this.row = []
  }

  add(start, end, bottom, top, colour, row) {
    this.left.push(start)
    this.right.push(end - start > SEAM * this.pixel ? end - this.pixel : Math.max(end, start + THINNEST * this.pixel))
    this.bottom.push(bottom)
    this.top.push(top)
    this.colour.push(colour)
    this.row.push(row)
  }

  columns() {
    const {left, right, bottom, top, colour, row} = this
    return {left: Float64Array.from(left), right: Float64Array.from(right), bottom: Float64Array.from(bottom),
            top: Float64Array.from(top), colour: Float64Array.from(colour), row: Float64Array.from(row)}
  }
}

// Turns the packed, relative columns of a rank into absolute times, lane by lane.
function place(scene, places) {
  const {origin, columns} = scene
  const {gap, duration, bar_start, bar_length, bar_longest} = columns
  scene.start = new Float64Array(gap.length)
  scene.end = new Float64Array(gap.length)
  scene.bar_start = new Float64Array(bar_start.length)
  scene.bar_end = new Float64Array(bar_start.length)
  scene.bar_event = new Float64Array(bar_start.length)
  for (const lane of scene.lanes) {
    lane.place = places.get(lane.row.join())
    let end = origin
    for (let i = lane.from; i < lane.to; i++) {
      scene.start[i] = end + gap[i]
      scene.end[i] = end = scene.start[i] + duration[i]
    }
    for (let level = 0; level <= scene.top; level++) {
      const step = 2 ** Math.max(level - 3, 0)
      for (let i = lane.levels[level]; i < lane.levels[level + 1]; i++) {
        scene.bar_start[i] = origin + bar_start[i] * step
        scene.bar_end[i] = scene.bar_start[i] + bar_length[i] * step
        scene.bar_event[i] = lane.from + bar_longest[i]
      }
    }
  }
}

// The first place in sorted values[from..to) whose value is at least `least`.
function search(values, from, to, least) {
  while (from < to) {
    const middle = (from + to) >> 1
    if (values[middle] < least)
      from = middle + 1
    else
      to = middle
  }
  return from
}

function bars(scene, lane, level, from, to, visit) {
  const first = lane.levels[level], last = lane.levels[level + 1]
  const stop = search(scene.bar_start, first, last, to)
  for (let bar = Math.max(first, search(scene.bar_start, first, last, from) - 1); bar < stop; bar++)
    if (scene.bar_end[bar] >= from)
      visit(bar)
}

// Events that stand alone at this level; in a crowded lane an early event may reach far, so all before the window are looked at.
function events(scene, lane, level, from, to, visit) {
  const {merged} = scene.columns
  const stop = search(scene.start, lane.from, lane.to, to)
  const first = lane.crowded ? lane.from : Math.max(lane.from, search(scene.start, lane.from, lane.to, from) - 1)
  for (let event = first; event < stop; event++)
    if (merged[event] > level && scene.end[event] >= from)
      visit(event)
}

// A line of horizontal steps.
function bandwidth(scene, engine, level, {from, to}) {
  const about = scene.series[engine]
  const x = [], y = []
  if (!about)
    return {x, y}
  const push = (start, end, value) => {
    if (y.length && y[y.length - 1] == value && x[x.length - 1] == start)
      x[x.length - 1] = end
    else {
      x.push(start, end)
      y.push(value, value)
    }
  }
  const {origin, columns} = scene
  if (level >= about.finest) {
    const values = columns[`${engine}_${Math.min(level, about.coarsest)}`]
    const bin = 2 ** Math.min(level, about.coarsest)
    const first = Math.max(0, Math.floor((from - origin) / bin))
    const stop = Math.min(values.length, Math.ceil((to - origin) / bin))
    for (let i = first; i < stop; i++)
      push(origin + i * bin, origin + (i + 1) * bin, values[i] * about.scale)
  } else {
    const times = columns[`${engine}_time`], values = columns[`${engine}_value`]
    const first = Math.max(0, search(times, 0, times.length, from - origin) - 1)
    for (let i = first; i < times.length && times[i] < to - origin; i++)
      push(origin + times[i], origin + (times[i + 1] ?? scene.span), values[i] * about.scale)
  }
  return {x, y}
}

// Layers of a stack, from the bottom: y0 is zero, y1 the first category's top, and so on.
function memory(scene, roles, level, {from, to}) {
  const out = {x: []}
  for (let place = 0; place <= roles.length; place++)
    out[`y${place}`] = []
  if (!scene.memory)
    return out
  const {origin, columns} = scene
  const times = columns.memory_time
  const kept = columns[`memory_level_${level}`]
  const places = roles.map((role) => scene.memory.names.indexOf(role))
  const values = places.map((place) => columns[`memory_${place}`])
  const total = kept ? kept.length : times.length
  const row = (i) => kept ? kept[i] : i
  let i = 0
  for (let step = 1 << 30; step >= 1; step >>= 1)
    if (i + step < total && times[row(i + step)] <= from - origin)
      i += step
  for (; i < total && times[row(i)] < to - origin; i++) {
    const end = i + 1 < total ? times[row(i + 1)] : scene.span
    out.x.push(origin + times[row(i)], origin + end)
    let height = 0
    out.y0.push(0, 0)
    values.forEach((value, place) => {
      height += value ? value[row(i)] : 0
      out[`y${place + 1}`].push(height, height)
    })
  }
  return out
}
