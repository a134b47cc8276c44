"""The promises of the one module that names a backend."""

import numpy as np
import pytest

import xpreg
from xpreg import backend as B


def test_arrays_of_one_call_must_live_in_one_place(backend):
    other = pytest.importorskip("array_api_strict").asarray([1.0]) if backend.name == "numpy" else np.ones(1)
    with pytest.raises(xpreg.DeviceMismatchError, match=r"A is .*, but b is .*Move b there"):
        B.common_namespace(A=backend.array([1.0]), b=other)


def test_lists_and_integers_and_mixed_precision_are_refused(backend):
    with pytest.raises(ValueError, match=r"b is a builtins.list, but an array is needed"):
        B.common_namespace(A=backend.array([1.0]), b=[1.0])
    with pytest.raises(ValueError, match=r"A has dtype .*int64, but float32 or float64"):
        B.common_namespace(A=backend.array([1], dtype="int64"))
    with pytest.raises(ValueError, match=r"b has dtype .*float32, but A has .*float64"):
        B.common_namespace(A=backend.array([1.0]), b=backend.array([1.0], dtype="float32"))


def test_masked_arrays_and_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"A is a numpy\.ma"):
        B.common_namespace(A=np.ma.ones(2))
    for dtype in ("float16", "longdouble", "complex128"):
        with pytest.raises(ValueError, match="float32 or float64 is needed"):
            B.common_namespace(A=np.ones(2, dtype=dtype))
    with pytest.raises(ValueError, match=r"list, but an array is needed"):
        B.to_device([1.0], "cpu")


def test_a_missing_gpu_is_an_error():
    if B.cuda_is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(xpreg.DeviceNotAvailableError, match="cuda"):
        B.to_device(np.ones(1), "cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda1"])
def test_device_names(name):
    with pytest.raises(ValueError, match="'cpu', 'cuda' or 'cuda:N'"):
        B.to_device(np.ones(1), name)


def test_new_arrays_stand_beside_their_model(backend):
    like = backend.array([1.0, 2.0], dtype="float32")
    for x in (B.new([1.0], like), B.zeros((2,), like), B.full((2,), 3.0, like), B.eye(2, like), B.arange(3, like)):
        backend.assert_native(x)
    x = B.new(np.arange(200.0).reshape(2, 100), like)
    assert x.dtype == like.dtype
    np.testing.assert_array_equal(backend.numpy(x), np.arange(200.0).reshape(2, 100))


def test_cholesky_says_which_matrix_of_a_stack_is_not_positive_definite(backend, rng):
    G = rng.standard_normal((7, 4, 9))
    H = G @ G.swapaxes(1, 2)
    bad = [1, 4]
    H[bad] -= 5 * np.eye(4) * np.linalg.eigvalsh(H[bad])[:, -1, None, None]
    H[4] += np.diag([1e3, 0, 0, 0])  # a positive diagonal entry does not help
    H[6] = np.array(np.diag([1.0, 2, 3, 4])) + 2 * (np.ones((4, 4)) - np.eye(4))  # positive diagonal, indefinite
    L, ok = B.cholesky(backend.array(H))
    np.testing.assert_array_equal(backend.numpy(ok), [True, False, True, True, False, True, False])
    np.testing.assert_allclose(backend.numpy(L)[0], np.linalg.cholesky(H[0]), rtol=1e-12)


def test_solve_posdef(backend, rng):
    G = rng.standard_normal((3, 4, 9))
    H, g = G @ G.swapaxes(1, 2), rng.standard_normal((3, 4))
    want = np.linalg.solve(H, g[..., None])[..., 0]
    for sel in (slice(None), slice(0, 1), 0):
        L, _ = B.cholesky(backend.array(H[sel]))
        p = B.solve_posdef(backend.array(H[sel]), L, backend.array(g[sel]))
        np.testing.assert_allclose(backend.numpy(p), want[sel], rtol=1e-10)


def test_one_seed_gives_one_sample_everywhere(backend):
    x = B.random_normal((3, 40), 7, backend.array([1.0]))
    np.testing.assert_array_equal(backend.numpy(x), np.random.default_rng(7).standard_normal((3, 40)))


def test_read_brings_several_scalars_at_once(backend):
    f, ok = B.read(backend.array([1.5, 2.5]), backend.array([1.0, 0.0]) > 0)
    np.testing.assert_array_equal(f, [1.5, 2.5])
    np.testing.assert_array_equal(ok, [1, 0])


@pytest.mark.parametrize("k", [1, 3, 300])
def test_solve_if_posdef_solves_what_is_positive_definite_and_names_the_rest(backend, rng, k):
    G, g = rng.standard_normal((k, 6, 9)), rng.standard_normal((k, 6))
    H = G @ G.swapaxes(1, 2)
    bad = rng.random(k) < 0.3
    bad[0] = k > 1
    H[bad] -= 3 * np.eye(6) * np.linalg.eigvalsh(H)[bad, 2, None, None]
    p, ok = B.solve_if_posdef(backend.array(H - 0.1 * np.eye(6)), backend.array(g), backend.array(0 * g + 0.1))
    np.testing.assert_array_equal(backend.numpy(ok), ~bad)
    want = np.linalg.solve(H, g[..., None])[..., 0]
    np.testing.assert_allclose(backend.numpy(p)[~bad], want[~bad], rtol=1e-8)


@pytest.mark.parametrize(("k", "d"), [(8, 1), (65, 128), (4, 2), (1, 3)])
def test_solve_if_posdef_leaves_its_arguments_alone(backend, rng, k, d):
    G, g = rng.standard_normal((k, d, d)), rng.standard_normal((k, d))
    H = G @ G.swapaxes(1, 2) - 0.5 * np.eye(d)
    matrix, right = backend.array(H), backend.array(g)
    B.solve_if_posdef(matrix, right, backend.array(0 * g + 0.1))
    np.testing.assert_array_equal(backend.numpy(matrix), H)
    np.testing.assert_array_equal(backend.numpy(right), g)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("cached", [False, True])
def test_a_few_columns_times_rows(backend, rng, k, cached):
    V, X = rng.standard_normal((k, 3001)), rng.standard_normal((3001, 20))
    product = B.times_rows(backend.array(V), backend.array(X), cached=cached)
    np.testing.assert_allclose(backend.numpy(product), V @ X, rtol=0, atol=1e-12 * 3001)
    one = B.dot(backend.array(V[0]), backend.array(X))
    np.testing.assert_allclose(backend.numpy(one), V[0] @ X, rtol=0, atol=1e-12 * 3001)


def test_vectors_become_the_rows_of_a_matrix(backend, rng):
    V = rng.standard_normal((3, 7))
    np.testing.assert_array_equal(backend.numpy(B.stack_rows(*map(backend.array, V))), V)


def test_the_exponential_of_what_is_not_needed_any_more(backend, rng):
    x = rng.standard_normal((2, 7))
    np.testing.assert_allclose(backend.numpy(B.exp_in_place(backend.array(x))), np.exp(x), rtol=1e-14)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("d", [1, 5])
def test_the_inverse_of_a_transposed_factor(backend, rng, k, d):
    L = np.tril(rng.standard_normal((k, d, d))) + 3.0 * np.eye(d)
    found = backend.numpy(B.inverse_transposed(backend.array(L)))
    np.testing.assert_allclose(found, np.linalg.inv(L).swapaxes(1, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (1, 1), (1, 2), (2, 1)])
def test_reductions_along_the_rows_whatever_stands_in_front(backend, rng, lead):
    x, y = rng.standard_normal((2, *lead, 50))
    x_, y_ = backend.array(x), backend.array(y)
    for found, expected in (
        (B.row_sum(x_), x.sum(-1)),
        (B.row_sum(x_, keepdims=True), x.sum(-1, keepdims=True)),
        (B.row_max(x_), x.max(-1)),
        (B.row_norm(x_), np.linalg.norm(x, axis=-1)),
        (B.row_dot(x_, y_), (x * y).sum(-1)),
    ):
        found = backend.numpy(found)
        assert found.shape == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(backend.numpy(B.row_argmax(x_)), x.argmax(-1)[..., None])
    np.testing.assert_array_equal(backend.numpy(B.row_all(x_ < float(x.max()))), (x < x.max()).all(-1))
    assert backend.numpy(B.row_all(x_ <= float(x.max()))).all()


@pytest.mark.parametrize(("of_x", "of_y"), [((1, 2), (1, 1)), ((1, 2), (3, 1)), ((3,), (1,)), ((1,), (3,)), ((), (1,))])
def test_scalar_products_broadcast(backend, rng, of_x, of_y):
    x, y = rng.standard_normal((*of_x, 50)), rng.standard_normal((*of_y, 50))
    found = backend.numpy(B.row_dot(backend.array(x), backend.array(y)))
    expected = (x * y).sum(-1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000])
@pytest.mark.parametrize("rows", [1, 5, 64, 2000])
def test_stripes_and_their_blocks_are_all_rows_in_order_and_of_nearly_one_size(backend, n, rows):
    A = backend.array(np.zeros((n, 2)))
    stripes = B.stripes(A, rows)
    blocks = [block for part in stripes for block in B.blocks(part, rows)]
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(n))
    assert all(block.stop - block.start <= rows for block in blocks)
    for pieces in (stripes, B.blocks(slice(0, n), rows)):
        sizes = [piece.stop - piece.start for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
    if backend.name == "numpy" and n > max(16, rows):  # two threads get one half each
        assert len(stripes) % 2 == 0


@pytest.mark.parametrize("d", [1, 3, 20, 47, 50, 70, 100])
@pytest.mark.parametrize("signs", ["positive", "negative", "mixed", "zero"])
@pytest.mark.parametrize("centred", [False, True])
def test_a_weighted_gram_matrix_by_whichever_product_suits_the_width_and_the_signs(backend, rng, d, signs, centred):
    X, mean = rng.standard_normal((1201, d)), rng.standard_normal(d)
    D = rng.standard_normal(1201)
    D = {"positive": np.abs(D), "negative": -np.abs(D), "mixed": D, "zero": 0 * D}[signs]
    Y = X - mean if centred else X
    found = B.weighted_gram(backend.array(X), backend.array(D), backend.array(mean) if centred else None)
    np.testing.assert_allclose(backend.numpy(found), Y.T @ (Y * D[:, None]), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(backend.numpy(found), backend.numpy(found).T)
