"""value_and_grad, Hessian-vector product and Hessian of every library, as functions without arguments to be timed.

The libraries get what they are best at: compiled functions, arrays of their own, and at a kept x whatever can be worked
out beforehand. All results are compared before anything is timed.
"""

from __future__ import annotations

import functools
import importlib
import types

import numpy as np
import peers
from tasks import BY_HAND

import xpreg

AGREE = 1e-8
"""Largest relative difference of any result from NumPy's."""

EAGER = 20
"""PyTorch's Hessians by automatic differentiation take so many times less n d^2 in the time they get."""

OPERATIONS = ("value_and_grad", "hvp", "hess")


def ours(task, x, v):
    problem = xpreg.SoftmaxRegression(task.A, task.b)
    point = problem.at(x)
    return {
        "value_and_grad": {"xpreg": lambda: problem.value_and_grad(x)},
        "hvp": {"xpreg": lambda: point.hvp(v)},
        "hess": {"xpreg": lambda: problem.hess(x), "xpreg at(x)": point.hess},
    }


def numpy_by_hand(task, x, v):
    A, b = task.A, task.b
    f = BY_HAND.predict(A, x)
    q = BY_HAND.weights(f, b)
    return {
        "value_and_grad": {"NumPy by hand": lambda: BY_HAND.value_and_grad(A, b, x)},
        "hvp": {"NumPy by hand": lambda: BY_HAND.hvp(A, f, q, v)},
        "hess": {"NumPy by hand": lambda: BY_HAND.hess_at(A, b, x)},
    }


def jax_loss(x, A, b):
    """The loss as a user of JAX writes it."""
    jax = importlib.import_module("jax")
    return 0.5 * ((jax.nn.softmax(A @ x) - b) ** 2).sum()


@functools.cache
def jax_program():
    """The compiled functions, made once."""
    peer, jax = peers.jax_peer("cpu"), importlib.import_module("jax")
    gradient = jax.grad(jax_loss)
    return types.SimpleNamespace(
        peer=peer, jax=jax, gradient=gradient, hessian=jax.jit(jax.hessian(jax_loss)),
        value_and_grad=jax.jit(jax.value_and_grad(jax_loss)),
        hvp=jax.jit(lambda x, v, A, b: jax.jvp(lambda x: gradient(x, A, b), (x,), (v,))[1]),
        # a linear function is an argument, with what it has kept: as a constant A would become part of the program
        linear=jax.jit(lambda function, v: function(v)),
    )  # fmt: skip


def jax_functions(task, x, v):
    program = jax_program()
    peer, jax = program.peer, program.jax
    A, b, _ = task.convert("jax", peer.array)
    x, v = peer.array(x), peer.array(v)
    f = peer.predict(A, x)
    q = peer.weights(f, b)
    kept = jax.linearize(lambda x: program.gradient(x, A, b), x)[1]

    def wait(function, *arguments):
        return lambda: jax.block_until_ready(function(*arguments))

    return {
        "value_and_grad": {
            "jax.jit, autodiff": wait(program.value_and_grad, x, A, b),
            "jax.jit, by hand": wait(peer.value_and_grad, A, b, x),
        },
        "hvp": {
            "jax.jit(jvp(grad))": wait(program.hvp, x, v, A, b),
            "jax.linearize, kept": wait(program.linear, kept, v),
            "jax.jit, by hand, kept": wait(peer.hvp, A, f, q, v),
        },
        "hess": {"jax.jit, by hand": wait(peer.hess_at, A, b, x), "jax.hessian": wait(program.hessian, x, A, b)},
    }


def torch_loss(x, A, b):
    """The loss as a user of PyTorch writes it."""
    return 0.5 * ((A @ x).softmax(0) - b).square().sum()


def torch_functions(task, x, v):
    torch = importlib.import_module("torch")
    A, b, _ = task.convert("torch", torch.from_numpy)
    x, v = torch.from_numpy(x), torch.from_numpy(v)
    leaf = x.clone().requires_grad_()
    (kept,) = torch.autograd.grad(torch_loss(leaf, A, b), leaf, create_graph=True)

    def autograd():
        loss = torch_loss(leaf, A, b)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def functional():
        return torch.func.grad_and_value(torch_loss)(x, A, b)[::-1]

    def jvp_of_grad():
        return torch.func.jvp(lambda x: torch.func.grad(torch_loss)(x, A, b), (x,), (v,))[1]

    return {
        "value_and_grad": {"torch.autograd": autograd, "torch.func": functional},
        "hvp": {
            "torch.func, jvp(grad)": jvp_of_grad,
            "torch.autograd, kept": lambda: torch.autograd.grad(kept, leaf, v, retain_graph=True)[0],
        },
        "hess": {"torch.func.hessian": lambda: torch.func.hessian(torch_loss)(x, A, b)},
    }


LIBRARIES = {"NumPy": numpy_by_hand, "jax": jax_functions, "torch": torch_functions}


def functions(task, x, v, hessian_limit):
    """Return {operation: {label: function}} of what agrees with NumPy by hand, and lines on what is left out.

    Hessians by automatic differentiation are left out where n d^2 is above ``hessian_limit``, PyTorch's much earlier.
    """
    found, notes = ours(task, x, v), []
    for name, make in LIBRARIES.items():
        try:
            others = make(task, x, v)
        except ImportError:
            notes.append(f"{name}: not installed")
            continue
        for operation in OPERATIONS:
            found[operation].update(others[operation])
    for label, limit in {"jax.hessian": hessian_limit, "torch.func.hessian": hessian_limit / EAGER}.items():
        if task.n * task.d**2 > limit and found["hess"].pop(label, None):
            notes.append(f"{label}: left out for its time, n d^2 = {task.n * task.d**2:.1e} is above {limit:.1e}")
    expected = {operation: flat(found[operation]["NumPy by hand"]()) for operation in OPERATIONS}
    for operation in OPERATIONS:
        for label, function in list(found[operation].items()):
            difference = np.linalg.norm(flat(function()) - expected[operation])
            if not difference <= AGREE * np.linalg.norm(expected[operation]):
                del found[operation][label]
                notes.append(f"{operation}, {label}: WRONG by {difference:.1e}, not timed")
    return found, notes


def flat(result):
    """All numbers of a result, of any library, in one NumPy vector."""
    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])
