// Which rows the timeline has, from top to bottom: those of every rank that is shown, without the hidden tracks, pinned ones first.
// Quantities over time are tracks too: hidden, pinned and moved in the same way, each a figure of its own below the rows or, pinned, above.

const ROW_HEIGHT = 22, LABEL_WIDTH = 160

class Rows {
  constructor() {
    this.hidden = new Set()
    this.pinned = []
    this.raised = [] // pinned by `raise`
    this.order = [] // of the tracks that are not pinned, once one was moved
    this.folded = new Set()
    this.filter = "" // a part of the labels of what is shown
  }

  shows(track) {
    return !this.hidden.has(track) && track.toLowerCase().includes(this.filter.toLowerCase())
  }

  // Tracks are told apart by their labels: the same ones of all ranks are hidden, pinned and moved together.
  static tracks(scenes) {
    return [...new Set(scenes.flatMap(({shared}) => shared.rows.map((row) => trackOf(shared.rows, row))))]
  }

  // Tracks in their order; one that was not there when others were moved stays behind the one before it.
  sorted(tracks) {
    let last = -1
    const place = new Map(tracks.map((track) => {
      const at = this.order.indexOf(track)
      return [track, last = at < 0 ? last : at]
    }))
    return [...tracks].sort((a, b) => place.get(a) - place.get(b))
  }

  // The pinned and the other ones of some tracks, both from top to bottom.
  parted(tracks) {
    return [this.pinned.filter((track) => tracks.includes(track)), this.sorted(tracks).filter((track) => !this.pinned.includes(track))]
  }

  // Puts the tracks of events to the top, where those of several traces stand one below the other, instead of those of the time before.
  raise(tracks) {
    this.pinned = [...tracks, ...this.pinned.filter((track) => !this.raised.includes(track) && !tracks.includes(track))]
    this.raised = tracks
  }

  // Puts a track where another one of its group is; groups: of all tracks.
  move(track, there, groups) {
    const all = this.pinned.includes(track) ? this.pinned : groups.flat().filter((other) => !this.pinned.includes(other))
    const from = all.indexOf(track), to = all.indexOf(there)
    const moved = all.toSpliced(from, 1).toSpliced(to, 0, track)
    all == this.pinned ? this.pinned = moved : this.order = moved
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
    const [pinned, others] = this.parted(Rows.tracks(scenes))
    const rowsOf = ({shared: {rows}}, track) => rows.filter((row) => trackOf(rows, row) == track)
    for (const track of pinned)
      for (const scene of scenes)
        for (const {row, label} of rowsOf(scene, track))
          put(scene, row.join(), label && (several ? `${label} · ${scene.title}` : label))
    for (const scene of scenes) {
      if (several)
        put(null, "", headingOf(scene, this.folded.has(scene.key)))
      for (const track of this.folded.has(scene.key) ? [] : others.filter((track) => this.shows(track)))
        for (const {row, label} of rowsOf(scene, track))
          put(scene, row.join(), label)
    }
    this.labels = labels
    return labels
  }

  // The scene whose heading stands in a row.
  heading(place, scenes) {
    return scenes.find((scene) => [true, false].some((folded) => headingOf(scene, folded) == this.labels[place]))
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

// The track of an event's row.
function trackAt({shared: {rows}}, place) {
  return trackOf(rows, rows.find(({row}) => row.join() == place.join()))
}

function headingOf({title, shift}, folded) {
  const moved = shift ? ` (drawn ${time(Math.abs(shift))} ${shift > 0 ? "later" : "earlier"})` : ""
  return `${folded ? "▸" : "▾"} ${title}${moved}`
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
