"""What to train on: built-in digits and toys, numpy arrays, folders and zips of images, and their scaling."""

from ornstein.data.dataset import Dataset, class_index, require_labels
from ornstein.data.load import NAMES, load_dataset
from ornstein.data.scaling import Scaling, to_uint8_images
from ornstein.data.toys import TOYS

__all__ = ["NAMES", "TOYS", "Dataset", "Scaling", "class_index", "load_dataset", "require_labels", "to_uint8_images"]
