"""The command alfk: `alfk ask FOLDER` for a folder of images and people who label, `alfk query` for embeddings."""

import sys

from alfk.cli.ask import ask_parser, run_ask
from alfk.cli.guard import guard
from alfk.cli.options import Parser
from alfk.cli.query import query_parser, run_query

COMMANDS = {
    "ask": ("which images of a folder to label next", ask_parser, run_ask),
    "query": ("which rows of a table of embeddings to label next", query_parser, run_query),
}


def main() -> int:
    """Run the command; returns the exit status."""

    def body() -> int:
        parser = Parser(prog="alfk", description=__doc__)
        commands = parser.add_subparsers(required=True, metavar="COMMAND")
        for name, (text, add, run) in COMMANDS.items():
            command = commands.add_parser(name, help=text)
            add(command)
            command.set_defaults(run=run)
        options = parser.parse_args()
        return options.run(options)

    return guard("alfk", body)


if __name__ == "__main__":
    sys.exit(main())
