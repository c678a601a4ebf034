// A scene is what is known of one rank: `shared` (neuronprof/view/scene.py) and either everything or the window that is shown.

// Turns the packed, relative columns into absolute times, lane by lane.
function place(scene) {
  const {origin, columns} = scene
  const {gap, duration, bar_start, bar_length, bar_longest} = columns
  scene.start = new Float64Array(gap.length)
  scene.end = new Float64Array(gap.length)
  scene.bar_start = new Float64Array(bar_start.length)
  scene.bar_end = new Float64Array(bar_start.length)
  scene.bar_event = new Float64Array(bar_start.length)
  for (const lane of scene.lanes) {
    let end = origin
    for (let i = lane.from; i < lane.to; i++) {
      scene.start[i] = end + gap[i]
      scene.end[i] = end = scene.start[i] + duration[i]
    }
    for (const level of scene.level === undefined ? Array(scene.top + 1).keys() : [scene.level]) {
      const step = 2 ** Math.max(level - 3, 0)
      const [first, last] = barsOf(scene, lane, level)
      for (let i = first; i < last; i++) {
        scene.bar_start[i] = origin + bar_start[i] * step
        scene.bar_end[i] = scene.bar_start[i] + bar_length[i] * step
        scene.bar_event[i] = lane.from + bar_longest[i]
      }
    }
  }
  return scene
}

// A window has the bars of its own level only.
function barsOf(scene, lane, level) {
  return scene.level === undefined ? [lane.levels[level], lane.levels[level + 1]] : lane.levels
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
  const [first, last] = barsOf(scene, lane, level)
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

// A quantity as a line of horizontal steps.
function rate(scene, name, level, from, to) {
  const x = [], y = [], about = scene.rates[name]
  const push = (start, end, value) => {
    if (y.length && y[y.length - 1] == value && x[x.length - 1] == start)
      x[x.length - 1] = end
    else {
      x.push(start, end)
      y.push(value, value)
    }
  }
  if (!about)
    return {x, y}
  const {origin, columns} = scene
  const {bin, first, values} = binned(scene, name, about, level)
  if (bin) {
    const low = Math.max(0, Math.floor((from - origin) / bin) - first)
    const stop = Math.min(values.length, Math.ceil((to - origin) / bin) - first)
    for (let i = low; i < stop; i++)
      push(origin + (first + i) * bin, origin + (first + i + 1) * bin, values[i] * about.scale)
  } else {
    const times = columns[`${name}_time`]
    for (let i = Math.max(0, search(times, 0, times.length, from - origin) - 1); i < times.length && times[i] < to - origin; i++)
      push(origin + times[i], origin + (times[i + 1] ?? scene.span), values[i] * about.scale)
  }
  return {x, y}
}

function binned(scene, name, about, level) {
  if (about.bin !== undefined)
    return {bin: about.bin, first: about.first, values: scene.columns[`${name}_value`]}
  if (level < about.finest)
    return {bin: 0, first: 0, values: scene.columns[`${name}_value`]}
  const kept = Math.min(level, about.coarsest)
  return {bin: 2 ** kept, first: 0, values: scene.columns[`${name}_${kept}`]}
}

// Layers of a stack, from the bottom: y0 is zero, y1 the first category's top, and so on up to `slots`, the last ones all the rest.
function heldBytes(scene, name, slots, level, {from, to}) {
  const out = {x: []}
  for (let slot = 0; slot <= slots; slot++)
    out[`y${slot}`] = []
  if (!scene.held[name])
    return out
  const {origin, columns} = scene
  const times = columns[`held_${name}_time`]
  const kept = scene.level === undefined ? columns[`held_${name}_${level}`] : undefined
  const values = scene.held[name].names.map((_, slot) => columns[`held_${name}_category_${slot}`])
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
    for (let slot = 0; slot < slots; slot++) {
      for (const value of slot + 1 < slots ? values.slice(slot, slot + 1) : values.slice(slot))
        height += value[row(i)]
      out[`y${slot + 1}`].push(height, height)
    }
  }
  return out
}
