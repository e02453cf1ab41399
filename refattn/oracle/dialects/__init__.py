"""What other attention libraries mean by the same words, and how their calls and results translate
into ours.
"""
