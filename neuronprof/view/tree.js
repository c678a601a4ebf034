// Operators by module, to fold and sort: rows in the order of reading, of which `depth` says what is in what (neuronprof/analyze/tree.py).

const TREE = "tree"
const HEADINGS = {name: "Module or operator", phase: "Phase", bound: "Bound by", source: "Source", per_step_ns: "A step", share: "Share"}
const NUMBERS = {per_step_ns: time, share: percent}
const AT_FIRST = 3 // modules that are open: the longest ones, one in another
const MOST_TOLD = 100, ALL = "all" // open modules that the address lists
const MOST_LINES = 3000 // shown at once

class OperatorTree {
  constructor(place, rows, changed) {
    this.place = place
    this.rows = rows
    this.changed = changed
    this.open = new Set()
    this.by = "per_step_ns"
    this.down = true
    this.roots = []
    const above = []
    rows.forEach((row, number) => {
      Object.assign(row, {number, children: []})
      ;(row.depth ? above[row.depth - 1].children : this.roots).push(row)
      above[row.depth] = row
    })
    for (let row = this.roots[0], depth = 0; row?.children.length && depth < AT_FIRST; row = row.children[0], depth++)
      this.open.add(row)
    this.first = this.written()
    this.draw()
  }

  // How it is sorted and what is open, for the address; nothing while it is as at first.
  state() {
    const written = this.written()
    return written == this.first ? "" : written
  }

  written() {
    const open = this.open.size > MOST_TOLD ? [ALL] : [...this.open].map(({number}) => number).sort((a, b) => a - b)
    return [this.by, this.down ? "down" : "up", ...open].join("|")
  }

  restore(state) {
    const [by, way, ...open] = (state || this.first).split("|")
    const rows = open[0] == ALL ? this.rows : open.map((number) => this.rows[number])
    if (by in HEADINGS)
      Object.assign(this, {by, down: way == "down", open: new Set(rows.filter((row) => row?.children.length))})
    this.draw()
  }

  sorted(rows) {
    const {by, down} = this
    const order = by in NUMBERS ? (a, b) => a[by] - b[by] : (a, b) => a[by].localeCompare(b[by], undefined, {numeric: true})
    return [...rows].sort((a, b) => down ? order(b, a) : order(a, b))
  }

  *shown(rows = this.roots) {
    for (const row of this.sorted(rows)) {
      yield row
      if (this.open.has(row))
        yield* this.shown(row.children)
    }
  }

  draw(focused) {
    const lines = []
    for (const row of this.shown()) {
      if (lines.length == MOST_LINES)
        break
      lines.push(this.line(row))
    }
    const head = made("tr", {}, ...Object.entries(HEADINGS).map(([name, label]) => this.heading(name, label)))
    const table = made("table", {className: "tree"}, made("thead", {}, head), made("tbody", {}, ...lines))
    table.setAttribute("role", "treegrid")
    table.setAttribute("aria-label", "Operators by module")
    const cut = lines.length == MOST_LINES ? [made("p", {className: "sentence"}, `The first ${MOST_LINES} rows.`)] : []
    this.place.replaceChildren(this.buttons(), table, ...cut)
    this.place.querySelector(`[data-number="${focused}"]`)?.focus()
    this.changed()
  }

  buttons() {
    const button = (label, act) => {
      const own = made("button", {type: "button"}, label)
      own.addEventListener("click", act)
      return own
    }
    const all = (open) => () => {
      this.open = new Set(open ? this.rows.filter(({children}) => children.length) : [])
      this.draw()
    }
    const told = "What the time of a step was spent on, by module; what is in a module adds up to it. A click unfolds, a heading sorts."
    return made("div", {className: "tree-tools"}, made("span", {className: "sentence"}, told), button("Unfold all", all(true)),
                button("Fold all", all(false)), button("CSV", () => this.csv()))
  }

  heading(name, label) {
    const sign = name == this.by ? (this.down ? " ↓" : " ↑") : ""
    const button = made("button", {type: "button"}, label + sign)
    button.addEventListener("click", () => {
      this.down = name == this.by ? !this.down : name in NUMBERS
      this.by = name
      this.draw()
    })
    const cell = made("th", {scope: "col", className: name in NUMBERS ? "number" : ""}, button)
    cell.setAttribute("aria-sort", name == this.by ? (this.down ? "descending" : "ascending") : "none")
    return cell
  }

  line(row) {
    const open = this.open.has(row)
    const name = row.children.length ? this.folder(row, open) : made("span", {}, row.name)
    const first = made("td", {style: `padding-left:${6 + 18 * row.depth + (row.children.length ? 0 : 18)}px`}, name)
    const rest = Object.keys(HEADINGS).slice(1).map((key) =>
      made("td", {className: key in NUMBERS ? "number" : ""}, key in NUMBERS ? NUMBERS[key](row[key]) : row[key]))
    const line = made("tr", {}, first, ...rest)
    line.setAttribute("aria-level", row.depth + 1)
    if (row.children.length)
      line.setAttribute("aria-expanded", open)
    return line
  }

  folder(row, open) {
    const button = made("button", {type: "button"}, `${open ? "▾" : "▸"} ${row.name}`)
    button.dataset.number = row.number
    button.addEventListener("click", () => {
      open ? this.open.delete(row) : this.open.add(row)
      this.draw(row.number)
    })
    return button
  }

  // The operators, each with the module that it is in.
  csv() {
    const rows = this.rows.filter(({children}) => !children.length)
    const columns = ["name", "layer", "phase", "bound", "source", "per_step_ns", "share"]
    saveCsv("operators", columns, rows.map((row) => columns.map((name) => row[name])))
  }
}
