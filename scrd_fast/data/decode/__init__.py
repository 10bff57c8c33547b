"""One decoder for pictures, DICOM and NIfTI: `read.read_images`."""
