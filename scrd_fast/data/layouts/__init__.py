"""Which files of a data set are what: `read_data_set` recognises the layouts of docs/data_sets.md.

Nothing here decodes an image.
"""

from scrd_fast.data.layouts.items import SPLITS, DataSet, Item
from scrd_fast.data.layouts.patients import split_by_patient
from scrd_fast.data.layouts.read import read_data_set

__all__ = ["SPLITS", "DataSet", "Item", "read_data_set", "split_by_patient"]
