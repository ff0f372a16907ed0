import math

import pytest
import torch

from must_core.errors import InvalidConfig
from must_core.masking import PatchMask, PatchMasker


@pytest.mark.parametrize(("ratio", "block"), [(0.06, 8), (0.3, 8), (0.3, 16), (0.1, 16), (1.0, 32), (0.0, 8)])
def test_hides_whole_blocks_the_same_number_in_every_image(ratio: float, block: int) -> None:
    masker = PatchMasker(image_size=64, patch_size=8, mask_patch_size=block, mask_ratio=ratio)
    mask_BN, hidden_BJ = masker.sample(50, torch.Generator().manual_seed(1))
    assert torch.equal(torch.zeros_like(mask_BN).scatter(1, hidden_BJ, value=True), mask_BN)
    assert bool((hidden_BJ.diff(dim=1) > 0).all())
    side = block // 8
    blocks = mask_BN.view(50, 64 // block, side, 64 // block, side).float().mean(dim=(2, 4))
    assert set(blocks.unique().tolist()) <= {0.0, 1.0}
    expected = math.ceil((64 // block) ** 2 * ratio)
    assert blocks.sum(dim=(1, 2)).tolist() == [expected] * 50


def test_is_drawn_from_the_generator_alone() -> None:
    masker = PatchMasker(image_size=64, patch_size=8, mask_patch_size=8, mask_ratio=0.3)
    first = masker.sample(4, torch.Generator().manual_seed(3)).mask_BN
    torch.rand(7)
    assert torch.equal(first, masker.sample(4, torch.Generator().manual_seed(3)).mask_BN)
    assert not torch.equal(first, masker.sample(4, torch.Generator().manual_seed(4)).mask_BN)


@pytest.mark.parametrize(("patch", "block"), [(8, 12), (8, 4), (16, 24)])
def test_refuses_blocks_that_do_not_fit(patch: int, block: int) -> None:
    with pytest.raises(InvalidConfig) as caught:
        PatchMasker(image_size=64, patch_size=patch, mask_patch_size=block, mask_ratio=0.3)
    assert caught.value.param == "mask_patch_size"


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same number"):
        PatchMask.of(torch.tensor([[True, False], [True, True]]))


def test_rows_are_those_images() -> None:
    whole = PatchMasker(image_size=64, patch_size=8, mask_patch_size=8, mask_ratio=0.3).sample(5, torch.Generator())
    part = whole.rows(slice(1, 3))
    assert torch.equal(part.mask_BN, whole.mask_BN[1:3])
    assert torch.equal(part.hidden_BJ, whole.hidden_BJ[1:3])


def test_where_patches_do_not_tile_the_image_masks_tile_what_they_cover() -> None:
    masker = PatchMasker(image_size=384, patch_size=14, mask_patch_size=42, mask_ratio=0.3)
    assert (masker.covered, masker.num_blocks) == (378, 81)
    assert masker.sample(2, torch.Generator()).mask_BN.shape == (2, 27 * 27)
    with pytest.raises(InvalidConfig, match="378"):
        PatchMasker(image_size=384, patch_size=14, mask_patch_size=28, mask_ratio=0.3)
