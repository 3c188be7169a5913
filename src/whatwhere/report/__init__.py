"""Write the report of a comparison: one HTML page, and tables for the terminal."""

from .html import across_page, check_page, is_page, page, write_across_page, write_page
from .paper import across_paper_table, latex, markdown, paper_table
from .terminal import across_tables, tables

__all__ = [
    "across_page",
    "across_paper_table",
    "across_tables",
    "check_page",
    "is_page",
    "latex",
    "markdown",
    "page",
    "paper_table",
    "tables",
    "write_across_page",
    "write_page",
]
