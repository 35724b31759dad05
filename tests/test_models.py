"""Laws of the models: published parameter counts, exact forward-mode derivatives, seeds without side effects."""

import pytest
import torch
from torch import nn

from spectral.experiments.datasets import digits, text
from spectral.experiments.models import cnn, gpt, mlp, model_for, resnet


def count(model):
    return sum(p.numel() for p in model.parameters())


# He et al. 2016a, Table 6, in millions (CIFAR-10, 3x32x32): 20, 32, 44, 56, 110; 2016b, Table 4 and text: 164, 1001
@pytest.mark.parametrize(
    ("depth", "millions", "digits"),
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1), (164, 1.7, 1)],
)
def test_parameter_counts_are_the_published_ones(depth, millions, digits):
    assert round(count(resnet(depth)) / 1e6, digits) == millions


def test_the_thousand_layer_network_has_its_published_size():
    with torch.device("meta"):  # shapes alone: no need to draw ten million numbers
        from spectral.experiments.models import ResNet

        model = ResNet("bottleneck", 111, 10, 3, 16)
    assert 10.2e6 <= count(model) <= 10.35e6


def weighted_layers(model):
    """Depth as the papers count it: convolutions and linear layers on the main path, without projections."""
    return sum(isinstance(m, (nn.Conv2d, nn.Linear)) for name, m in model.named_modules() if "project" not in name)


@pytest.mark.parametrize("depth", [8, 20, 29, 38, 56, 164])
def test_depth_counts_the_weighted_layers(depth):
    assert weighted_layers(resnet(depth, width=4)) == depth


@pytest.mark.parametrize(("depth", "nearest"), [(21, "20 and 26"), (1000, "998 and 1001"), (3, "8")])
def test_other_depths_are_refused_and_the_nearest_named(depth, nearest):
    with pytest.raises(ValueError, match=f"depth={depth} .* allowed depths are {nearest}\\."):
        resnet(depth)


def test_a_forced_block_must_fit_the_depth():
    with pytest.raises(ValueError, match=r"9n\+2 \(bottleneck\); the nearest allowed depths are 29 and 38"):
        resnet(32, block="bottleneck")
    assert weighted_layers(resnet(20, width=4, block="bottleneck")) == 20


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("build", [cnn, lambda **k: cnn(norm=True, **k), lambda **k: resnet(20, width=4, **k)])
def test_convolutional_models_take_both_digit_sizes(build, side):
    model = build(in_channels=1, classes=10).eval()
    assert model(torch.zeros(3, 1, side, side)).shape == (3, 10)


MODELS = {
    "mlp": lambda seed=0: mlp(36, (12, 7), 4, seed=seed),
    "cnn": lambda seed=0: cnn(1, 4, 4, norm=True, seed=seed),
    "basic": lambda seed=0: resnet(14, 4, 1, 4, seed=seed),
    "bottleneck": lambda seed=0: resnet(11, 4, 1, 4, seed=seed),
}


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_reverse_derivatives_agree(name):
    model = MODELS[name]().double().eval()
    generator = torch.Generator().manual_seed(3)
    x, t = (torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    u = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    jv = torch.func.jvp(model, (x,), (t,))[1]
    (jtu,) = torch.func.vjp(model, x)[1](u)
    assert abs(((jv * u).sum() - (jtu * t).sum()).item()) < 1e-12 * (jv.norm() * u.norm()).item()
    # a kink lies at distance zero with probability zero: the central difference converges
    h = 1e-6
    difference = (model(x + h * t) - model(x - h * t)) / (2 * h)
    torch.testing.assert_close(jv, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_and_the_global_generator_stays_put(name):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a, b, c = MODELS[name](1), MODELS[name](1), MODELS[name](2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    d = MODELS[name](1)
    for p, q, r in zip(a.parameters(), b.parameters(), d.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


def test_initial_weights_have_the_variance_of_he_et_al_or_the_one_asked_for():
    for scale, options in ((2, {}), (1 / 3, {"activation": "tanh", "scale": 1 / 3})):
        model = mlp(400, (500,), 300, seed=0, **options)
        assert isinstance(model[2], torch.nn.Tanh if options else torch.nn.ReLU)
        for layer in (model[1], model[3]):
            fan_in = layer.weight.shape[1]
            # 150 000 draws or more: relative standard error of the variance sqrt(2/150000) = .0037
            assert abs(float(layer.weight.detach().var()) * fan_in / scale - 1) < 0.02
            assert not layer.bias.any()


def test_errors_name_the_sizes():
    with pytest.raises(ValueError, match="in_features must be a whole number >= 1, got 0"):
        mlp(0)
    with pytest.raises(ValueError, match="width must be a whole number >= 1, got 0"):
        cnn(width=0)
    for wrong, said in (
        ({"activation": "gelu"}, "relu or tanh, got 'gelu'"),
        ({"scale": 0.0}, "a number > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=said):
            mlp(64, **wrong)
    with pytest.raises(ValueError, match="block must be one of auto, basic or bottleneck"):
        resnet(20, block="dense")


def test_models_fit_their_problem():
    image, flat = digits(train=20, test=0, image=True), digits(train=20, test=0)
    for kind, options in (("mlp", {"widths": (5,)}), ("cnn", {"width": 4}), ("resnet", {"depth": 8, "width": 4})):
        assert model_for(image, kind, options=options).eval()(image.x_train).shape == (20, 10)
    assert model_for(flat)(flat.x_train).shape == (20, 10)
    with pytest.raises(ValueError, match="use data of images, such as mnist, in Python with image=True"):
        model_for(flat, "cnn")
    with pytest.raises(ValueError, match="use one of mlp, cnn, resnet"):
        model_for(flat, "vit")


@pytest.mark.parametrize("widths", [(2**40,), (2**31, 2**31), (2**62,)])
def test_a_network_that_memory_does_not_hold_is_refused_before_it_is_built(widths):
    with pytest.raises(ValueError, match=r"the network's parameters take .* GiB, more than .* use smaller sizes"):
        mlp(64, widths)


@pytest.mark.parametrize("depth", [20, 29])
def test_activations_that_are_computed_again_change_nothing_but_memory(depth):
    """Three steps of Adam with batch norm: weights, running statistics and counters to the bit; a third of what is held."""
    p, held, ends = digits(train=30, test=10, image=True), [], []
    for checkpoint in (False, True):
        model = resnet(depth, 10, 1, 4, checkpoint=checkpoint, seed=1)
        optimiser, seen = torch.optim.Adam(model.parameters(), lr=1e-2), [0]

        def pack(value, seen=seen):
            seen[0] += value.nbytes
            return value

        for _ in range(3):
            optimiser.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                loss = nn.functional.cross_entropy(model.train()(p.x_train), p.y_train)
            held.append(seen[0])
            loss.backward()
            optimiser.step()
        ends.append(model.state_dict())
        with torch.no_grad():
            ends[-1]["logits"] = model.eval()(p.x_test)
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert held[3] < 0.4 * held[0]


# Language models -------------------------------------------------------------------------------------------------------
def test_the_small_gpt_has_its_size_and_looks_only_back():
    model = gpt(vocabulary=256, length=64, width=64, depth=2, heads=4, seed=3)
    block = 4 * 64 * 64 + 2 * (2 * 64) + (64 * 256 + 256) + (256 * 64 + 64)
    assert count(model) == 256 * 64 + 64 * 64 + 2 * block + 2 * 64 + 64 * 256
    ids = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 40:] = (other[:, 40:] + 1) % 256
    with torch.no_grad():
        a, b = model(ids), model(other)
    torch.testing.assert_close(a[:, :, :40], b[:, :, :40])
    assert (a[:, :, 40:] - b[:, :, 40:]).abs().max() > 1e-3
    assert abs(float(model.blocks[0].rise.weight.detach().std()) - 0.02) < 1e-3
    assert torch.equal(gpt(seed=3).head.weight, gpt(seed=3).head.weight)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: gpt(width=10, heads=4), "multiple of heads"),
        (lambda: gpt(depth=10**9), "depth must be a whole number from 1 to 1000"),
        (
            lambda: model_for(digits(train=10, test=0), "gpt"),
            "A gpt needs text in tokens=bytes with targets=next, but digits has",
        ),
        (
            lambda: model_for(text(train=2, test=0, targets="topic"), "gpt"),
            "but text has tokens=bytes with targets=topic",
        ),
    ],
)
def test_a_language_model_needs_its_own_text(given, said):
    with pytest.raises(ValueError, match=said):
        given()
