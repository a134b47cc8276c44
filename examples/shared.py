"""What all examples share on the command line. Each example is otherwise complete in its own file."""

import argparse
import pathlib
import sys

from xpreg import cli, io, plotting


def parser(doc, *, out, quick="small sizes, to see that it runs"):
    """Return a parser with --out (a picture, or a folder for several), --device and --quick."""
    text = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = "the picture (.png, .pdf or .svg)" if pathlib.Path(out).suffix else "folder for the pictures"
    text.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help=f"{kind}; default: %(default)s")
    text.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: %(default)s")
    if quick:
        text.add_argument("--quick", action="store_true", help=quick)
    return text


def parse(text, *files):
    """Parse the command line, and find out before the work whether what it writes can be written."""
    arguments = text.parse_args()
    if files:
        if arguments.out.exists() and not arguments.out.is_dir():
            text.error(f"--out is {arguments.out}, which is no folder")
        arguments.out.mkdir(parents=True, exist_ok=True)
    for path in [arguments.out / name for name in files] or [arguments.out]:
        plotting.check_picture(path)
        io.check_writable(path)
    return arguments


def start(main):
    """Run an example: errors of the input are one line and exit code 2, a missing device is 3."""
    sys.exit(cli.exit_code(main))
