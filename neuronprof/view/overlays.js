// What lies over the events: the chosen one, arrows to what belongs to it, the chosen range, marks, and notes.

const RANGE_COLOUR = "#1f6feb", MARK_COLOUR = "#b42318", NOTE_COLOUR = "#e69f00"
let notes = null // of the trace: {at, text}; kept beside it by the server, in a page by nobody

function placeOf(shown, key, row) {
  return shown.scenes.find((scene) => scene.key == key)?.places.get(row.join())
}

function drawOverlays(shown) {
  const {spans, chosen: outline, arrows, notes: words} = shown.models
  const {event, key, releases, range, marks} = chosen
  const box = {left: [], right: [], bottom: [], top: []}
  const lines = {x0: [], y0: [], x1: [], y1: []}
  const row = event && placeOf(shown, key, event.row)
  const {pixel} = shown.view(), shift = shown.shiftOf(key)
  const frame = (key, {start, duration, row}) => {
    const place = placeOf(shown, key, row), left = start + shown.shiftOf(key)
    if (place === undefined)
      return
    box.left.push(left)
    box.right.push(left + Math.max(duration, 3 * pixel))
    box.bottom.push(-place - 0.95)
    box.top.push(-place - 0.05)
  }
  chosen.others.forEach((other) => frame(other.key, other.event))
  if (row !== undefined && row !== null) {
    frame(key, event)
    const arrow = (from, fromRow, to, toRow) => {
      if (fromRow === undefined || toRow === undefined)
        return
      lines.x0.push(from + shift)
      lines.y0.push(-fromRow - 0.5)
      lines.x1.push(to + shift)
      lines.y1.push(-toRow - 0.5)
    }
    if (chosen.releaser?.id == event.released && event.released >= 0)
      arrow(chosen.releaser.start + chosen.releaser.duration, placeOf(shown, key, chosen.releaser.row), event.start, row)
    for (const other of releases)
      arrow(event.start + event.duration, row, other.start, placeOf(shown, key, other.row))
  }
  shown.put(outline, box)
  shown.put(arrows, lines)
  const shade = {left: [], right: [], bottom: [], top: [], colour: []}
  const band = (from, to, colour) => {
    shade.left.push(from)
    shade.right.push(to)
    shade.bottom.push(0)
    shade.top.push(1)
    shade.colour.push(colour)
  }
  const texts = {x: [], y: [], text: []}
  const say = (at, text) => {
    texts.x.push(at)
    texts.y.push(1)
    texts.text.push(plainText(text))
  }
  if (range)
    band(...range, RANGE_COLOUR)
  if (marks.length)
    band(marks[0], marks[marks.length - 1], MARK_COLOUR)
  if (marks.length == 2)
    say(marks[0], time(marks[1] - marks[0]))
  for (const note of notes ?? []) {
    band(note.at, note.at, NOTE_COLOUR)
    say(note.at, note.text)
  }
  shown.put(spans, shade)
  shown.put(words, texts)
  if (event?.released >= 0 && chosen.releaser?.id != event.released)
    lookUpReleaser(shown, key, event)
}

async function lookUpReleaser(shown, key, event) {
  chosen.releaser = {id: event.released, row: []}
  const found = await shown.source.event(key, event.released)
  if (found && chosen.event?.released == found.event.id) {
    chosen.releaser = found.event
    drawOverlays(shown)
  }
}

const plainText = (text) => text.replaceAll("$", "＄").replaceAll("\\", "＼")

// A note for a time: saved beside the trace by the server; a page without one keeps it until it is closed.
function noteEditor(shown, at) {
  const known = (notes ?? []).find((note) => note.at == Math.round(at))
  const text = made("textarea", {ariaLabel: "Note", placeholder: "Note", value: known?.text ?? ""})
  const save = made("button", {type: "button"}, "Save the note")
  save.addEventListener("click", async () => {
    const others = (notes ?? []).filter((note) => note.at != Math.round(at))
    notes = text.value.trim() ? [...others, {at: Math.round(at), text: text.value.trim()}] : others
    await shown.source.keepNotes(chosen.key || shown.scenes[0].key, notes)
    drawOverlays(shown)
  })
  return [made("h2", {}, "Note"), text, save]
}

async function loadNotes(shown) {
  notes = await shown.source.notes(shown.scenes[0].key)
  drawOverlays(shown)
}
