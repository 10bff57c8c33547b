"""A DICOM node: series come in by C-STORE, the objects of their results go out by C-STORE."""
