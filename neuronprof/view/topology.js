// What stands in a place of the topology (neuronprof/view/topologyplot.py).

function printed(value, kind) {
  return {time, bytes: size, share: percent}[kind](value)
}

function tell(value, {kinds, chips, ranks, domain, server}, measure, {index}, part) {
  if (part == "title")
    return `Chip ${index}`
  const first = index * ranks
  const what = index >= chips ? "not in the job" : isNaN(value) ? "not in the trace" : printed(value, kinds[measure])
  const facts = [[server, Math.floor(index / domain)], ["Ranks", ranks > 1 ? `${first} to ${first + ranks - 1}` : first], [measure, what]]
  return facts.map(([label, told]) => part == "labels" ? label : told).join("\n")
}

// The page around the picture, if there is one, shows the chip's first rank.
function ask({x, y}, {data}, {chips, ranks}) {
  for (let i = 0; i < chips; i++)
    if (Math.abs(data.x[i] - x) < 0.45 && Math.abs(data.y[i] - y) < 0.45)
      return void document.dispatchEvent(new CustomEvent("neuronprof.rank", {detail: i * ranks}))
}
