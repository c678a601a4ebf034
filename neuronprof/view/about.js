// What is said of events. Everything here is plain text: it is put into the page as text, never as HTML.

const WIDEST = 76 // letters of a value before its middle is left out
const MOST_RELEASED = 20
const BANDS = ["step", "phase", "region", "throttled", "slowed"]
const COMPUTES = ["tensor", "vector", "scalar", "gpsimd"]
const SEARCHED = ["op_name", "name", "layer", "source"]

function laneOf(scene, event) {
  return scene.lanes.find((lane) => lane.from <= event && event < lane.to)
}

// An event on its own: `row` is where it stands, `alike` its row of the alike table, `released` the id of what released it, if any.
function recordOf(scene, event) {
  const {columns} = scene
  const released = columns.released[event]
  return {
    id: columns.id[event], row: laneOf(scene, event).row, alike: columns.alike[event], start: scene.start[event],
    duration: scene.end[event] - scene.start[event], wait: columns.wait[event], wait_for: columns.wait_for[event],
    released: released ? columns.id[event] - released : -1,
  }
}

function word(scene, column, alike) {
  const code = scene.columns[`alike_${column}`][alike]
  return code < 0 ? "" : scene.strings[column][code]
}

// What computes is known by its operator, what moves data by its instruction; the layer where there is room (pixels).
function title(scene, alike, points, room) {
  const operator = word(scene, "op_name", alike).replace(/^aten\./, "")
  const computes = COMPUTES.includes(word(scene, "engine", alike))
  const name = (computes && operator) || word(scene, "name", alike) || operator
  const layer = word(scene, "layer", alike)
  const whole = layer ? `${name} · ${layer}` : name
  if (room === undefined)
    return whole
  return whole != name && textWidth(whole, points) <= room ? whole : fitted(name, points, room)
}

function shorten(value) {
  const half = (WIDEST - 1) >> 1
  return value.length > WIDEST ? `${value.slice(0, half)}…${value.slice(-half)}` : value
}

function stepOf(scene, at) {
  const segment = scene.segments.find(({start_ts, end_ts}) => start_ts <= at && at < end_ts)
  return segment ? (segment.kind == "step" ? `step ${segment.step}` : "evaluation") : ""
}

// What the tensor engine reaches of what it can do in this type.
function ofPeak(scene, {alike}, achieved) {
  const peak = scene.peaks[word(scene, "dtype", alike)]
  return peak && achieved > 0 && isFinite(achieved) && word(scene, "engine", alike) == "tensor" ? percent(achieved / peak) : ""
}

// Pairs of a label and a value for an event.
function aboutEvent(scene, event) {
  const {alike, start, duration, wait} = event
  const of = (column) => word(scene, column, alike)
  const [bytes, flops] = ["bytes", "flops"].map((name) => scene.columns[`alike_${name}`][alike])
  const rate = (number, print, unit) => duration > 0 ? `${print(number)}  (${count(number * 1e9 / duration, unit)})` : print(number)
  const cause = event.wait_for >= 0 ? scene.strings.wait_for[event.wait_for] : ""
  const band = BANDS.includes(of("engine"))
  return [
    ["Instruction", band ? "" : of("name")],
    ["Operator", of("op_name")],
    ["Layer", of("layer")],
    ["Region", band ? "" : of("region")],
    ["Shapes", of("shapes")],
    ["Type", of("dtype")],
    ["Source", of("source")],
    ["Phase", band ? "" : [of("phase"), stepOf(scene, start)].filter(Boolean).join(", ")],
    ["Group", [of("replica_group"), of("algorithm")].filter(Boolean).join(", ")],
    ["Start", instant(start, 1, Math.abs(start))],
    ["Duration", time(duration)],
    ["Bytes", bytes > 0 ? rate(bytes, size, "B/s") : ""],
    ["FLOPs", flops > 0 ? rate(flops, (number) => count(number, "FLOP"), "FLOP/s") : ""],
    ["Of peak", ofPeak(scene, event, flops * 1e9 / duration)],
    ["Waited", wait > 0 ? time(wait) + (cause && cause != "none" ? ` for ${cause}` : "") : ""],
  ].filter(([, value]) => value)
}

function aboutBar(scene, bar) {
  const {columns} = scene
  const longest = scene.bar_event[bar], alike = columns.alike[longest]
  return [
    ["Busy", `${percent(columns.bar_share[bar] / 255)} of ${time(scene.bar_end[bar] - scene.bar_start[bar])}`],
    ["Start", instant(scene.bar_start[bar], 1, Math.abs(scene.bar_start[bar]))],
    ["Phase", [word(scene, "phase", alike), stepOf(scene, scene.bar_start[bar])].filter(Boolean).join(", ")],
    ["Longest", `${word(scene, "name", alike)}, ${time(scene.end[longest] - scene.start[longest])}`],
    ["Operator", word(scene, "op_name", alike)],
    ["Layer", word(scene, "layer", alike)],
    ["", "zoom in to see each event"],
  ].filter(([, value]) => value)
}

// `part` is title, labels or values; `row` an event, or -1 - bar.
function describe(scene, row, part) {
  if (part == "title")
    return row < 0 ? `${scene.columns.bar_count[-1 - row].toLocaleString("en")} events` : shorten(title(scene, scene.columns.alike[row]))
  const pairs = row < 0 ? aboutBar(scene, -1 - row) : aboutEvent(scene, recordOf(scene, row))
  return pairs.map(([label, value]) => part == "labels" ? label : shorten(value).replace(/\s*\n\s*/g, " ")).join("\n")
}

// What memory holds by category, from the top of the stack; `part` as above.
function held(scene, name, layers, slots, point, part) {
  if (part == "title")
    return `${name == "memory" ? "HBM" : name.toUpperCase()} in use`
  const names = slotNames(scene.held[name], slots)
  const pairs = names.map((name, slot) => [shorten(name), size(layers[`y${slot + 1}`][point] - layers[`y${slot}`][point])]).reverse()
  pairs.push(["total", size(layers[`y${slots}`][point])])
  return pairs.map(([label, value]) => part == "labels" ? label : value).join("\n")
}

function slotNames(about, slots) {
  const names = about.names.map((name) => name.replaceAll("_", " "))
  return names.length <= slots ? names : [...names.slice(0, slots - 1), "other"]
}

// The rows of the alike table in which a text occurs, in any of the columns that are searched.
function matches(scene, text) {
  const wanted = text.toLowerCase()
  const hits = {}
  for (const column of SEARCHED)
    hits[column] = scene.strings[column].map((known) => known.toLowerCase().includes(wanted))
  const found = []
  for (let row = 0; row < scene.columns.alike_op.length; row++)
    if (scene.columns.alike_count[row] > 0 && SEARCHED.some((column) => hits[column][scene.columns[`alike_${column}`][row]]))
      found.push(row)
  return found
}
