// The details of what is chosen: an event, with what released it and what it releases, or a range, with its split.

const NOTHING = {key: "", event: null, others: [], releases: [], more: 0, range: null} // others: of other traces, pairs of key and event
const chosen = {...NOTHING, marks: []}

// Chooses an event by its id; `known` is shown before the answer comes.
async function choose(shown, key, id, known) {
  Object.assign(chosen, {...NOTHING, key, event: known ?? chosen.event})
  if (known) {
    showEvent(shown)
    if (id < 0)
      return
  }
  if (!shown.scenes.some((scene) => scene.key == key)) {
    shown.models.rank.value = key
    await new Promise((done) => whenThere(() => shown.keys == key && !shown.pending, done))
  }
  const found = await shown.source.event(key, id)
  if (!found || chosen.key != key || (known && chosen.event.id != id))
    return
  Object.assign(chosen, found)
  const start = found.event.start + shown.shiftOf(key)
  bring(shown, start, start + found.event.duration)
  showEvent(shown)
  whenQuiet()
  // Another event, or what a search found, may stand in the pane when an answer comes.
  const place = (name) => chosen.key == key && chosen.event?.id == id ? element(name) : null
  const source = word(shown.scenes.find((scene) => scene.key == key).shared, "source", found.event.alike)
  const excerpt = source && await shown.source.code(key, source)
  if (excerpt)
    place("code")?.replaceChildren(...code(excerpt))
  const why = await shown.source.why(key, id)
  if (why)
    place("why")?.replaceChildren(made("h2", {}, "Why so long"), made("pre", {}, why))
}

async function neighbour(shown, step) {
  if (!chosen.event || chosen.event.id < 0)
    return
  const found = await shown.source.neighbour(chosen.key, chosen.event.id, step)
  if (found)
    choose(shown, chosen.key, found.id, found)
}

// To what released the chosen event, also on another rank.
async function followReleaser(shown) {
  const {key, event} = chosen
  if (event.released >= 0)
    return choose(shown, key, event.released)
  const foreign = shown.scenes.find((scene) => scene.key == key).shared.foreign.find(([id]) => id == event.id)
  if (!foreign)
    return
  const owner = await shown.source.owner(foreign[1])
  if (owner)
    choose(shown, owner.key, owner.id)
  else
    tell("What released this event is on a rank that is not loaded: choose that rank first.")
}

function fitChosen(shown) {
  const {event, key, range} = chosen
  const start = event && event.start + shown.shiftOf(key)
  if (range)
    fit(shown, ...range)
  else if (event)
    fit(shown, start, start + event.duration)
}

function letGo(shown) {
  Object.assign(chosen, {...NOTHING, marks: []})
  element("pane").hidden = true
  whenQuiet()
}

function showEvent(shown) {
  const {event, key} = chosen
  const {shared} = shown.scenes.find((scene) => scene.key == key) ?? shown.scenes[0]
  const pane = element("pane")
  const facts = aboutEvent(shared, event).flatMap(([label, value]) => [made("dt", {}, label), made("dd", {}, value)])
  const foreign = shared.foreign.some(([id]) => id == event.id)
  const parts = [made("h2", {}, title(shared, event.alike)), made("dl", {}, ...facts), made("div", {id: "code"}), made("div", {id: "why"})]
  if (event.released >= 0 || foreign) {
    const go = made("button", {type: "button"}, foreign ? "Released by an event of another rank" : "Released by (key [ )")
    go.addEventListener("click", () => followReleaser(shown))
    parts.push(made("h2", {}, "Why not sooner"), go)
  }
  if (chosen.releases.length) {
    const items = chosen.releases.map((other) => {
      const go = made("button", {type: "button"}, `${title(shared, other.alike)}, ${time(other.duration)}`)
      go.addEventListener("click", () => choose(shown, key, other.id))
      return made("li", {}, go)
    })
    const more = chosen.more ? [made("li", {}, `and ${chosen.more} more`)] : []
    parts.push(made("h2", {}, "Releases"), made("ul", {}, ...items, ...more))
  }
  pane.replaceChildren(closer(shown), ...parts, ...noteEditor(shown, event.start))
  pane.hidden = false
  drawOverlays(shown)
}

// Advice is there when the trace is analysed; a page without a server has it.
async function loadAdvice(shown) {
  const address = document.body.dataset.server
  const advice = address ? await new Served(address, () => {}).sheet("advice") : JSON.parse(element("item-advice")?.textContent ?? "[]")
  if (!advice.length)
    return
  shown.advice = advice
  shown.lay()
  shown.schedule()
}

// What to change, and the place where it shows.
function showAdvice(shown, {start, end, worth, wrong, change}) {
  Object.assign(chosen, NOTHING)
  const paragraphs = [worth, wrong, change].map((text) => made("p", {}, text))
  element("pane").replaceChildren(closer(shown), made("h2", {}, "What to change"), ...paragraphs)
  element("pane").hidden = false
  fit(shown, start, end)
}

// An operator's first event in each of several traces: {key, name, event} of each, event null where the rank has none.
function showPlaces(shown, places) {
  const [first, ...others] = places.filter(({event}) => event)
  Object.assign(chosen, {...NOTHING, key: first.key, event: first.event, others})
  const facts = places.flatMap(({key, name, event}) => {
    const count = event ? `${event.count.toLocaleString("en")} ${event.count == 1 ? "event" : "events"}` : ""
    const steps = shown.scenes.find((scene) => scene.key == key).shared.segments.filter(({kind}) => kind == "step").length
    const told = event ? `${count} in ${steps} ${steps == 1 ? "step" : "steps"}; at ${time(event.start)} for ${time(event.duration)}` : "no events on this rank"
    return [made("dt", {}, shown.models.names[key]), made("dd", {}, told), ...(name == first.name ? [] : [made("dt", {}, "called"), made("dd", {}, name)])]
  })
  element("pane").replaceChildren(closer(shown), made("h2", {}, first.name), made("dl", {className: "long"}, ...facts))
  element("pane").hidden = false
  whenQuiet()
}

function closer(shown) {
  const button = made("button", {type: "button", ariaLabel: "Close the details", style: "float:right"}, "×")
  button.addEventListener("click", () => letGo(shown))
  return button
}

// The lines of the script around the one that caused the event, or why they are not there.
function code({first, line, lines, note}) {
  const numbered = lines.map((text, i) => {
    const whole = `${String(first + i).padStart(4)}  ${text}\n`
    return first + i == line ? made("b", {}, whole) : whole
  })
  return [...(lines.length ? [made("pre", {ariaLabel: "Source"}, ...numbered)] : []), ...(note ? [made("p", {className: "sentence"}, note)] : [])]
}

async function chooseRange(shown, a, b) {
  const range = [Math.min(a, b), Math.max(a, b)]
  Object.assign(chosen, {...NOTHING, range})
  const pane = element("pane")
  const head = [made("h2", {}, `Range of ${time(range[1] - range[0])}`),
                made("p", {}, `${instant(range[0], 1, Math.abs(range[0]))} to ${instant(range[1], 1, Math.abs(range[1]))}`)]
  pane.replaceChildren(closer(shown), ...head)
  pane.hidden = false
  drawOverlays(shown)
  for (const scene of shown.scenes) {
    const [from, to] = range.map((at) => at - scene.shift)
    const split = await shown.source.split(scene.key, from, to)
    if (chosen.range != range)
      return
    if (split)
      pane.append(made("h2", {}, `Where the time of ${scene.title} goes`), ...busyBars(split.parts), ...costliest(split.operators))
    const parts = await shown.source.busy(scene.key, from, to)
    if (chosen.range != range)
      return
    pane.append(made("h2", {}, `How busy the engines of ${scene.title} are`), ...busyBars(parts))
  }
  pane.append(...noteEditor(shown, range[0]))
}

function costliest(operators) {
  const items = operators.map(({name, part, share, time}) => made("li", {}, made("b", {}, `${share} ${time} `), `${part}: ${name}`))
  return items.length ? [made("h2", {}, "What costs most of it"), made("ul", {}, ...items)] : []
}

function busyBars(parts) {
  if (!parts)
    return [made("p", {}, "The split of a range needs the server: neuronprof view trace.parquet")]
  const facts = parts.flatMap((part) => [made("dt", {style: `border-left:4px solid ${part.colour};padding-left:4px`}, part.name),
                                         made("dd", {}, `${part.share}  ${part.time}`)])
  return [made("dl", {}, ...facts)]
}

// A mark at the pointer; two of them measure what is between.
function mark(shown) {
  const at = pointer ?? (shown.models.x_range.start + shown.models.x_range.end) / 2
  chosen.marks = chosen.marks.length == 1 ? [...chosen.marks, at].sort((a, b) => a - b) : [at]
  drawOverlays(shown)
  if (chosen.marks.length == 2 && chosen.marks[0] < chosen.marks[1])
    chooseRange(shown, ...chosen.marks)
}
