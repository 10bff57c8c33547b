"""One decoder for pictures, DICOM and NIfTI: `find.read_images`, `ahead.decode_ahead`."""
