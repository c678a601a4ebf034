// Undoes neuronprof/view/lod.py: columns of integers back to typed arrays.

async function decompress(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

function unpack(raw) {
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
  if (width > 3)
    return wide(planes, count, width, zigzag, delta)
  const out = new Int32Array(count)
  for (let plane = 0; plane < width; plane++)
    for (let i = 0, at = plane * count; i < count; i++, at++)
      out[i] |= planes[at] << (8 * plane)
  if (zigzag)
    for (let i = 0; i < count; i++)
      out[i] = (out[i] >>> 1) ^ -(out[i] & 1)
  return delta ? summed(Float64Array.from(out)) : out
}

// Numbers that need more than the 32 bits that JavaScript's shifts have.
function wide(planes, count, width, zigzag, delta) {
  const out = new Float64Array(count)
  for (let plane = width - 1; plane >= 0; plane--)
    for (let i = 0, at = plane * count; i < count; i++, at++)
      out[i] = out[i] * 256 + planes[at]
  if (zigzag)
    for (let i = 0; i < count; i++)
      out[i] = out[i] % 2 ? -(out[i] + 1) / 2 : out[i] / 2
  return delta ? summed(out) : out
}

function summed(out) {
  for (let i = 1; i < out.length; i++)
    out[i] += out[i - 1]
  return out
}
