"""Tables for terminals."""


def aligned(table, left=2):
    """Lines of a table: the first `left` columns to the left, the others to the right. Cells beyond
    those of the first row follow as they are.
    """
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [row[i].ljust(width) if i < left else row[i].rjust(width) for i, width in enumerate(widths)]
        lines.append("  ".join([*cells, *row[len(widths) :]]).rstrip())
    return lines
