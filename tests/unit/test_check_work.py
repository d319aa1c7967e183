"""Networks of the known sizes, their arithmetic, and a throughput that counts each sample once."""

from __future__ import annotations

import pytest
import torch

from seatrial.job.checks.networks import (
    Decoder,
    multiply_adds,
    parameters,
    resnet18,
    resnet50,
    train_flop,
    transformer,
)
from seatrial.job.checks.work import throughput, timed


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_samples_are_counted_once() -> None:
    """Two ranks that each do 10 steps of 8 samples, in 2 s and 4 s: 160 samples in 4 s, whatever the number of ranks."""
    found = []
    for step_s in (0.2, 0.4):
        clock = FakeClock()

        def step(clock: FakeClock = clock, step_s: float = step_s) -> None:
            clock.now += step_s

        found.append(timed(step, 10, 8, clock))
    samples, walls = zip(*found, strict=True)
    assert samples == (80, 80) and walls == pytest.approx((2, 4))
    assert throughput(samples, walls) == pytest.approx(40)
    assert throughput(samples[:1], walls[:1]) == pytest.approx(40)


def test_resnets_have_the_known_sizes() -> None:
    """As torchvision: 11.69 and 25.56 million parameters, 1.814 and 4.089 billion multiply-adds on 224 x 224."""
    for made, size, giga in ((resnet18, 11_689_512, 1.814), (resnet50, 25_557_032, 4.089)):
        with torch.device("meta"):
            net = made()
        assert parameters(net) == size
        assert multiply_adds(net, 224) / 1e9 == pytest.approx(giga, abs=5e-4)
        assert train_flop(net, 224) == pytest.approx(6e9 * giga, rel=1e-3)
        names = {name for name, _ in net.named_parameters()}
        assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias", "fc.bias"} <= names


def test_a_resnet_classifies_images() -> None:
    assert resnet18()(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


def test_the_transformer_sees_earlier_tokens_only() -> None:
    net = transformer(torch.device("cpu")).eval()
    tokens = torch.randint(256, (1, 64))
    other = tokens.clone()
    other[0, 40:] = (other[0, 40:] + 1) % 256
    with torch.no_grad():
        a, b = net(tokens), net(other)
    assert a.shape == (1, 64, 256)
    assert torch.allclose(a[0, :40], b[0, :40], atol=1e-5) and not torch.allclose(
        a[0, 40:], b[0, 40:], atol=1e-5
    )


def test_arithmetic_of_a_token() -> None:
    with torch.device("meta"):
        net = Decoder(dim=1024, layers=12, heads=16, vocabulary=32768, length=1024)
    learned = 12 * 12 * 1024**2 + 32768 * 1024  # Layers and output head, but for norms and biases.
    expected = (6 * learned + 6 * 12 * 1024 * 1024) * 1024
    assert train_flop(net, 0) == pytest.approx(expected, rel=2e-3)
