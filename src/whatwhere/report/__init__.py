"""The report of a comparison: one HTML page, and tables for the terminal."""

from .render import page, write_page
from .terminal import tables

__all__ = ["page", "tables", "write_page"]
