"""Images and labels: find, check, split, read, augment."""
