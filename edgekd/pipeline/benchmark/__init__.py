"""The verb `benchmark`: one model in every runtime and precision, measured, checked and explained in one table."""
