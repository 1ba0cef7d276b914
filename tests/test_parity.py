"The journey of a published sheet (benchmarks/parity.py): what comes back, and in which order."
import torch

from parity import through_sheet


def test_tiles_come_back_in_order_and_blurred_a_little():
    flat = torch.randint(0, 256, (70, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    x = flat.expand(-1, -1, 64, 64).to(torch.uint8)
    y = through_sheet(x)
    assert y.shape == x.shape and y.dtype == torch.uint8
    inner = (slice(None), slice(None), slice(16, 48), slice(16, 48)) # far from the neighbours
    assert (y[inner].float() - x[inner].float()).abs().max() <= 6


def test_the_journey_costs_what_a_jpeg_costs():
    x = torch.randint(0, 256, (64, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    lost = (through_sheet(x).float() - x.float()).abs().mean()
    assert 10 < lost < 80 # noise is what a JPEG keeps least of
