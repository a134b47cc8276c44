"""The command line: ``xpreg solve`` and ``xpreg info``."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__, io, plotting
from . import backend as B
from .errors import DeviceNotAvailableError, XpregError
from .progress import ProgressBar
from .regressions import LOSSES, TWO_LAYER_LOSSES
from .result import IterationRecord, Result
from .solvers import METHODS, minimize

SOLVED, NOT_SOLVED, BAD_INPUT, NO_DEVICE, INTERNAL, INTERRUPTED, NO_READER = 0, 1, 2, 3, 70, 130, 141

EXIT_CODES = """\
exit codes:
  0  solved to the tolerance, or to the last digit of the dtype
  1  ended otherwise (the result is written all the same, and says why)
  2  bad input: a file, an array or an option; nothing is written
  3  the device is not there; nothing is written
  70 an error in xpreg itself, with a traceback: please report it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.run(options))


def exit_code(run: Callable[[], int | None]) -> int:
    """Call ``run`` and return its exit code; errors of xpreg become one line on stderr and a code, see EXIT_CODES."""
    try:
        return run() or SOLVED
    except DeviceNotAvailableError as error:
        print(f"xpreg: {error}", file=sys.stderr)
        return NO_DEVICE
    except XpregError as error:
        print(f"xpreg: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("xpreg: interrupted; no result was written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `xpreg solve ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except Exception:
        traceback.print_exc()
        return INTERNAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xpreg", description="Fit softmax-type regressions with exact second-order information."
    )
    parser.add_argument("--version", action="version", version=f"xpreg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    solve = commands.add_parser(
        "solve",
        allow_abbrev=False,  # a flag that is cut off is a typo
        help="solve the problem, or the stack of problems, in a file",
        description="Solve the problem in DATA.npz: arrays A (n, d), b (n,) or (..., n), optionally weights and x0; "
        "A1 (n, d), A2 (m, n), b (m,) for softmax-relu; A_data, A_indices, A_indptr, A_shape for a CSR matrix A. "
        "With --rows, A may be larger than memory.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    solve.add_argument("data", metavar="DATA.npz", type=Path)
    solve.add_argument("--loss", required=True, choices=[*LOSSES, *TWO_LAYER_LOSSES], help="the loss to fit")
    solve.add_argument(
        "--rows", metavar="PATH", type=Path, help="read A from this .npy file, folder of .npy blocks, or .zarr array"
    )
    solve.add_argument("--method", default="auto", choices=METHODS, help="default: %(default)s")
    solve.add_argument("--device", help="cpu, cuda or cuda:N; default: cpu")
    solve.add_argument("--tol", type=float, default=1e-8, help="relative gradient tolerance; default: %(default)s")
    solve.add_argument("--maxiter", type=int, default=100, help="iteration limit; default: %(default)s")
    solve.add_argument("--out", metavar="RESULT.npz", type=Path, help="write the result there")
    solve.add_argument("--plot", metavar="PLOT.png", type=Path, help="write a convergence plot there")
    solve.add_argument("--certify", action="store_true", help="evaluate the theorems' conditions at the solution")
    solve.add_argument("--checkpoint", metavar="RUN.npz", type=Path, help="keep the run there after every iteration")
    solve.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    solve.add_argument("--quiet", action="store_true", help="no progress bar and no summary; only why it failed")
    solve.set_defaults(run=_solve)

    info = commands.add_parser("info", help="describe the machine and the installed libraries")
    info.set_defaults(run=_info)
    return parser


def _solve(options: argparse.Namespace) -> int:
    _check_outputs(options)
    if options.resume and not options.checkpoint:
        raise XpregError("--resume needs --checkpoint RUN.npz, the run to go on with.")
    problem, x0, unused = io.load_problem(options.data, options.loss, rows=options.rows, device=options.device)
    if unused:
        print(f"xpreg: not used from {options.data}: {', '.join(unused)}", file=sys.stderr)
    started = time.perf_counter()
    limits = {"method": options.method, "tol": options.tol, "maxiter": options.maxiter, "certify": options.certify}
    keep = {"checkpoint": options.checkpoint, "resume": options.resume}
    if sys.stderr.isatty() and not options.quiet:
        with ProgressBar(tol=options.tol, leave=False) as bar:
            result = minimize(problem, x0, callback=bar, **limits, **keep)
    else:
        result = minimize(problem, x0, **limits, **keep)
    seconds = time.perf_counter() - started
    if options.out:
        io.save_result(options.out, result, loss=options.loss, seconds=seconds, **limits)
    if options.plot:
        plotting.save_figure(plotting.plot_convergence(result, f"{options.data.name}: {problem!r}"), options.plot)
    if options.quiet and not result.success:
        print(f"xpreg: not solved: {result.message}", file=sys.stderr)
    if not options.quiet:
        print(summary(result, repr(problem), seconds))
        for path in filter(None, (options.out, options.plot)):
            print(f"written: {path}")
    return SOLVED if result.success else NOT_SOLVED


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out before the work whether its results can be written."""
    outputs = {f"--{name}": getattr(options, name) for name in ("out", "plot", "checkpoint") if getattr(options, name)}
    inputs = [path.resolve() for path in (options.data, options.rows) if path]
    names = dict.fromkeys(inputs, "the input")
    for name, path in outputs.items():
        io.check_writable(path)
        if other := names.get(path.resolve()):
            raise XpregError(f"{name} is {path}, which is {other}: give them different names.")
        if options.rows and options.rows.resolve() in path.resolve().parents:
            raise XpregError(f"{name} is {path}, inside {options.rows}, which holds the rows: write somewhere else.")
        names[path.resolve()] = f"{name} too"
    if options.plot:
        plotting.check_picture(options.plot)


def _info(options: argparse.Namespace) -> int:
    facts = B.info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return SOLVED


def summary(result: Result, problem: str, seconds: float) -> str:
    """Return a readable account of a result: the first, some middle and the last iterations, and how it ended."""
    lines = [problem, "", "  it     largest loss   largest |g|      step  left  direction"]
    records = result.history
    shown = [*records[:8], *records[-6:]] if len(records) > 15 else list(records)
    for i, record in enumerate(shown):
        if i and records.index(record) != records.index(shown[i - 1]) + 1:
            lines.append("  ...")
        lines.append(_row(record))
    worst = float(B.to_host(result.fun).max())
    lines += [
        "",
        f"{'solved' if result.success else 'NOT SOLVED'}: {result.message}",
        f"loss {worst:.6g}{' (the largest)' if result.history[0].active > 1 else ''}; {result.nit} iterations, "
        f"{result.nfev} losses, {result.ngev} gradients, {result.nhev} Hessians or products; {seconds:.3g} s",
    ]
    if result.certificate is not None:
        lines += ["", str(result.certificate)]
    return "\n".join(lines)


def _row(record: IterationRecord) -> str:
    return (
        f"{record.nit:4d}  {record.fun:15.8e}  {record.grad_norm:12.3e}  {record.step:8.2g}  {record.active:4d}  "
        f"{record.direction}"
    )


if __name__ == "__main__":
    sys.exit(main())
