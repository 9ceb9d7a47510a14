"""Floor 7: the rooms behind `frontd.testing`, which is the only door to them."""
