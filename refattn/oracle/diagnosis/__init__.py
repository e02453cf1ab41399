"""Why is a result wrong? The search for the mistake that explains it."""
