"""Three independent counts of one forward pass agree, and what they leave out is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from madtp_cli import attention
from madtp_cli.costs.analytic import total
from madtp_cli.costs.counters import Count, fvcore_macs, torch_macs
from madtp_cli.models.blip.configs import small_config
from madtp_cli.models.blip.nlvr import BlipForNlvr
from madtp_cli.models.spec import PruningSpec

COUNTERS = [fvcore_macs, torch_macs]
WORDS = 9
TINY: dict[str, int] = {"image_size": 32, "vision_layers": 3, "vision_width": 32, "vision_heads": 2, "text_layers": 2}
DEFAULT: dict[str, int] = {"image_size": 96}
# Strengths that leave some of the tokens of a random model at every size.
DENSE: dict[str, Any] = {}
ADAPTIVE = {"method": "madtp", "strength": 0.49}
SCHEDULED = {"method": "madtp", "tokens": "scheduled", "strength": 0.4}
RANDOM = {"method": "random", "strength": 0.4}


def build(sizes: dict[str, int], pruning: dict[str, Any]) -> BlipForNlvr:
    torch.manual_seed(0)
    config = small_config(vocab_size=40, merge_from=1, **sizes)
    sites = BlipForNlvr.sites_of(config)
    layers = {site.name: tuple(range(site.layers)) for site in sites}
    module: dict[str, Any] = {"alignment_tokens": 8, "alignment_dim": 24} if pruning.get("method") == "madtp" else {}
    spec = PruningSpec(**pruning, **module, layers=layers)
    return BlipForNlvr(config, alignment=spec.alignment(sites), plan=spec.plan(), strength=spec.strength).eval()


def one_pair(sizes: dict[str, int]) -> tuple[Any, ...]:
    """A sentence of 9 tokens about two different images, so that their kept tokens differ in number."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, sizes["image_size"], sizes["image_size"], generator=generator)
    text = torch.randint(0, 40, (WORDS,), generator=generator)
    return images, text, [WORDS], [(0, 1)]


def analytic(model: BlipForNlvr, args: tuple[Any, ...]) -> dict[str, int]:
    with torch.no_grad():
        output = model(*args)
    return {name: int(macs) for name, macs in model.macs(output).items()}


@pytest.mark.parametrize("sizes", [TINY, DEFAULT], ids=["tiny", "default"])
@pytest.mark.parametrize(
    "pruning", [DENSE, ADAPTIVE, SCHEDULED, RANDOM], ids=["dense", "adaptive", "scheduled", "random"]
)
def test_all_counters_agree(sizes: dict[str, int], pruning: dict[str, Any]) -> None:
    """The analytic count from token numbers, fvcore's trace and torch's dispatcher agree to 0.5 %."""
    model, args = build(sizes, pruning), one_pair(sizes)
    expected = analytic(model, args)
    macs = sum(expected.values())
    dense = int(total(model.dense_macs([WORDS])))
    assert macs == dense if pruning is DENSE else macs < 0.9 * dense
    for count in (fvcore_macs(model, *args), torch_macs(model, *args)):
        assert count.macs == pytest.approx(macs, rel=0.005)
        for name, value in expected.items():
            if not name.endswith(".pruning"):
                assert count.modules[name] == value


@pytest.mark.parametrize("counter", COUNTERS)
def test_two_images_of_different_length_are_counted_without_padding(counter: Any) -> None:
    """A pair kept at two lengths costs the sum of its images, however attention would lay them out."""
    model, args = build(TINY, ADAPTIVE), one_pair(TINY)
    with torch.no_grad():
        layer = model(*args).traces["vision"][0]
    assert layer.leaving[0] != layer.leaving[1]
    name = "vision_model.encoder.layers.1.self_attn"
    assert counter(model, *args).modules[name] == analytic(model, args)[name]
    assert attention.backend_in_force() == "auto"


class Attend(nn.Module):
    """A linear map of 3 tokens and one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, heads: int, mask: Tensor) -> dict[str, int] | list[Tensor]:
        y = self.norm(self.map(x)).view(1, 3, heads, -1).transpose(1, 2)
        return [scaled_dot_product_attention(y, y, y, attn_mask=mask)]


@pytest.mark.parametrize("counter", COUNTERS)
def test_by_hand(counter: Any) -> None:
    """A linear map costs tokens * in * out, attention 2 * heads * queries * keys * width, a norm nothing."""
    count: Count = counter(Attend(), torch.randn(3, 4), 2, torch.ones(3, 3, dtype=torch.bool))
    assert count.macs == 3 * 4 * 8 + 2 * 2 * 3 * 3 * 4
    assert sum(count.operators.values()) == count.macs
    assert count.modules["map"] == 3 * 4 * 8
    assert any("layer_norm" in name for name in count.left_out)
    assert not count.unknown


@pytest.mark.parametrize("counter", COUNTERS)
def test_what_is_not_counted_is_listed(counter: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Arithmetic outside the convention and operators nobody knows come back as data, not as log lines."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.cholesky_ex(x @ x)[0].softmax(-1).reshape(-1)

    count: Count = counter(Odd(), torch.eye(4))
    assert count.macs == 4**3
    assert set(count.left_out) == {"softmax"}
    assert set(count.unknown) == {"linalg_cholesky_ex"}
    assert count.uncounted == ("linalg_cholesky_ex (unknown)", "softmax")
    assert not caplog.records


@pytest.mark.parametrize("pruning", [DENSE, ADAPTIVE, SCHEDULED, RANDOM])
@pytest.mark.parametrize("counter", COUNTERS)
def test_models_have_no_operator_that_nobody_knows(counter: Any, pruning: dict[str, Any]) -> None:
    """Every operator of our models is either counted or left out on purpose."""
    count: Count = counter(build(TINY, pruning), *one_pair(TINY))
    assert count.unknown == {}
    assert {"add", "gelu"} <= set(count.left_out)


@pytest.mark.parametrize("counter", COUNTERS)
def test_counting_leaves_the_model_as_it_was(counter: Any) -> None:
    """A model in training mode is counted in eval mode and goes on training, with the same result as before."""
    model, args = build(TINY, ADAPTIVE), one_pair(TINY)
    with torch.inference_mode():
        before = model(*args).logits
    model.train()
    count = counter(model, *args)
    assert model.training
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(*args).logits, before)
    assert counter(model, *args) == count
