"""What people read of a benchmark: a page, figures, tables."""

from benchmarks.lr_bench.report.page import write as write
from benchmarks.lr_bench.report.tables import print_tables as print_tables
