"""What picture files say of their pixels where OpenCV does not tell."""
