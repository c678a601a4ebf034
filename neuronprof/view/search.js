// Search over the whole trace: how many, which, next and previous.

const MOST_LISTED = 40, SHORTEST = 25 // nanoseconds of an event around which something should be seen
const MOST_ROWS = 300 // of the alike table that are asked for one by one
let wanted = "", only = new Map() // the text, and the rows of the alike table by rank where only those of one line are wanted

function handleSearch(shown) {
  const input = element("search")
  let pause = 0
  input.addEventListener("input", () => {
    clearTimeout(pause)
    pause = setTimeout(() => listHits(shown, input.value.trim()), 120)
  })
  input.addEventListener("keydown", (event) => {
    if (event.key == "Enter") {
      event.preventDefault()
      listHits(shown, input.value.trim())
      nextHit(shown, event.shiftKey ? -1 : 1)
    }
  })
}

// Hits are counted by what events share, on all ranks that are shown: each line is one operator, instruction and layer.
function listHits(shown, text) {
  wanted = text
  only = new Map()
  const pane = element("pane")
  if (!text) {
    element("found").textContent = ""
    pane.hidden = !chosen.event
    return
  }
  if (!onTimeline())
    turnTo("timeline")
  const groups = hitsOf(shown, text)
  const total = groups.reduce((sum, [, {count}]) => sum + count, 0)
  element("found").textContent = `${total.toLocaleString("en")} ${total == 1 ? "event" : "events"}`
  const items = groups.slice(0, MOST_LISTED).map(([label, {count, rows}]) => {
    const go = made("button", {type: "button"}, `${label} (${count.toLocaleString("en")})`)
    go.addEventListener("click", () => {
      only = rows
      showNearest(shown, shown.models.x_range.start, 1)
    })
    return made("li", {}, go)
  })
  const rest = groups.length > MOST_LISTED ? [made("li", {}, `and ${groups.length - MOST_LISTED} more`)] : []
  const where = shown.scenes.map((scene) => scene.title).join(", ")
  pane.replaceChildren(closer(shown), made("h2", {}, `Found for “${text}” on ${where}`), made("ul", {}, ...items, ...rest))
  pane.hidden = false
}

// Lines and what is in each, most events first: how many, and the rows of the alike table by rank.
function hitsOf(shown, text) {
  const groups = new Map()
  for (const {shared, key} of shown.scenes)
    for (const row of matches(shared, text)) {
      const label = title(shared, row), group = groups.get(label) ?? {count: 0, rows: new Map()}
      group.count += shared.columns.alike_count[row]
      group.rows.set(key, [...group.rows.get(key) ?? [], row])
      groups.set(label, group)
    }
  return [...groups].sort(([, a], [, b]) => b.count - a.count)
}

async function nextHit(shown, step) {
  if (!wanted)
    return
  const {x_range} = shown.models
  const from = chosen.event ? chosen.event.start + shown.shiftOf(chosen.key) : step > 0 ? x_range.start : x_range.end
  return showNearest(shown, from, step, chosen.event && chosen.key)
}

// The hit that is next in time, on any rank that is shown; of those that start with a chosen one, that of the next rank.
async function showNearest(shown, from, step, key = null) {
  const {scenes} = shown, at = scenes.findIndex((scene) => scene.key == key)
  const asked = only.size ? scenes.filter((scene) => only.has(scene.key)) : scenes
  const found = await Promise.all(asked.map(async (scene) => {
    const beyond = at >= 0 && step * (scenes.indexOf(scene) - at) > 0 ? step : 0 // also what starts just then
    const hit = await shown.source.find(scene.key, {text: wanted, rows: rowsOf(scene.key)}, from - scene.shift - beyond, step)
    return hit && {key: scene.key, hit, at: step * (hit.start + scene.shift)}
  }))
  const [first] = found.filter(Boolean).sort((a, b) => a.at - b.at)
  if (!first)
    return tell(`No further event for “${wanted}” in this direction.`)
  tell("")
  choose(shown, first.key, first.hit.id, first.hit)
  const {x_range} = shown.models, {duration} = first.hit, start = first.hit.start + shown.shiftOf(first.key)
  if (duration < (x_range.end - x_range.start) / 400)
    fit(shown, start - 20 * Math.max(duration, SHORTEST), start + 21 * Math.max(duration, SHORTEST))
}

function rowsOf(key) {
  const rows = only.get(key)
  return rows?.length <= MOST_ROWS ? rows : undefined
}
