// Which rank and step stand where in the map of ranks (neuronprof/view/heatmap.py).

function cell(x, y, {ranks, steps, beside}) {
  const step = Math.round(x), row = Math.round(y)
  return {step: steps[step], rank: ranks[row * beside + Math.floor((x + 0.5 - step) * beside)]}
}

function tell({x, y}, about, value, part) {
  const {step, rank} = cell(x, y, about)
  if (part == "title")
    return rank === undefined ? "" : `Rank ${rank}`
  return part == "labels" ? "Step\nTime" : `${step}\n${time(value)}`
}

// The page around the map, if there is one, shows the rank.
function ask({x, y}, about) {
  const {rank} = cell(x, y, about)
  if (rank !== undefined)
    document.dispatchEvent(new CustomEvent("neuronprof.rank", {detail: rank}))
}
