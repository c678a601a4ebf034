// Numbers with units, the way neuronprof/units.py prints them.

const TIME = [[1e9, "s"], [1e6, "ms"], [1e3, "us"], [1, "ns"]]
const BINARY = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]]
const DECIMAL = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]]

function digits(number) {
  const size = Math.abs(number)
  const text = number.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text
}

function scaled(number, units) {
  const [scale, name] = units.find(([at]) => Math.abs(number) >= at) ?? units[units.length - 1]
  return `${digits(number / scale)} ${name}`
}

const time = (ns) => scaled(ns, TIME)
const size = (bytes) => scaled(bytes, BINARY)
const count = (number, unit) => `${scaled(number, DECIMAL)}${unit}`.trim()
const percent = (share) => `${(100 * share).toFixed(1)} %`

// A point in time with as many decimals as the distance between ticks needs, in the unit of the largest tick.
function instant(ns, step, largest) {
  const [scale, name] = TIME.find(([at]) => largest >= at) ?? TIME[3]
  const decimals = Math.max(0, Math.ceil(Math.log10(scale / step) - 1e-9))
  return `${(ns / scale).toFixed(Math.min(decimals, 9))} ${name}`
}

// How much larger everything is on a wide screen; the page says so, see dress.js.
const scale = () => globalThis.neuronprofScale ?? 1

// The width of a text in the figures' font, in pixels.
function textWidth(text, points) {
  const ruler = globalThis.neuronprofRuler ??= document.createElement("canvas").getContext("2d")
  ruler.font = `${points * scale()}px ${FONT}`
  return ruler.measureText(text).width
}

// As much of a text as fits into a width, with an ellipsis where it is cut; empty where not even three letters fit.
function fitted(text, points, width) {
  if (textWidth(text, points) <= width)
    return text
  let low = 0, high = text.length
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (textWidth(text.slice(0, middle) + "…", points) <= width)
      low = middle
    else
      high = middle - 1
  }
  return low < 3 ? "" : text.slice(0, low) + "…"
}
