"""Training scripts of published models, which `neuronprof validate` records like any other script."""
