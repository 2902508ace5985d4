"""The paper's tables: their rows as runs, and the reports."""
