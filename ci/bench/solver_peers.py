"""Whole solves by other libraries, all to |g|_inf <= TOL |g(x0)|_inf, looked at wherever they compute a gradient.

A solver is a function of a task and a watch. What it prepares (arrays, compiled functions) is not timed: it returns the
function that is, once a short rehearsal has compiled everything. Losses are divided by |g(x0)|_inf, since tolerances
and first steps of these libraries are absolute.
"""

from __future__ import annotations

import functools
import importlib
import math
import time
import types

import numpy as np
import peers
from derivatives import jax_loss, torch_loss

import xpreg

TOL = 1e-8
MANY = 10**6
"""Iterations, where a library asks for a limit: here the clock is the limit."""

ARMIJO = 1e-4
BACKTRACKS = 40


class Stop(Exception):
    """The watch ends a run: the gradient is small enough, or the time is up."""


REHEARSAL, REHEARSAL_SECONDS = 4, 5.0
"""Gradients and seconds of a run that is not timed: by then everything is compiled."""


class Watch:
    """Sees every gradient of one run, stops it, and keeps its last point and number of iterations."""

    def __init__(self, task, limit, looks=math.inf):
        self.limit, self.looks = limit, looks
        self.unit = task.start_gradient
        self.start_value = task.start_value / self.unit
        self.x, self.iterations = task.x0, 0
        self.started = time.perf_counter()

    def is_over(self):
        return self.looks <= 0 or time.perf_counter() - self.started > self.limit

    def check_time(self):
        if self.is_over():
            raise Stop

    def see(self, x, value, largest):
        """``value`` and ``largest`` gradient entry at x, of the loss divided by |g(x0)|_inf.

        A trial point of a line search, out on a plateau above the start, is none to stop at.
        """
        self.looks -= 1
        if value <= self.start_value:
            self.x = x
            if largest <= TOL:
                raise Stop
        self.check_time()

    def count(self, *_, **__):
        """Count an iteration; SciPy calls it with its state."""
        self.iterations += 1


# -- ours ---------------------------------------------------------------------------------------


def ours(method):
    def prepare(task, watch):
        problem = xpreg.SoftmaxRegression(task.A, task.b)

        def note(record):
            watch.looks -= 1
            if watch.is_over():
                raise StopIteration

        def run():
            result = xpreg.minimize(problem, task.x0, method=method, tol=TOL, maxiter=MANY, callback=note)
            watch.x, watch.iterations = result.x, result.nit
            if result.status is xpreg.Status.STOPPED:
                raise Stop

        return run

    return prepare


# -- SciPy with our derivatives -----------------------------------------------------------------


class Derivatives:
    """Value, gradient, Hessian and products of one task, divided by |g(x0)|_inf; they share the z of the last x."""

    def __init__(self, task, watch):
        self.problem, self.watch = xpreg.SoftmaxRegression(task.A, task.b), watch
        self.x, self.point = None, None

    def at(self, x):
        self.watch.check_time()
        if self.x is None or not np.array_equal(x, self.x):
            self.x = x.copy()
            self.point = self.problem.at(self.x)
        return self.point

    def value(self, x):
        return float(self.at(x).value) / self.watch.unit

    def grad(self, x):
        g = self.at(x).grad / self.watch.unit
        self.watch.see(self.x, float(self.point.value) / self.watch.unit, np.abs(g).max())
        return g

    def hess(self, x):
        return self.at(x).hess() / self.watch.unit

    def hvp(self, x, v):
        return self.at(x).hvp(np.array(v)) / self.watch.unit

    def value_and_grad(self, x):
        """In one pass: what a method without Hessians wants."""
        value, g = self.problem.value_and_grad(x)
        value, g = float(value) / self.watch.unit, g / self.watch.unit
        self.watch.see(x.copy(), value, np.abs(g).max())
        return value, g


def scipy_solver(method):
    optimize = importlib.import_module("scipy.optimize")

    def prepare(task, watch):
        f = Derivatives(task, watch)
        wide = {"initial_trust_radius": task.d**0.5, "max_trust_radius": 1e12, "maxiter": MANY, "gtol": 0.0}
        own = {
            "L-BFGS-B": {"fun": f.value_and_grad, "jac": True,
                         "options": {"gtol": 0.0, "ftol": 0.0, "maxiter": MANY, "maxfun": MANY}},
            "Newton-CG": {"fun": f.value, "jac": f.grad, "hessp": f.hvp, "options": {"xtol": 0.0, "maxiter": MANY}},
            "trust-krylov": {"fun": f.value, "jac": f.grad, "hessp": f.hvp, "options": wide},
            "trust-exact": {"fun": f.value, "jac": f.grad, "hess": f.hess, "options": wide},
        }[method]  # fmt: skip

        def run():
            watch.x = optimize.minimize(x0=task.x0, method=method, callback=watch.count, **own).x

        return run

    return prepare


# -- JAX ----------------------------------------------------------------------------------------


@functools.cache
def jax_program():
    """The compiled functions, made once: the loss is divided by ``unit``."""
    peer = peers.jax_peer("cpu")
    jax = importlib.import_module("jax")
    linalg = importlib.import_module("jax.scipy.linalg")

    def loss(x, args):
        A, b, unit = args
        return jax_loss(x, A, b) / unit

    def by_hand(x, args):
        A, b, unit = args
        return peer.hess_at(A, b, x) / unit

    def newton(hessian):
        def evaluate(x, args):
            return *jax.value_and_grad(loss)(x, args), hessian(x, args)

        return jax.jit(evaluate)

    def direction(H, g, shift):
        factor = linalg.cho_factor(H + shift * jax.numpy.eye(H.shape[0]))
        return -linalg.cho_solve(factor, g)

    return types.SimpleNamespace(
        peer=peer, jax=jax, loss=loss, value=jax.jit(loss), direction=jax.jit(direction),
        evaluate={"jax.hessian": newton(jax.hessian(loss)), "JAX by hand": newton(by_hand)},
    )  # fmt: skip


def jax_arrays(task, watch):
    program = jax_program()
    A, b, x0 = task.convert("jax", program.peer.array)
    return program, x0, (A, b, program.jax.numpy.asarray(watch.unit))


def jax_newton(hessian):
    """Newton's method with Cholesky, a growing multiple of I where that fails, and backtracking."""

    def prepare(task, watch):
        program, x0, args = jax_arrays(task, watch)
        evaluate, value = program.evaluate[hessian], program.value

        def run():
            x = x0
            while True:
                f, g, H = evaluate(x, args)
                watch.see(x, float(f), float(abs(g).max()))
                p, shift = program.direction(H, g, 0.0), 1e-6 * float(abs(H).max())
                while not bool(program.jax.numpy.isfinite(p).all()):
                    p, shift = program.direction(H, g, shift), 10 * shift
                t, slope = 1.0, float(g @ p)
                for _ in range(BACKTRACKS):
                    if float(value(x + t * p, args)) <= float(f) + ARMIJO * t * slope:
                        break
                    t /= 2
                x = x + t * p
                watch.count()

        return run

    return prepare


@functools.cache
def jaxopt_program():
    jaxopt, program = importlib.import_module("jaxopt"), jax_program()
    solver = jaxopt.LBFGS(program.jax.value_and_grad(program.loss), value_and_grad=True, maxiter=MANY, tol=0.0)
    return program.jax.jit(solver.init_state), program.jax.jit(solver.update)


def jaxopt_lbfgs(task, watch):
    _, x0, args = jax_arrays(task, watch)
    start, update = jaxopt_program()

    def run():
        x, state = x0, start(x0, args)
        while True:
            x, state = update(x, state, args)
            watch.count()
            watch.see(x, float(state.value), float(abs(state.grad).max()))

    return run


@functools.cache
def optimistix_program(name):
    optimistix, equinox = importlib.import_module("optimistix"), importlib.import_module("equinox")
    program, tags = jax_program(), frozenset()
    solver = getattr(optimistix, name)(rtol=0.0, atol=0.0)

    def fn(x, args):
        return program.loss(x, args), None

    def start(x, args):
        return solver.init(fn, x, args, {}, program.jax.ShapeDtypeStruct((), x.dtype), None, tags)

    def step(x, state, args):
        return solver.step(fn, x, args, {}, state, tags)[:2]

    return equinox.filter_jit(start), equinox.filter_jit(step)


def optimistix_solver(name):
    def prepare(task, watch):
        _, x0, args = jax_arrays(task, watch)
        start, step = optimistix_program(name)

        def run():
            x, state = x0, start(x0, args)
            while True:
                x, state = step(x, state, args)  # one evaluation: a new point, or a shorter step from the old one
                watch.count()
                watch.see(x, float(state.f_info.f), float(abs(state.f_info.grad).max()))

        return run

    return prepare


# -- PyTorch ------------------------------------------------------------------------------------


TORCH_UNIT = 1e-8
"""torch.optim.LBFGS drops updates with <s, y> <= 1e-10: in units this much smaller it keeps them to the end."""


def torch_lbfgs(task, watch):
    torch = importlib.import_module("torch")
    A, b, x0 = task.convert("torch", torch.from_numpy)
    unit = TORCH_UNIT * watch.unit

    def run():
        x = x0.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=MANY, max_eval=MANY, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss = torch_loss(x, A, b) / unit
            loss.backward()
            watch.see(x.detach().clone(), TORCH_UNIT * float(loss.detach()), TORCH_UNIT * float(x.grad.abs().max()))
            return loss

        try:
            optimizer.step(closure)
        finally:
            watch.iterations = optimizer.state[x].get("n_iter", 0)

    return run


def solvers():
    """Return {label: prepare} of all that are installed, our methods first, and lines on what is not."""
    names = [name for name in xpreg.solvers.METHODS if name not in ("auto", "gradient-descent")]
    found = {f"xpreg {name}": ours(name) for name in ["auto", *names]}
    wanted = {
        **{f"SciPy {name}": ("scipy.optimize", scipy_solver, name)
           for name in ("trust-exact", "trust-krylov", "Newton-CG", "L-BFGS-B")},
        "Newton, JAX by hand": ("jax", jax_newton, "JAX by hand"),
        "Newton, jax.hessian": ("jax", jax_newton, "jax.hessian"),
        "torch.optim.LBFGS": ("torch", lambda _: torch_lbfgs, ""),
        "jaxopt.LBFGS": ("jaxopt", lambda _: jaxopt_lbfgs, ""),
        "optimistix.LBFGS": ("optimistix", optimistix_solver, "LBFGS"),
        "optimistix.BFGS": ("optimistix", optimistix_solver, "BFGS"),
    }  # fmt: skip
    missing = []
    for label, (module, make, name) in wanted.items():
        try:
            importlib.import_module(module)
            found[label] = make(name)
        except ImportError:
            missing.append(label)
    return found, [f"not installed: {', '.join(missing)}"] if missing else []
