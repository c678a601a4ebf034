// Which rows the timeline has, from top to bottom: those of every rank that is shown, without the hidden tracks, pinned ones first.

const ROW_HEIGHT = 22, LABEL_WIDTH = 160

class Rows {
  constructor() {
    this.hidden = new Set()
    this.pinned = []
    this.folded = new Set()
    this.filter = "" // a part of the labels of what is shown
  }

  shows(track) {
    return !this.hidden.has(track) && track.toLowerCase().includes(this.filter.toLowerCase())
  }

  // Tracks are told apart by their labels: the same ones of all ranks are hidden or pinned together.
  static tracks(scenes) {
    return [...new Set(scenes.flatMap(({shared}) => shared.rows.map((row) => trackOf(shared.rows, row))))]
  }

  // Gives each scene `places`: the row of each of its lanes; returns the labels of all rows.
  lay(scenes) {
    const labels = []
    for (const scene of scenes)
      scene.places = new Map()
    const put = (scene, key, label) => {
      scene?.places.set(key, labels.length)
      labels.push(label)
    }
    const several = scenes.length > 1
    for (const track of this.pinned)
      for (const scene of scenes)
        for (const row of scene.shared.rows)
          if (trackOf(scene.shared.rows, row) == track)
            put(scene, row.row.join(), row.label && (several ? `${row.label} · ${scene.title}` : row.label))
    for (const scene of scenes) {
      if (several)
        put(null, "", `${this.folded.has(scene.key) ? "▸" : "▾"} ${scene.title}`)
      for (const row of this.folded.has(scene.key) ? [] : scene.shared.rows) {
        const track = trackOf(scene.shared.rows, row)
        if (this.shows(track) && !this.pinned.includes(track))
          put(scene, row.row.join(), row.label)
      }
    }
    this.labels = labels
    return labels
  }

  // The scene whose heading stands in a row.
  heading(place, scenes) {
    return scenes.find(({title}) => this.labels[place]?.slice(2) == title && /^[▸▾]/.test(this.labels[place]))
  }

  show(figure) {
    const count = Math.max(1, this.labels.length)
    const centres = this.labels.map((_, place) => -(place + 0.5))
    const [axis] = figure.left
    const named = centres.filter((_, place) => this.labels[place])
    axis.ticker.setv({ticks: named})
    axis.major_label_overrides = new Map(named.map((at) => [at, plain(fitted(this.labels[-at - 0.5], 12, LABEL_WIDTH * scale()))]))
    figure.center.filter((grid) => grid.dimension == 1).forEach((grid) => grid.ticker?.setv({ticks: [...Array(count + 1).keys()].map((n) => -n)}))
    figure.y_range.setv({start: -count, end: 0})
    figure.height = (ROW_HEIGHT * count + 34) * scale()
  }
}

// A lane without a label belongs to the track of the row above it.
function trackOf(rows, row) {
  let at = rows.indexOf(row)
  while (at > 0 && !rows[at].label)
    at -= 1
  return rows[at].label
}

// Text that Bokeh does not take for a formula.
function plain(text) {
  return text.replaceAll("$", "＄").replaceAll("\\", "＼")
}
