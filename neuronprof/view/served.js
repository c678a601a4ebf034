// The server that keeps the trace, asked by a page. It is asked no more once the trace is gone or the server itself.

const GONE = 410, LATER = 202
const STOPPED = "The server does not answer: it was stopped. Start it again with neuronprof view and reload this page."

class Served {
  constructor(url, tell) {
    this.url = url
    this.tell = tell // shows a sentence; an empty one takes it away; the second argument: it is the last one
    this.scenes = new Map()
    this.ended = ""
  }

  async shared(key) {
    if (!this.scenes.has(key))
      this.scenes.set(key, unpack(await this.ask("rank", {key})))
    return this.scenes.get(key)
  }

  async window(key, from, to, level) {
    const scene = this.scenes.get(key)
    const found = unpack(await this.ask("window", {key, from: Math.floor(from), to: Math.ceil(to), level}))
    for (const [name, about] of Object.entries(found.rates))
      Object.assign(about, {...scene.rates[name], ...about})
    return place({...scene, ...found, columns: {...scene.columns, ...found.columns}})
  }

  event(key, id) { return this.json("event", {key, id}) }
  neighbour(key, id, step) { return this.json("neighbour", {key, id, step}) }
  find(key, {text, rows}, after, step) {
    return this.json("find", {key, ...(rows ? {rows: rows.join()} : {text}), after: Math.round(after), step})
  }

  operator(key, name) { return this.json("operator", {key, name}) }
  owner(id) { return this.json("owner", {id}) }
  code(key, source) { return this.json("code", {key, source}) }
  why(key, id) { return this.json("why", {key, id}) }
  sheet(name) { return this.json("sheet", {name}) }

  busy(key, from, to) { return this.json("busy", {key, from: Math.floor(from), to: Math.ceil(to)}) }
  split(key, from, to) { return this.json("split", {key, from: Math.floor(from), to: Math.ceil(to)}) }
  notes(key) { return this.json("notes", {key}) }

  async keepNotes(key, notes) {
    await this.answer("notes", {key}, {method: "POST", body: JSON.stringify(notes)})
  }

  async json(what, query) {
    return JSON.parse(new TextDecoder().decode(await this.ask(what, query)))
  }

  // Asks until there is an answer: while something is being summed, the server says how far it is.
  async ask(what, query) {
    for (;;) {
      const answer = await this.answer(what, query)
      if (answer.status != LATER)
        return new Uint8Array(await answer.arrayBuffer())
      await new Promise((done) => setTimeout(done, 250))
    }
  }

  async answer(what, query, how = {}) {
    if (this.ended)
      throw new Error("refused")
    const answer = await fetch(`${this.url}${what}?${new URLSearchParams(query)}`, how).catch(() => null)
    if (answer?.status == 200)
      this.tell("")
    else if (!answer || answer.status == GONE)
      this.tell(this.ended = answer ? await answer.text() : STOPPED, true)
    else
      this.tell(await answer.clone().text())
    if (![200, LATER].includes(answer?.status))
      throw new Error("refused")
    return answer
  }
}
