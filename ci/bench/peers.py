"""The formulas of softmax regression by hand in PyTorch and JAX, compiled: what xpreg is measured against.

They are written once, for these two and NumPy; `newton_step` also for stacks of problems that share A.
"""

from __future__ import annotations

import importlib

import numpy as np


class Formulas:
    """f = softmax(A x), c = f - b, s = <c, f>, q = f*(2f - b - s), A_c = A - 1 (A^T f)^T; H = A_c^T diag(q) A_c."""

    def __init__(self, xp):
        self.xp = xp

    def predict(self, A, x):
        z = A @ x
        u = self.xp.exp(z - z.max())
        return u / u.sum()

    def value_and_grad(self, A, b, x):
        f = self.predict(A, x)
        c = f - b
        return 0.5 * (c @ c), (f * (c - c @ f)) @ A

    def weights(self, f, b):
        return f * (2 * f - b - (f - b) @ f)

    def hvp(self, A, f, q, v):
        t = A @ v
        y = q * (t - f @ t)
        return (y - f * y.sum()) @ A

    def hess(self, A, f, q):
        X = A - f @ A
        return X.T @ (q[:, None] * X)

    def hess_at(self, A, b, x):
        """From x, and with a plain A: A^T diag(D) A and two more ranks, one copy of A less than the centred form."""
        f = self.predict(A, x)
        c, e = f - b, 2 * f - b
        s = c @ f
        p0, p1 = f @ A, (f * e) @ A
        H = A.T @ ((f * (c - s) + f * f)[:, None] * A)
        outer = self.xp.outer
        return H + (2 * s + f @ f) * outer(p0, p0) - outer(p0, p1) - outer(p1, p0)

    def newton_step(self, A, P, B, X):
        """One Gauss-Newton step for a stack X (k, d), B (k, n): P (n, d d) holds the products a a^T."""
        Z = X @ A.T
        U = self.xp.exp(Z - Z.max(-1)[0][:, None] if self.is_torch else Z - Z.max(-1)[:, None])
        F = U / U.sum(-1)[:, None]
        C = F - B
        G = (F * (C - (C * F).sum(-1)[:, None])) @ A
        W, M = F * F, F @ A
        W0, W1 = W.sum(-1)[:, None, None], W @ A
        H = (
            (W @ P).reshape(-1, A.shape[1], A.shape[1])
            - W1[:, :, None] * M[:, None, :]
            - M[:, :, None] * W1[:, None, :]
        )
        H = H + W0 * M[:, :, None] * M[:, None, :]
        return X - self.xp.linalg.solve(H, G[:, :, None])[:, :, 0]

    @property
    def is_torch(self):
        return self.xp.__name__ == "torch"


class Peer:
    """One library: arrays in, compiled formulas, and ``wait(result)`` for the device."""

    def __init__(self, name, xp, compile_function, array, wait, version):
        self.name, self.array, self.wait, self.version = name, array, wait, version
        formulas = Formulas(xp)
        self.predict, self.weights, self.solve = formulas.predict, formulas.weights, xp.linalg.solve
        for function in ("value_and_grad", "hvp", "hess", "hess_at", "newton_step"):
            setattr(self, function, compile_function(getattr(formulas, function)))


def torch_peer(device):
    torch = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    return Peer(
        "torch.compile",
        torch,
        torch.compile,
        lambda q: torch.from_numpy(np.ascontiguousarray(q)).to(device),
        lambda result: torch.cuda.synchronize() if device == "cuda" else None,
        torch.__version__,
    )


def jax_peer(device):
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    place = jax.devices("gpu" if device == "cuda" else "cpu")[0]
    return Peer(
        "jax.jit", jax.numpy, jax.jit, lambda q: jax.device_put(q, place), jax.block_until_ready, jax.__version__
    )


def installed(device):
    """Return the peers that are installed, and the names of those that are not."""
    found, missing = [], []
    for name, make in (("torch", torch_peer), ("jax", jax_peer)):
        try:
            found.append(make(device))
        except ImportError:
            missing.append(name)
    return found, missing
