"""A stand-in for the CSR matrix of cupyx.scipy.sparse over the arrays of `fakegpu`: only what cupyx has.

Products with several columns come back in Fortran order; only arrays of the device are taken, and only returned.
"""

import numpy as np
import scipy.sparse as sp

from support import fakegpu


def wrap(values):
    return fakegpu.xp.asarray(np.asarray(values))


def unwrap(x):
    if not isinstance(x, fakegpu.Array):
        raise TypeError(f"Unsupported type {type(x)}")  # what CuPy says to a NumPy array
    return x._a


class csc_matrix:
    format = "csc"

    def __init__(self, host):
        self._host = host

    def __matmul__(self, other):
        product = self._host @ unwrap(other)
        return wrap(np.asfortranarray(product) if product.ndim == 2 else product)

    def tocsr(self):
        return csr_matrix.of(self._host.tocsr())


class csr_matrix:
    format = "csr"

    def __init__(self, parts, shape):
        self.data, self.indices, self.indptr = parts
        self.shape, self.dtype = shape, self.data.dtype
        self._host = sp.csr_array(tuple(unwrap(part) for part in parts), shape=shape)

    @classmethod
    def of(cls, host):
        return cls((wrap(host.data), wrap(host.indices), wrap(host.indptr)), host.shape)

    @property
    def has_canonical_format(self):
        return self._host.has_canonical_format

    def copy(self):
        return csr_matrix.of(self._host.copy())

    def sum_duplicates(self):
        self._host.sum_duplicates()
        self.__init__((wrap(self._host.data), wrap(self._host.indices), wrap(self._host.indptr)), self.shape)

    @property
    def T(self):
        return csc_matrix(self._host.T)

    __matmul__ = csc_matrix.__matmul__

    def __getitem__(self, rows):
        return csr_matrix.of(self._host[rows if isinstance(rows, slice) else unwrap(rows)])

    def toarray(self):
        return wrap(self._host.toarray())


def sparseToDense(x):
    """As in cupyx.cusparse, which takes duplicates for what they are not, and gives Fortran order."""
    assert x.has_canonical_format
    assert x.data.shape[0]
    return wrap(np.asfortranarray(x._host.toarray()))


csr_matrix.__module__ = csc_matrix.__module__ = "cupyx.scipy.sparse._csr"
