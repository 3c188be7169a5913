"""What the whole house needs: errors, files, randomness, tables."""
