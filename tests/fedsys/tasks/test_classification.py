"""The rescaling layer, which also writes where it is told to."""

from __future__ import annotations

import pytest
import torch

from fedsys.tasks.classification import Rescale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [torch.uint8, torch.float32])
def test_a_result_that_is_written_elsewhere_is_the_same(
    given: torch.dtype, dtype: torch.dtype
) -> None:
    layer = Rescale(mean=33.3, std=78.6).to(dtype)
    x = torch.randint(0, 256, (7, 5), generator=torch.Generator().manual_seed(1)).to(given)
    before, out = x.clone(), torch.full((7, 5), torch.nan, dtype=dtype)
    layer(x, out=out)
    assert torch.equal(out, layer(x))
    torch.testing.assert_close(out, (x.to(dtype) - 33.3) / 78.6)
    assert torch.equal(x, before)
