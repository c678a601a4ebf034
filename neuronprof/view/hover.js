// What the pointer shows. Everything here is plain text: Bokeh puts it into the page as text, never as HTML.

const WIDEST = 76 // letters of a value before its middle is left out

function text(scene, column, event) {
  const code = scene.columns[`alike_${column}`][scene.columns.alike[event]]
  return code < 0 ? "" : scene.strings[column][code]
}

function laneOf(scene, event) {
  return scene.lanes.find((lane) => lane.from <= event && event < lane.to)
}

// What computes is known by its operator, what moves data by its instruction; the layer where there is room (pixels).
function title(scene, event, points, room) {
  const operator = text(scene, "op_name", event).replace(/^aten\./, "")
  const computes = ["tensor", "vector", "scalar", "gpsimd"].includes(laneOf(scene, event).row[1])
  const name = (computes && operator) || text(scene, "name", event) || operator
  const layer = text(scene, "layer", event)
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
function ofPeak(scene, event, achieved) {
  const peak = scene.peaks[text(scene, "dtype", event)]
  return peak && achieved > 0 && isFinite(achieved) && laneOf(scene, event).row[1] == "tensor" ? percent(achieved / peak) : ""
}

// Pairs of a label and a value for an event.
function aboutEvent(scene, event) {
  const {columns, start, end} = scene
  const of = (column) => columns[`alike_${column}`][columns.alike[event]]
  const duration = end[event] - start[event]
  const rate = (number, print) => duration > 0 ? `${print(number)}  (${print(number * 1e9 / duration)}/s)` : print(number)
  const wait = columns.wait[event]
  const cause = columns.wait_for[event] >= 0 ? scene.strings.wait_for[columns.wait_for[event]] : ""
  const phase = [text(scene, "phase", event), stepOf(scene, start[event])].filter(Boolean).join(", ")
  const band = ["step", "phase"].includes(laneOf(scene, event).row[1])
  return [
    ["Instruction", band ? "" : text(scene, "name", event)],
    ["Operator", text(scene, "op_name", event)],
    ["Layer", text(scene, "layer", event)],
    ["Shapes", text(scene, "shapes", event)],
    ["Type", text(scene, "dtype", event)],
    ["Source", text(scene, "source", event)],
    ["Phase", band ? "" : phase],
    ["Group", [text(scene, "replica_group", event), text(scene, "algorithm", event)].filter(Boolean).join(", ")],
    ["Start", instant(start[event], 1, Math.abs(start[event]))],
    ["Duration", time(duration)],
    ["Bytes", of("bytes") > 0 ? rate(of("bytes"), size) : ""],
    ["FLOPs", of("flops") > 0 ? rate(of("flops"), (number) => count(number, "FLOP")) : ""],
    ["Of peak", ofPeak(scene, event, of("flops") * 1e9 / duration)],
    ["Waited", wait > 0 ? time(wait) + (cause && cause != "none" ? ` for ${cause}` : "") : ""],
  ].filter(([, value]) => value)
}

function aboutBar(scene, bar) {
  const {columns} = scene
  const longest = scene.bar_event[bar]
  return [
    ["Busy", `${percent(columns.bar_share[bar] / 255)} of ${time(scene.bar_end[bar] - scene.bar_start[bar])}`],
    ["Start", instant(scene.bar_start[bar], 1, Math.abs(scene.bar_start[bar]))],
    ["Phase", [text(scene, "phase", longest), stepOf(scene, scene.bar_start[bar])].filter(Boolean).join(", ")],
    ["Longest", `${text(scene, "name", longest)}, ${time(scene.end[longest] - scene.start[longest])}`],
    ["Operator", text(scene, "op_name", longest)],
    ["Layer", text(scene, "layer", longest)],
    ["", "zoom in to see each event"],
  ].filter(([, value]) => value)
}

// `part` is title, labels or values; `row` an event, or -1 - bar.
function describe(scene, row, part) {
  if (part == "title")
    return row < 0 ? `${scene.columns.bar_count[-1 - row].toLocaleString("en")} events` : shorten(title(scene, row))
  const pairs = row < 0 ? aboutBar(scene, -1 - row) : aboutEvent(scene, row)
  return pairs.map(([label, value]) => part == "labels" ? label : shorten(value).replace(/\s*\n\s*/g, " ")).join("\n")
}

// What memory holds by category, from the top of the stack; `part` as above.
function held(layers, roles, point, part) {
  if (part == "title")
    return "HBM in use"
  const holds = (place) => layers[`y${place + 1}`][point] - layers[`y${place}`][point]
  const pairs = roles.map((role, place) => [shorten(role.replaceAll("_", " ")), size(holds(place))]).reverse()
  pairs.push(["total", size(layers[`y${roles.length}`][point])])
  return pairs.map(([label, value]) => part == "labels" ? label : value).join("\n")
}
