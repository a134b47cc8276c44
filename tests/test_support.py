"""The stand-ins for a GPU notice what they are there to notice."""

import numpy as np
import pytest
from support import cpu_exec, fakegpu

xp = fakegpu.xp


def test_fakegpu_refuses_the_ways_to_the_host_that_cupy_refuses():
    x = xp.asarray(np.arange(3.0))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Unsupported type"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="Unsupported type"):
        xp.sum(np.ones(3))
    with pytest.raises(AttributeError, match="not in the array API standard"):
        xp.einsum("i,i->", x, x)


def test_fakegpu_counts_launches_copies_and_synchronisations():
    with fakegpu.count() as n:
        x = xp.asarray(np.arange(4.0))
        y = xp.exp(x) * 2.0 + x
        total = xp.sum(y)
        view = xp.reshape(y, (2, 2))[0, :]
    assert (n.launches, n.h2d, n.d2h, n.syncs) == (4, 1, 0, 0)
    assert n.h2d_bytes == 32
    assert n.peak >= 3 * 32
    with fakegpu.count() as n:
        float(total)
        y[x > 1.0]
        view.get()
    assert (n.syncs, n.d2h) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("syncs", lambda x: float(xp.sum(x))),
        ("d2h", lambda x: x.get()),
        ("h2d", lambda x: xp.asarray([1.0])),
        ("launches", lambda x: x + 1.0),
    ],
)
def test_fakegpu_raises_where_something_forbidden_happens(kind, step):
    x = xp.asarray([1.0, 2.0])
    with pytest.raises(fakegpu.Forbidden, match=kind), fakegpu.count(forbid=(kind,)):
        step(x)


def test_fakegpu_cholesky_of_an_indefinite_matrix_is_quietly_wrong():
    L = xp.linalg.cholesky(xp.asarray([[1.0, 2.0], [2.0, 1.0]])).get()
    assert np.all(np.isfinite(L))
    assert not np.allclose(L @ L.T, [[1.0, 2.0], [2.0, 1.0]])


KERNELS = """
__global__ void diverge(int* out) {
    if (threadIdx.x % 2) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
__global__ void lanes(int* out) { if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1); }
__global__ void narrow(int* out, int n) { if (threadIdx.x < n) out[threadIdx.x] = n; }
__global__ void wide(int* out, long long n) { if (threadIdx.x < n) out[threadIdx.x] = n; }
"""


@pytest.fixture(scope="module")
def module():
    if cpu_exec.missing():
        pytest.skip(cpu_exec.missing())
    return cpu_exec.CpuRawModule(code=KERNELS, name_expressions=("diverge", "lanes", "narrow", "wide"))


@pytest.mark.parametrize(("name", "message"), [("diverge", "divergent __syncthreads"), ("lanes", "deadlock")])
def test_a_barrier_that_not_all_threads_reach_is_an_error(module, name, message):
    with pytest.raises(cpu_exec.KernelError, match=message):
        module.get_function(name)((1,), (32,), (np.zeros(32, np.int32),))


def test_a_python_int_is_64_bits_as_in_cupy(module):
    out = np.zeros(4, np.int32)
    with pytest.raises(cpu_exec.KernelError, match="argument 1: kernel wants 'i4', the caller passes 'i8'"):
        module.get_function("narrow")((1,), (4,), (out, 2))
    module.get_function("wide")((1,), (4,), (out, 2))
    assert out.tolist() == [2, 2, 0, 0]
    with pytest.raises(cpu_exec.KernelError, match="takes 2 arguments, got 1"):
        module.get_function("wide")((1,), (4,), (out,))
