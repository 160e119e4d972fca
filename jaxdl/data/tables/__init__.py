"""Tables: Parquet, Arrow, CSV, JSON lines; rows of features. Only they import pyarrow."""
