"""A training step as captured: operators, tensors and buffers, with no hardware in it."""
