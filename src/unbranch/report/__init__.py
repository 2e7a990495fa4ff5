"""What a person looks at: tables for a terminal, and pictures."""

from unbranch.report.tables import certificate_table, report_tables, timing_table

__all__ = ["certificate_table", "report_tables", "timing_table"]
