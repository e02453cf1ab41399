"""Is a result as good as its arithmetic allows?"""
