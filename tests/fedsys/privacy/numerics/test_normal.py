"""The normal distribution function against SciPy's."""

import numpy as np
from scipy.special import log_ndtr as reference
from scipy.special import ndtr

from fedsys.privacy.numerics.normal import log_ndtr, log_ndtr_of, ndtr_of


def test_far_and_near() -> None:
    x = np.concatenate([np.linspace(-12, 9, 211), [-1e4, -300.0, -38.0, 0.0, 40.0]])
    np.testing.assert_allclose(log_ndtr_of(x), reference(x), rtol=1e-13)
    np.testing.assert_allclose([log_ndtr(each) for each in x.tolist()], reference(x), rtol=1e-13)
    np.testing.assert_allclose(ndtr_of(x), ndtr(x), rtol=1e-13, atol=1e-300)
