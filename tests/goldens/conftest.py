"""The maker scripts need torch, so pytest must not import them while it collects doctests."""

collect_ignore_glob = ["*.py"]
