// Where scenes come from: the page itself, or the server that keeps the trace. Both answer the same questions; `key` names a rank.

class Embedded {
  constructor(packed) {
    this.packed = packed
    this.scenes = new Map()
  }

  async shared(key) {
    if (!this.scenes.has(key))
      this.scenes.set(key, place(await unpack(this.packed[key].data.packed)))
    return this.scenes.get(key)
  }

  async window(key) {
    return this.scenes.get(key)
  }

  // An event by its id, and what it released.
  async event(key, id) {
    const scene = await this.shared(key)
    const at = this.index(scene)[id]
    if (at === undefined || at < 0)
      return null
    const released = []
    for (let i = 0; i < scene.columns.id.length; i++)
      if (scene.columns.released[i] && scene.columns.id[i] - scene.columns.released[i] == id && scene.columns.id[i] >= 0)
        released.push(recordOf(scene, i))
    return {event: recordOf(scene, at), releases: released.slice(0, MOST_RELEASED), more: Math.max(0, released.length - MOST_RELEASED)}
  }

  async neighbour(key, id, step) {
    const scene = await this.shared(key)
    const at = this.index(scene)[id]
    const lane = laneOf(scene, at)
    const next = at + step
    return lane.from <= next && next < lane.to ? recordOf(scene, next) : null
  }

  // The next event after a time (before it: step -1) that has one of the rows of the alike table.
  async find(key, text, after, step) {
    const scene = await this.shared(key)
    const wanted = new Set(matches(scene, text))
    let best = -1
    for (const lane of scene.lanes)
      if (!BANDS.includes(lane.row[1]))
        for (let i = step > 0 ? search(scene.start, lane.from, lane.to, after + 1) : search(scene.start, lane.from, lane.to, after) - 1;
             lane.from <= i && i < lane.to; i += step)
          if (wanted.has(scene.columns.alike[i])) {
            if (best < 0 || step * (scene.start[i] - scene.start[best]) < 0)
              best = i
            break
          }
    return best < 0 ? null : recordOf(scene, best)
  }

  // The rank whose event has an id of the whole trace, where the page has it.
  async owner(id) {
    for (const key of Object.keys(this.packed)) {
      const scene = await this.shared(key)
      const place = this.index(scene)[id - scene.first_id]
      if (place !== undefined && place >= 0)
        return {key, id: id - scene.first_id}
    }
    return null
  }

  // What needs the analyzers, and what outlives the page, needs the server.
  async busy() { return null }
  async notes() { return [] }
  async keepNotes() {}

  index(scene) {
    if (!scene.where) {
      scene.where = new Int32Array(1 + scene.columns.id.reduce((most, id) => Math.max(most, id), -1)).fill(-1)
      scene.columns.id.forEach((id, i) => { if (id >= 0) scene.where[id] = i })
    }
    return scene.where
  }
}

class Served {
  constructor(url, tell) {
    this.url = url
    this.tell = tell // shows a sentence; an empty one takes it away
    this.scenes = new Map()
  }

  async shared(key) {
    if (!this.scenes.has(key))
      this.scenes.set(key, await unpack(await this.ask("rank", {key})))
    return this.scenes.get(key)
  }

  async window(key, from, to, level) {
    const scene = this.scenes.get(key)
    const found = await unpack(await this.ask("window", {key, from: Math.floor(from), to: Math.ceil(to), level}))
    for (const [name, about] of Object.entries(found.rates))
      Object.assign(about, {...scene.rates[name], ...about})
    return place({...scene, ...found, columns: {...scene.columns, ...found.columns}})
  }

  event(key, id) { return this.json("event", {key, id}) }
  neighbour(key, id, step) { return this.json("neighbour", {key, id, step}) }
  find(key, text, after, step) { return this.json("find", {key, text, after: Math.round(after), step}) }
  owner(id) { return this.json("owner", {id}) }

  busy(key, from, to) { return this.json("busy", {key, from: Math.floor(from), to: Math.ceil(to)}) }
  notes(key) { return this.json("notes", {key}) }

  async keepNotes(key, notes) {
    const answer = await fetch(`${this.url}notes?${new URLSearchParams({key})}`, {method: "POST", body: JSON.stringify(notes)})
    this.tell(answer.status == 200 ? "" : await answer.text())
  }

  async json(what, query) {
    return JSON.parse(new TextDecoder().decode(await this.ask(what, query)))
  }

  // Asks until there is an answer: while levels of detail are being summed, the server says how far it is.
  async ask(what, query) {
    for (;;) {
      let answer
      try {
        answer = await fetch(`${this.url}${what}?${new URLSearchParams(query)}`)
      } catch {
        this.tell("The server does not answer: it was stopped. Start it again with neuronprof view.")
        throw new Error("stopped")
      }
      if (answer.status == 200) {
        this.tell("")
        return new Uint8Array(await answer.arrayBuffer())
      }
      this.tell(await answer.text())
      if (answer.status != 202)
        throw new Error("refused")
      await new Promise((done) => setTimeout(done, 250))
    }
  }
}
