"""Softmax-ReLU problems and an independent reference for them, complex x allowed; what stationary means at a kink."""

import numpy as np
import scipy.optimize

from support.reference import complex_step
from xpreg.regressions import TWO_LAYER_LOSSES


def units(y, smoothing):
    if smoothing:
        return smoothing * np.log(1 + np.exp(y / smoothing))
    return y * (np.real(y) > 0)


def ref_value(loss, A1, A2, b, x, w=0.0, smoothing=0.0):
    y = A1 @ x
    u = np.exp(A2 @ units(y, smoothing))
    f = u / np.sum(u)
    regulariser = 0.5 * np.sum((w * y) ** 2)
    if loss == "softmax-relu-kl":
        return np.sum(b * np.log(b / f)) + regulariser
    return 0.5 * np.sum((f - b) ** 2) + regulariser


def ref_grad(loss, A1, A2, b, x, w=0.0, smoothing=0.0):
    """Through the dense Jacobian of softmax."""
    y = A1 @ x
    slope = 1 / (1 + np.exp(-y / smoothing)) if smoothing else 1.0 * (np.real(y) > 0)
    u = np.exp(A2 @ units(y, smoothing))
    f = u / np.sum(u)
    J = np.diag(f) - np.outer(f, f)
    residual = -b / f if loss == "softmax-relu-kl" else f - b
    return A1.T @ (slope * (A2.T @ (J @ residual)) + w**2 * y)


def ref_hess(*arguments, **keywords):
    loss, A1, A2, b, x, *rest = arguments
    return complex_step(lambda v: ref_grad(loss, A1, A2, b, v, *rest, **keywords), x)


def data(rng, n=12, d=4, m=15, k=None, scale=1.0):
    lead = () if k is None else (k,)
    A1 = 1.5 * rng.standard_normal((n, d)) / np.sqrt(d)
    A2 = scale * rng.standard_normal((m, n)) / np.sqrt(n)
    return A1, A2, rng.dirichlet(np.ones(m), lead or None), rng.standard_normal((*lead, d))


def build(backend, A1, A2, b, loss="softmax-relu", dtype="float64", **options):
    return TWO_LAYER_LOSSES[loss](*(backend.array(a, dtype) for a in (A1, A2, b)), **options)


def clarke_distance(A1, A2, b, x, w):
    """The largest entry of the least subgradient at x, kinks found by their distance, by SciPy's solver."""
    y = A1 @ x
    kink = np.abs(y) < 1e-11 * max(1.0, np.linalg.norm(x))
    u = np.exp(A2 @ np.where(kink | (y < 0), 0.0, y))
    f = u / u.sum()
    c = A2.T @ ((np.diag(f) - np.outer(f, f)) @ (f - b))
    g = A1.T @ ((y > 0) * ~kink * c + w**2 * y)
    if not kink.any():
        return np.abs(g).max()
    scale = np.abs(c).max()
    V = A1[kink].T * c[kink]
    lam = scipy.optimize.lsq_linear(V / scale, -g / scale, (0, 1), tol=1e-15, lsmr_tol=1e-15, method="bvls").x
    return np.abs(g + V @ lam).max()


def assert_no_lower_point_nearby(loss, A1, A2, b, result, x, w, rng):
    """Random points in the ball that meets no faces but those that x lies on."""
    y = np.abs(A1 @ x) / np.linalg.norm(A1, axis=1)
    radius = min(0.1, 0.5 * y[y > 1e-11].min(initial=1.0))
    for size in (0.1 * radius, 0.001 * radius):
        v = rng.standard_normal((50, x.shape[0]))
        v *= size / np.linalg.norm(v, axis=1, keepdims=True)
        assert min(ref_value(loss, A1, A2, b, x + step, w) for step in v) > result.fun - 1e-14
