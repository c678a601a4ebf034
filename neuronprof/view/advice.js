// Advice as bands below a rank's rows: {key, start, end, worth, wrong, change} of each, in the order of what it gives.

const ADVICE = "advice", YELLOW = 6 // its place in the palette
const LINE = 64 // letters of a line of what is said of one

// Rows for the advice about a rank, as many as it takes for none to lie over another: the last ones, since they come when the others stand.
function adviceRows({key, shared}, advice) {
  const ends = [], mine = advice.filter((one) => one.key == key).sort((a, b) => a.start - b.start)
  for (const one of mine) {
    const free = ends.findIndex((end) => end <= one.start)
    one.lane = free < 0 ? ends.length : free
    ends[one.lane] = one.end
  }
  const rows = ends.map((_, lane) => ({row: rowOf(lane), label: lane ? "" : "Advice", colour: YELLOW}))
  shared.rows = [...shared.rows.filter(({row}) => row[1] != ADVICE), ...rows]
}

const rowOf = (lane) => [Infinity, ADVICE, 0, lane]

// Where each advice whose rank and track are shown stands: {left, right, top, bottom, number}.
function adviceBoxes(scenes, advice, pixel) {
  return advice.flatMap(({key, start, end, lane}, number) => {
    const scene = scenes.find((scene) => scene.key == key), place = scene?.places.get(rowOf(lane).join())
    if (place === undefined)
      return []
    return [{left: start + scene.shift, right: Math.max(end, start + 3 * pixel) + scene.shift, top: -place - 0.12, bottom: -place - 0.88, number}]
  })
}

function describeAdvice({worth, wrong, change}, number, part) {
  if (part == "title")
    return `Advice ${number + 1}: ${worth}`
  const [now, instead] = [wrong, change].map((text) => wrapped(text, LINE))
  return part == "labels" ? `Now${"\n".repeat(now.length)}Instead` : [...now, ...instead].join("\n")
}

function wrapped(text, width) {
  const lines = [""]
  for (const word of text.split(/\s+/))
    if (lines.at(-1) && lines.at(-1).length + word.length >= width)
      lines.push(word)
    else
      lines.push(`${lines.pop()} ${word}`.trim())
  return lines
}
