// The list of tracks: to hide, pin to the top and move, by buttons or by dragging; the field narrows them down to those with a text.

function handleTracks(shown) {
  const filter = made("input", {type: "search", placeholder: "Filter: dma", ariaLabel: "Show only tracks with this text"})
  filter.addEventListener("input", () => {
    shown.rows.filter = filter.value.trim()
    relay(shown)
  })
  const reset = made("button", {type: "button"}, "Reset")
  reset.addEventListener("click", () => {
    Object.assign(shown.rows, {hidden: new Set(), pinned: [], order: [], filter: filter.value = ""})
    relay(shown)
  })
  element("tracks").replaceChildren(made("h2", {}, "Tracks"), filter, made("ul"), reset)
  element("tracks-button").addEventListener("click", () => {
    toggle("tracks")
    filter.value = shown.rows.filter
    listTracks(shown)
  })
  // Other ranks, and advice that came, have other tracks.
  shown.listeners.push({drawn: () => !element("tracks").hidden && listed != namesOf(shown.tracks()) && listTracks(shown)})
}

const namesOf = (groups) => groups.map((group) => group.join()).join("|")
let listed = ""

function relay(shown) {
  shown.lay()
  shown.schedule()
  listTracks(shown)
}

// What has the keyboard keeps it, though it is made anew.
function listTracks(shown) {
  const list = element("tracks").querySelector("ul"), focused = document.activeElement.ariaLabel
  listed = namesOf(shown.tracks())
  list.replaceChildren(...shown.tracks().flatMap((group) => group.map((track, place) => trackItem(shown, track, group, place))))
  const again = [...list.querySelectorAll("[aria-label]")].find(({ariaLabel, disabled}) => ariaLabel == focused && !disabled)
  again?.focus()
}

function trackItem(shown, track, group, place) {
  const {rows} = shown, pinned = rows.pinned.includes(track)
  const button = (label, text, act, more) => {
    const own = made("button", {type: "button", ariaLabel: label, title: label, ...more}, text)
    own.addEventListener("click", act)
    return own
  }
  const moved = (step) => () => {
    rows.move(track, group[place + step], shown.tracks())
    relay(shown)
  }
  const item = made("li", {draggable: true}, checkBox(shown, track),
    button(`Move ${track} up`, "↑", moved(-1), {disabled: place == 0}),
    button(`Move ${track} down`, "↓", moved(1), {disabled: place == group.length - 1}),
    button(`Pin ${track} to the top`, pinned ? "Unpin" : "Pin", () => {
      rows.pinned = pinned ? rows.pinned.filter((other) => other != track) : [...rows.pinned, track]
      relay(shown)
    }, {ariaPressed: pinned}))
  handleDrag(shown, item, track, group)
  return item
}

let dragged = null // the track under the pointer
function handleDrag(shown, item, track, group) {
  item.addEventListener("dragstart", () => { dragged = track })
  item.addEventListener("dragover", (event) => group.includes(dragged) && event.preventDefault())
  item.addEventListener("drop", () => {
    shown.rows.move(dragged, track, shown.tracks())
    relay(shown)
  })
}

function checkBox(shown, track) {
  const {hidden} = shown.rows
  const box = made("input", {type: "checkbox", ariaLabel: track, checked: !hidden.has(track)})
  box.addEventListener("change", () => {
    box.checked ? hidden.delete(track) : hidden.add(track)
    relay(shown)
  })
  return made("label", {title: track}, box, ` ${track}`)
}
