"""The command line: scrd-fast VERB. Heavy imports happen inside the verb that needs them."""

# Importing a file of verbs adds them to the application, in this order.
from scrd_fast.cli import train, build, score, archive, calibrate, evaluate  # noqa: F401, I001
from scrd_fast.cli import report, prepare, serve, dicom  # noqa: F401
from scrd_fast.cli.app import app
from scrd_fast.cli.run import main

__all__ = ["app", "main"]
