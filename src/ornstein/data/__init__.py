"""What to train on: built-in digits and toys, arrays, tables, folders and zips of images, `hf:` data, and their scaling."""

from ornstein.data.columns import TableScaling, read_scaling
from ornstein.data.conditioning import Conditioning
from ornstein.data.dataset import Dataset, class_index, require_labels
from ornstein.data.load import NAMES, load_dataset
from ornstein.data.scaling import Scaling, to_uint8_images
from ornstein.data.toys import TOYS

__all__ = [
    "NAMES",
    "TOYS",
    "Conditioning",
    "Dataset",
    "Scaling",
    "TableScaling",
    "class_index",
    "load_dataset",
    "read_scaling",
    "require_labels",
    "to_uint8_images",
]
