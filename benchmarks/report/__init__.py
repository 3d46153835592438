"""What people read of a benchmark: a page, figures, tables."""

from benchmarks.report.page import write as write
from benchmarks.report.tables import print_tables as print_tables
