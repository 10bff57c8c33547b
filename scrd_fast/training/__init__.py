"""Reference PyTorch training: noise drawing, the loop, teacher pre-training, evaluation."""
