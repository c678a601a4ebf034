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
  const {pixel} = shown.view()
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
  const mine = `${key}/${event?.id}`, {releaser} = chosen
  if (row !== undefined && row !== null) {
    frame(key, event)
    const arrow = (fromKey, from, fromRow, to, toRow) => {
      const places = [placeOf(shown, fromKey, fromRow), placeOf(shown, key, toRow)]
      if (places.includes(undefined))
        return
      lines.x0.push(from + shown.shiftOf(fromKey))
      lines.y0.push(-places[0] - 0.5)
      lines.x1.push(to + shown.shiftOf(key))
      lines.y1.push(-places[1] - 0.5)
    }
    if (releaser?.of == mine && releaser.event)
      arrow(releaser.key, releaser.event.start + releaser.event.duration, releaser.event.row, event.start, event.row)
    for (const other of releases)
      arrow(key, event.start + event.duration, event.row, other.start, other.row)
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
  if (event?.id >= 0 && releaser?.of != mine)
    lookUpReleaser(shown, key, event)
}

// What released an event, of the same rank or of another one that is shown.
async function lookUpReleaser(shown, key, event) {
  const releaser = chosen.releaser = {of: `${key}/${event.id}`, key, event: null}
  const elsewhere = shown.scenes.find((scene) => scene.key == key)?.shared.foreign.find(([id]) => id == event.id)
  const owner = elsewhere ? await shown.source.owner(elsewhere[1]) : event.released >= 0 ? {key, id: event.released} : null
  if (!owner || !shown.scenes.some((scene) => scene.key == owner.key))
    return
  const found = await shown.source.event(owner.key, owner.id)
  if (found && chosen.releaser == releaser) {
    Object.assign(releaser, {key: owner.key, event: found.event})
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
