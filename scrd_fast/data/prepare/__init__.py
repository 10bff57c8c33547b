"""From the official download of a published data set to a folder that this package reads."""

from scrd_fast.data.prepare.run import DATA_SETS, Prepared, prepare

__all__ = ["DATA_SETS", "Prepared", "prepare"]
