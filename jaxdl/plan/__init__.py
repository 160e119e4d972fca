"""The GPU program compiled and judged on a machine without a GPU."""
