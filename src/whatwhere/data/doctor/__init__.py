"""What is wrong with images before a training finds out."""
