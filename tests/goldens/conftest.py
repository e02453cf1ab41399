"""The maker scripts need torch, so pytest must not import them while it collects doctests."""

from pathlib import Path

FILES = [path.name for path in Path(__file__).parent.glob("*.py")]
collect_ignore = [name for name in FILES if not name.startswith("test_")]
