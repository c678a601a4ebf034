// What BokehJS does at every paint of a figure and these have no use for.

const NEVER = ["decimated_glyph", "selection_glyph", "nonselection_glyph", "muted_glyph"] // looks that these never have

function calm(model) {
  if (model.calm?.el.isConnected)
    return
  const figure = model.calm = Bokeh.index.find_one(model)
  for (const view of [figure, ...figure?.renderer_views?.values() ?? []]) {
    // No style sheet says how a canvas is painted: the browser, if asked, works out all styles of the page for it.
    for (const visual of view?.visuals ?? [])
      visual._get_css_value = () => ""
    if (view?.glyph) {
      view.update_position = () => {} // of the element, in which nothing stands, that lies where the glyph is drawn
      for (const look of NEVER)
        Object.assign(view[look], {set_data() {}, set_visuals() {}, map_data() {}})
    } else if (view?.position)
      onlyChanges(view.position)
  }
}

// A style sheet that is not written again when it stays the same.
function onlyChanges(sheet) {
  const {_update} = sheet
  sheet._update = function (css) {
    if (this.el.textContent != css)
      _update.call(this, css)
  }
}
