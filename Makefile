# Short names for the commands in README.md and CONTRIBUTING.md.
.PHONY: study quick test soak check bench

study:
	uv run python -m mktsim

quick:
	uv run python -m mktsim --quick

test:
	uv run pytest

soak:
	uv run pytest -m soak

check:
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy

bench:
	uv run python -m benchmarks
