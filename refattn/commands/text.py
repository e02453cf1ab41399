"""Tables for terminals."""


def aligned(table, left=2):
    """Lines of a table: the first `left` columns to the left, the others to the right. Cells beyond those of the first row follow as they are."""
    columns = range(len(table[0]))
    widths = [max(len(row[i]) for row in table) for i in columns]
    return [
        "  ".join([*(row[i].ljust(widths[i]) if i < left else row[i].rjust(widths[i]) for i in columns), *row[len(widths) :]]).rstrip() for row in table
    ]
