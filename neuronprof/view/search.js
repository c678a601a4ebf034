// Search over the whole trace: how many, which, next and previous.

const MOST_LISTED = 40, SHORTEST = 25 // nanoseconds of an event around which something should be seen
let wanted = ""

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

// Hits are counted by what events share, of the first rank that is shown: each line is one operator, instruction and layer.
function listHits(shown, text) {
  wanted = text
  const pane = element("pane")
  if (!text) {
    element("found").textContent = ""
    pane.hidden = !chosen.event
    return
  }
  if (!onTimeline())
    turnTo("timeline")
  const [{shared, key}] = shown.scenes
  const rows = matches(shared, text)
  const groups = new Map()
  let total = 0
  for (const row of rows) {
    const label = title(shared, row)
    const count = shared.columns.alike_count[row]
    const group = groups.get(label) ?? {count: 0}
    group.count += count
    groups.set(label, group)
    total += count
  }
  element("found").textContent = `${total.toLocaleString("en")} ${total == 1 ? "event" : "events"}`
  const items = [...groups].sort(([, a], [, b]) => b.count - a.count).slice(0, MOST_LISTED).map(([label, group]) => {
    const go = made("button", {type: "button"}, `${label} (${group.count.toLocaleString("en")})`)
    go.addEventListener("click", async () => {
      const name = label.split(" · ").pop()
      show(shown, key, await shown.source.find(key, matches(shared, name).length ? name : text, shown.models.x_range.start, 1))
    })
    return made("li", {}, go)
  })
  const rest = groups.size > MOST_LISTED ? [made("li", {}, `and ${groups.size - MOST_LISTED} more`)] : []
  pane.replaceChildren(closer(shown), made("h2", {}, `Found for “${text}” on ${shown.scenes[0].title}`), made("ul", {}, ...items, ...rest))
  pane.hidden = false
}

async function nextHit(shown, step) {
  if (!wanted)
    return
  const [{key}] = shown.scenes
  const from = chosen.event && chosen.key == key ? chosen.event.start : step > 0 ? shown.models.x_range.start : shown.models.x_range.end
  show(shown, key, await shown.source.find(key, wanted, from, step))
}

function show(shown, key, found) {
  if (!found)
    return tell(`No further event for “${wanted}” in this direction.`)
  tell("")
  choose(shown, key, found.id, found) // of the first rank that is shown, which is never shifted
  const {x_range} = shown.models
  if (found.duration < (x_range.end - x_range.start) / 400)
    fit(shown, found.start - 20 * Math.max(found.duration, SHORTEST), found.start + 21 * Math.max(found.duration, SHORTEST))
}
