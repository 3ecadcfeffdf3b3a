"""Images in, deterministic batches out: sources, splits, preprocessing, augmentation and calibration sets."""
