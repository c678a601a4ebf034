// Where scenes come from: the page itself, or the server that keeps the trace. Both answer the same questions; `key` names a rank.

class Embedded {
  constructor(packed) {
    this.packed = packed
    this.scenes = new Map()
  }

  async shared(key) {
    if (!this.scenes.has(key))
      this.scenes.set(key, place(unpack(await decompress(this.packed[key].data.packed))))
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

  // The next event after a time (before it: step -1) that has a text, or one of some rows of the alike table.
  async find(key, {text, rows}, after, step) {
    const scene = await this.shared(key)
    return this.first(scene, new Set(rows ?? matches(scene, text)), after, step)
  }

  // The first event of an operator, by its name, layer and phase with spaces between, and how many it has.
  async operator(key, name) {
    const scene = await this.shared(key)
    const {strings, columns} = scene
    const called = (row) => ["op_name", "layer", "phase"].map((column) => strings[column][columns[`alike_${column}`][row]])
    const rows = [...columns.alike_op.keys()].filter((row) => called(row).filter(Boolean).join(" ") == name)
    const computing = rows.filter((row) => COMPUTES.includes(word(scene, "engine", row)))
    const first = this.first(scene, new Set(computing.length ? computing : rows), scene.origin - 1, 1)
    return first && {...first, count: rows.reduce((sum, row) => sum + columns.alike_count[row], 0)}
  }

  first(scene, wanted, after, step) {
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

  // Why an event took as long as it did: what all that were computed alike have in common.
  async why(key, id) {
    const scene = await this.shared(key), at = this.index(scene)[id]
    const text = scene.reasons[scene.columns.reason[at] - 1]
    return text ? `It took ${time(scene.end[at] - scene.start[at])}${text}` : ""
  }

  // What needs the analyzers, and what outlives the page, needs the server.
  async busy() { return null }
  async split() { return null }
  async code() { return null }
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
