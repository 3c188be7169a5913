"""Images and labels."""
