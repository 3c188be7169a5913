"""Helpers that every folder may use: errors, words, files, randomness, modules, processes, tables, the screen."""
