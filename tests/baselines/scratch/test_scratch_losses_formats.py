"""The losses of logits in a coarse format are those of the same logits in float32."""

import pytest
import torch

from baselines.scratch.losses import Objective, cross_entropy, smoothed_cross_entropy, unlikelihood

LABELS, TEXTS = torch.tensor([4, 1, 4, 0, 2]), torch.tensor([0, 0, 0, 1, 1])
LOGITS = 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [
    cross_entropy, lambda logits, labels: smoothed_cross_entropy(logits, labels, 0.1),
    lambda logits, labels: unlikelihood(logits, labels, TEXTS),
    lambda logits, labels: Objective(0.1, 0.5)(logits, labels, TEXTS),
])  # fmt: skip
def test_losses_are_computed_in_float32(loss, coarse):
    logits = LOGITS.to(coarse)
    found = loss(logits, LABELS)
    assert found.dtype == torch.float32 and found.any()
    torch.testing.assert_close(found, loss(logits.double().float(), LABELS), rtol=0, atol=0)
    # What the coarse format alone has of it is another number.
    exact = loss(logits.double(), LABELS).double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
