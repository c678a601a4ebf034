// What the page adds to its timeline: pages to choose from, and its state in the address.

const COMPARE = "compare" // the page on which the timelines stand too
const BESIDE = 3 // times an event's duration that are shown beside it
const QUIET = 400 // milliseconds without a change after which the address tells the state

const element = (id) => document.getElementById(id)
const model = (name) => globalThis.Bokeh?.documents[0]?.get_model_by_name(name)
const timeline = () => model("lanes")?.x_range.neuronprof

function begin() {
  // What the server refused was told.
  addEventListener("unhandledrejection", (event) => event.reason?.message == "refused" && event.preventDefault())
  document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", (event) => {
    event.preventDefault()
    turnTo(link.dataset.page)
    remember(timeline())
  }))
  document.addEventListener("neuronprof.rank", ({detail}) => openRank(timeline(), detail))
  document.addEventListener("neuronprof.operator", ({detail}) => openOperator(timeline(), detail))
  document.addEventListener("neuronprof.place", ({detail}) => openPlace(timeline(), detail))
  addEventListener("popstate", () => restore(timeline(), stateOf(location.hash)))
  whenThere(() => model("timeline"), (root) => {
    turnTo(stateOf(location.hash).page)
    dress()
    DARK.addEventListener("change", paint)
    if (root.type == "Column")
      whenThere(timeline, follow)
    else
      openSheet("heading")
  })
}

function whenThere(look, act) {
  const found = look()
  if (found)
    act(found)
  else
    setTimeout(whenThere, 15, look, act)
}

// The state is in the address, so that a colleague who gets it sees the same: page, ranks, window, colours, chosen event, tracks.
function stateOf(hash) {
  return Object.fromEntries(new URLSearchParams(hash.slice(1)))
}

function follow(shown) {
  shown.listeners.push({tell, drawn: whenQuiet})
  handleKeys(shown)
  handleChoices(shown)
  handleSearch(shown)
  handleTracks(shown)
  restore(shown, stateOf(location.hash))
  whenThere(() => shown.drawn, () => {
    loadNotes(shown)
    openSheet("heading")
    loadAdvice(shown)
  })
}

function turnTo(page) {
  const known = [...document.querySelectorAll("nav a")].map((link) => link.dataset.page)
  const chosen = known.includes(page) ? page : known[0]
  document.querySelectorAll("nav a").forEach((link) => link.toggleAttribute("aria-current", link.dataset.page == chosen))
  const shown = chosen == COMPARE ? ["timeline", chosen] : [chosen]
  document.querySelectorAll(".page").forEach((section) => section.classList.toggle("away", !shown.some((name) => section.id == `page-${name}`)))
  document.body.dataset.page = chosen
  document.body.toggleAttribute("data-apart", !onTimeline())
  openSheet(chosen)
}

function openRank(shown, rank) {
  const key = `0/${rank}`
  if (!(key in shown.models.names))
    return tell(`The events of rank ${rank} are not in the trace: record with --trace-ranks ${rank} to have them.`)
  tell("")
  shown.models.rank.value = key
  turnTo("timeline")
  return true
}

function openPlace(shown, {rank, start, end}) {
  if (openRank(shown, rank))
    fit(shown, start, end)
}

// An operator of several traces: pairs of a trace's number and what the operator is called there. Its first events come one below another.
async function openOperator(shown, places) {
  const {rank} = shown.models
  const compared = rank.options.Compared?.map(([keys]) => keys) ?? []
  if (!compared.length)
    return tell("The traces have no rank in common to be shown one below the other.")
  const value = compared.includes(rank.value) ? rank.value : compared[0]
  const keys = places.map(([number]) => value.split(",")[number])
  const found = await Promise.all(places.map(([, name], place) => shown.source.operator(keys[place], name)))
  if (!onTimeline())
    turnTo("timeline")
  rank.value = value
  if (!found.some(Boolean))
    return tell("This operator has no events on this rank.")
  tell("")
  await new Promise((done) => whenThere(() => shown.keys == value && !shown.pending, done))
  const first = found.find(Boolean)
  shown.align(new Map(keys.map((key, place) => [key, found[place]]).filter(([, event]) => event)))
  showPlaces(shown, places.map(([, name], place) => ({key: keys[place], name, event: found[place]})))
  const longest = Math.max(...found.map((event) => event?.duration ?? 0))
  fit(shown, first.start - BESIDE * longest, first.start + (BESIDE + 1) * longest)
}

const onTimeline = () => ["timeline", COMPARE].includes(document.body.dataset.page)

let last = false // nothing else will be told
function tell(text, final = false) {
  if (last)
    return
  last = final
  const notice = element("notice")
  if (notice.textContent == text)
    return
  notice.textContent = text
  notice.hidden = !text
}

let quiet = 0
function whenQuiet() {
  const shown = timeline()
  drawOverlays(shown)
  rememberSoon()
}

let named = -1 // which of the timeline's layouts has names for screen readers
function rememberSoon() {
  clearTimeout(quiet)
  quiet = setTimeout(() => {
    const shown = timeline()
    if (shown?.laid != named) {
      named = shown?.laid
      nameThem()
    }
    remember(shown)
  }, QUIET)
}

// What the address tells of other pages: by its name there, how it is told ("" if it is as at first) and taken from there.
const kept = new Map(), OF_PAGES = ["measure", "chips", "tree"]
function keep(name, tell, take) {
  kept.set(name, {tell, take})
  const {[name]: known} = stateOf(location.hash)
  if (known)
    take(known)
}

function remember(shown) {
  const before = stateOf(location.hash) // of pages that were not opened yet
  const others = OF_PAGES.map((name) => [name, kept.has(name) ? kept.get(name).tell() : before[name]]).filter(([, value]) => value)
  const state = {page: document.body.dataset.page, ...(shown?.keys ? timelineState(shown) : {}), ...Object.fromEntries(others)}
  const hash = `#${new URLSearchParams(state)}`
  if (hash != location.hash)
    history.pushState(null, "", hash)
}

function timelineState(shown) {
  const {x_range, whole, rank, colour} = shown.models
  const everything = x_range.start == whole.start && x_range.end == whole.end
  return {
    ...(rank.value != initial.rank && {rank: rank.value}),
    ...(!everything && {from: Math.round(x_range.start), to: Math.round(x_range.end)}),
    ...(colour.value != initial.colour && {colour: colour.value}),
    ...(chosen.event && {event: `${chosen.key}/${chosen.event.id}`}),
    ...(shown.rows.hidden.size && {hidden: [...shown.rows.hidden].join("|")}),
    ...(shown.rows.pinned.length && {pinned: shown.rows.pinned.join("|")}),
    ...(shown.rows.order.length && {order: shown.rows.order.join("|")}),
    ...(shown.rows.filter && {filter: shown.rows.filter}),
    ...(shown.scenes.some(({shift}) => shift) && {shift: shown.scenes.map(({shift}) => shift).join()}),
  }
}

const initial = {}
function restore(shown, state) {
  turnTo(state.page)
  kept.forEach(({take}, name) => take(state[name] ?? ""))
  if (!shown)
    return
  const {x_range, whole, rank, colour} = shown.models
  initial.rank ??= rank.value
  initial.colour ??= colour.value
  shown.rows.hidden = new Set(state.hidden?.split("|"))
  shown.rows.pinned = state.pinned?.split("|") ?? []
  shown.rows.order = state.order?.split("|") ?? []
  shown.rows.filter = state.filter ?? ""
  colour.value = state.colour ?? initial.colour
  rank.value = state.rank ?? initial.rank
  const [from, to] = [state.from ?? whole.start, state.to ?? whole.end].map(Number)
  if (from < to)
    x_range.setv({start: from, end: to})
  shown.shifts = state.shift?.split(",").map(Number) ?? []
  if (shown.scenes.length) {
    shown.scenes.forEach((scene, place) => { scene.shift = shown.shifts[place] ?? 0 })
    shown.lay()
  }
  shown.schedule()
  if (state.event && `${chosen.key}/${chosen.event?.id}` != state.event) {
    const [, key, id] = state.event.match(/^(.*)\/(\d+)$/) ?? []
    if (key)
      choose(shown, key, Number(id))
  }
}
