// The pages around the timeline: each is put into its place when it is opened first. It comes with the page or from the server.

const opened = new Set()

async function openSheet(name) {
  const place = element(`sheet-${name}`)
  if (!place || opened.has(name))
    return
  opened.add(name)
  const address = document.body.dataset.server
  try {
    const item = address ? await fetchSheet(address, name, place) : JSON.parse(element(`item-${name}`).textContent)
    place.replaceChildren()
    await Bokeh.embed.embed_item(item, place)
    dress()
    setTimeout(nameThem, QUIET) // once figures have their canvases
    keepChoices()
    if (name == "operators") {
      const rows = address ? await new Served(address, tell).sheet(TREE) : JSON.parse(element(`item-${TREE}`).textContent)
      const tree = new OperatorTree(element("tree"), rows, rememberSoon)
      keep("tree", () => tree.state(), (state) => tree.restore(state))
    }
  } catch (error) {
    if (error.message != "refused")
      throw error
  }
}

// What maps are coloured by, by the name of the choice and in the address.
const CHOICES = {measure: "measure", "chips by": "chips"}

function keepChoices() {
  for (const [name, key] of Object.entries(CHOICES)) {
    const choice = Bokeh.documents.map((document) => document.get_model_by_name(name)).find(Boolean)
    if (!choice || kept.has(key))
      continue
    const first = choice.value
    keep(key, () => choice.value == first ? "" : choice.value, (value) => { choice.value = value || first })
    choice.properties.value.change.connect(rememberSoon)
  }
}

// What is being done for it stands in its place until it is there, and so does what went wrong.
async function fetchSheet(address, name, place) {
  const server = new Served(address, (text) => text && place.replaceChildren(made("p", {className: "sentence"}, text)))
  const [item] = await Promise.all([server.sheet(name), name == "heading" || loadTables()])
  return item
}

let tables = null
function loadTables() {
  const src = document.body.dataset.tables
  return tables ??= new Promise((onload, onerror) => document.head.append(made("script", {src, onload, onerror})))
}
