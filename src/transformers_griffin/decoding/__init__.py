"""How a draft speeds up `generate()`: trees, verification, caches, the loop and its hook."""
