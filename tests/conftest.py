"""Shared by all tests. That this file is here puts tests/ on the path, so `import tiny_models` works everywhere below."""
