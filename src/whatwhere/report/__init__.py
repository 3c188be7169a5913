"""Write the report of a comparison: one HTML page, and tables for the terminal."""

from .html import is_page, page, write_page
from .terminal import tables

__all__ = ["is_page", "page", "tables", "write_page"]
