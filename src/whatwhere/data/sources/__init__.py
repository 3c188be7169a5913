"""List the images and labels of a folder, a CSV file or a data set by name."""
