"""From where images are to a list of paths and labels."""
