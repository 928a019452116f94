"""Figures: grids and folders of images."""

from ornstein.plots.grids import image_folder, image_grid

__all__ = ["image_folder", "image_grid"]
