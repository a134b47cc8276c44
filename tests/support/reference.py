"""Independent float64 references, written from the definitions: complex-step and dense (n, n) algebra, slow and plain.

They share no code with xpreg. Derivatives come from the complex step: Im f(x + i h e)/h with h = 1e-30 is exact to
rounding for these analytic losses, and the Hessian is its first derivative of an analytic complex gradient.
"""

import numpy as np

ACTIVATIONS = {
    "softmax": (np.exp, np.exp),
    "resnet-softmax": (lambda z: np.exp(z) + z, lambda z: np.exp(z) + 1),
    "exp": (np.exp, np.exp),
    "cosh": (np.cosh, np.sinh),
    "sinh": (np.sinh, np.cosh),
}


def _kind(loss):
    for suffix in ("-rescaled", "-kl"):
        if loss.endswith(suffix):
            return loss.removesuffix(suffix), suffix[1:]
    return loss, "normalised" if "softmax" in loss else "plain"


def value(loss, A, b, x, w=0.0):
    """The loss at x (real or complex), from its definition."""
    name, kind = _kind(loss)
    z = A @ x
    u = ACTIVATIONS[name][0](z)
    regulariser = 0.5 * np.sum((w * z) ** 2)
    if kind == "rescaled":
        return 0.5 * np.sum((u - np.sum(u) * b) ** 2) + regulariser
    if kind == "plain":
        return 0.5 * np.sum((u - b) ** 2) + regulariser
    f = u / np.sum(u)
    if kind == "kl":
        positive = b > 0
        return np.sum(b[positive] * np.log(b[positive] / f[positive])) + regulariser
    return 0.5 * np.sum((f - b) ** 2) + regulariser


def grad(loss, A, b, x, w=0.0):
    """The gradient through the dense Jacobian of the residual (for complex x too)."""
    name, kind = _kind(loss)
    z = A @ x
    u, u1 = (g(z) for g in ACTIVATIONS[name])
    n = z.shape[0]
    regulariser = A.T @ (w**2 * z)
    if kind == "plain":
        return A.T @ (np.diag(u1) @ (u - b)) + regulariser
    if kind == "rescaled":
        J = (np.eye(n) - np.outer(b, np.ones(n))) @ np.diag(u1)
        return A.T @ (J.T @ (u - np.sum(u) * b)) + regulariser
    f = u / np.sum(u)
    J = (np.eye(n) - np.outer(f, np.ones(n))) @ np.diag(u1) / np.sum(u)
    if kind == "kl":
        return A.T @ (J.T @ (-b / f)) + regulariser
    return A.T @ (J.T @ (f - b)) + regulariser


def complex_step(function, x, h=1e-30):
    """The derivative of an analytic function along every coordinate, stacked on the last axis."""
    columns = []
    for j in range(x.shape[0]):
        step = np.zeros(x.shape[0], dtype=complex)
        step[j] = 1j * h
        columns.append(np.imag(function(x + step)) / h)
    return np.stack(columns, axis=-1)


def hess(loss, A, b, x, w=0.0):
    """The Hessian, as the complex-step derivative of the gradient."""
    return complex_step(lambda y: grad(loss, A, b, y, w), x)
