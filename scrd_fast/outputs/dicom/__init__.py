"""Results of scoring as DICOM objects: parametric maps, segmentations, captures, reports."""
