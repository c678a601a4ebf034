// A table as a file for other programs. A text that a spreadsheet would take for a formula gets an apostrophe before it.

function saveCsv(name, headings, rows) {
  const cell = (value) => {
    if (typeof value == "number")
      return Number.isNaN(value) ? "" : String(value)
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
  }
  const text = [headings, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n"
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}))
  link.download = `${name}.csv`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 1000)
}

// What a Bokeh table shows, in the order of its source.
function saveTable(name, {columns, source}) {
  const fields = columns.map(({field}) => Array.from(source.data[field]))
  saveCsv(name, columns.map(({title, tags: [unit]}) => unit ? `${title} (${unit})` : title), fields[0].map((_, row) => fields.map((field) => field[row])))
}
