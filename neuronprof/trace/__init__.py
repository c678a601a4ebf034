"""The trace: one table of events in Parquet, written, read and described."""
