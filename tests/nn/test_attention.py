"""Attention and positions against explicit loops, and cached steps against the whole sequence."""

import math

import pytest
import torch

from returnn_hydra.nn.attention import CrossAttention, SelfAttention
from returnn_hydra.nn.positions import relative_shift, rotate, sinusoids

D, HEADS = 8, 2
E = D // HEADS


def slow_attention(layer: SelfAttention, features: torch.Tensor, length: int, causal: bool) -> torch.Tensor:
    """One sequence, frame by frame and head by head, from the published equations."""
    query, key, value = layer.query_key_value(features).chunk(3, dim=-1)
    outputs = torch.zeros_like(features)
    for head in range(HEADS):
        part = slice(head * E, (head + 1) * E)
        for t in range(len(features)):
            keys = range(min(t + 1, length) if causal else length)
            scores = []
            for s in keys:
                q, k = query[t, part], key[s, part]
                if layer.positions == "rotary":
                    q, k = slow_rotation(q, t), slow_rotation(k, s)
                score = q @ k
                if layer.positions == "relative":
                    distance = layer.distance_key(sinusoids(torch.tensor(t - s), D))[part]
                    score = (q + layer.content_bias[head]) @ k + (q + layer.distance_bias[head]) @ distance
                scores.append(score / math.sqrt(E))
            weights = torch.stack(scores).softmax(0)
            outputs[t, part] = sum(w * value[s, part] for w, s in zip(weights, keys, strict=True))
    return layer.output(outputs)


def slow_rotation(vector: torch.Tensor, position: int) -> torch.Tensor:
    """Pairs (i, i + E/2) as complex numbers, turned by position / 10000^(2i/E)."""
    half = E // 2
    turned = [
        complex(float(vector[i]), float(vector[i + half])) * complex(math.cos(angle), math.sin(angle))
        for i in range(half)
        for angle in [position / 10000 ** (2 * i / E)]
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned])


def make_layer(positions: str) -> SelfAttention:
    torch.manual_seed(1)
    layer = SelfAttention(D, HEADS, positions).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", ["none", "relative", "rotary"])
@torch.no_grad()
def test_self_attention_equals_the_equations(positions, causal):
    layer = make_layer(positions)
    features = torch.randn(2, 5, D)
    lengths = [5, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    outputs = layer(features, mask, causal)
    for index, length in enumerate(lengths):
        expected = slow_attention(layer, features[index], length, causal)
        torch.testing.assert_close(outputs[index, :length], expected[:length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["none", "relative", "rotary"])
@torch.no_grad()
def test_steps_equal_the_causal_sequence(positions):
    layer = make_layer(positions)
    features = torch.randn(3, 6, D)
    expected = layer(features, torch.ones(3, 6, dtype=torch.bool), causal=True)
    cache = layer.empty_cache(3)
    for frame in range(6):
        output, cache = layer.step(features[:, frame], cache)
        assert cache.shape == (3, frame + 1, 2 * D)
        torch.testing.assert_close(output, expected[:, frame], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cross_attention_equals_the_equations():
    torch.manual_seed(2)
    layer = CrossAttention(D, 5, HEADS).eval()
    memory, lengths = torch.randn(2, 4, 5), [4, 2]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    features = torch.randn(2, 3, D)
    outputs = layer(features, layer.project(memory), mask)
    for index, length in enumerate(lengths):
        key, value = layer.key_value(memory[index, :length]).chunk(2, dim=-1)
        query = layer.query(features[index])
        heads = []
        for head in range(HEADS):
            part = slice(head * E, (head + 1) * E)
            heads.append((query[:, part] @ key[:, part].T / math.sqrt(E)).softmax(-1) @ value[:, part])
        torch.testing.assert_close(outputs[index], layer.output(torch.cat(heads, -1)), atol=1e-5, rtol=1e-5)


def test_sinusoids_have_the_published_values():
    table = sinusoids(torch.arange(3), 4)
    expected = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in range(3)]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_rotation_depends_on_the_distance_only():
    torch.manual_seed(3)
    first, second = torch.randn(1, E), torch.randn(1, E)
    products = [
        float((rotate(first, torch.tensor([p])) * rotate(second, torch.tensor([p + 3]))).sum()) for p in (0, 5, 40)
    ]
    assert products == pytest.approx([products[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_relative_shift(size):
    distances = torch.arange(size - 1, -size, -1.0).expand(2, size, -1)
    shifted = relative_shift(distances)
    expected = torch.arange(size)[:, None] - torch.arange(size)
    assert torch.equal(shifted, expected.float().expand(2, -1, -1))
