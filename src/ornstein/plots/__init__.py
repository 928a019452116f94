"""Figures: grids and folders of images, curves in a terminal. Imports nothing, so that `ornstein watch` starts fast."""
