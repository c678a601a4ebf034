// Undoes neuronprof/view/lod.py: gzipped columns of integers back to typed arrays.

async function unpack(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))
  const raw = new Uint8Array(await new Response(stream).arrayBuffer())
  const length = new DataView(raw.buffer).getUint32(0, true)
  const header = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + length)))
  for (const [name, layout] of Object.entries(header.columns))
    header.columns[name] = column(raw, 4 + length, layout)
  return header
}

function column(raw, base, [offset, count, width, zigzag, delta]) {
  const planes = raw.subarray(base + offset, base + offset + count * width)
  if (width == 1 && !zigzag && !delta)
    return planes
  const out = width <= 3 && !delta ? new Int32Array(count) : new Float64Array(count)
  for (let plane = width - 1; plane >= 0; plane--)
    for (let i = 0, at = plane * count; i < count; i++, at++)
      out[i] = out[i] * 256 + planes[at]
  if (zigzag)
    for (let i = 0; i < count; i++)
      out[i] = out[i] % 2 ? -(out[i] + 1) / 2 : out[i] / 2
  if (delta)
    for (let i = 1; i < count; i++)
      out[i] += out[i - 1]
  return out
}
