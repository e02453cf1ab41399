"""Arguments that subcommands share."""


def add_result_arguments(parser):
    """A case and a result, or a pack and a directory of results."""
    parser.add_argument(
        "case", help="case (.npz, .safetensors or raw directory), or a pack made by 'refattn vectors make'"
    )
    parser.add_argument(
        "result",
        help="result with arrays output and lse, or one of the two (.npz, .safetensors, raw directory, "
        ".npy, .bin); "
        "for a pack a directory of such files, named like the cases",
    )
    parser.add_argument("--lse", metavar="FILE", help="lse as a file of its own (.npy, .bin)")
    parser.add_argument("--json", action="store_true", help="machine-readable report on standard output")
    parser.add_argument(
        "--dialect",
        metavar="NAME",
        default="refattn",
        help="library in whose axis order and conventions the result is written, such as "
        "flash_attn; the case stays as it is. 'refattn explain' lists the names",
    )
