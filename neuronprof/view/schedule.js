// Numbers of micro-batches where they have room, and what is under a click (neuronprof/view/scheduleplot.py).

function number(plot, sources, words) {
  const {start, end} = plot.x_range
  const pixel = (end - start) / (plot.inner_width || 1000)
  const out = {x: [], y: [], text: [], ink: [], colour: []}
  for (const {data} of sources)
    for (let i = 0; i < data.number.length; i++) {
      const left = Math.max(data.start_ts[i], start), right = Math.min(data.end_ts[i], end)
      if (data.number[i] && (right - left) / pixel > textWidth(data.number[i], 11) + 3) {
        out.x.push((left + right) / 2)
        out.y.push(data.stage[i])
        out.text.push(data.number[i])
        out.ink.push(data.ink[i])
        out.colour.push(data.colour[i])
      }
    }
  words.data = out
}

// The page around the picture, if there is one, shows the place.
function open_at({x, y}, sources) {
  for (const {data} of sources)
    for (let i = 0; i < data.stage.length; i++)
      if (data.start_ts[i] <= x && x < data.end_ts[i] && data.top[i] <= y && y <= data.bottom[i]) {
        const detail = {rank: data.rank[i], start: data.start_ts[i], end: data.end_ts[i]}
        return void document.dispatchEvent(new CustomEvent("neuronprof.place", {detail}))
      }
}
