"""Where weights come from: kinds of modules, parameters without one, tied ones, and files read a layer at a time."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectral.networks.weights import Files, layers_of, matrices


def listed(source):
    return {layer.longname: layer.kind for layer in layers_of(source)}


def test_kinds_are_those_of_the_class_and_of_what_it_derives_from():
    class Mine(nn.Linear):
        pass

    modules = [nn.Linear(2, 2), Mine(2, 2), nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Embedding(2, 2), nn.LayerNorm(2),
               nn.ConvTranspose2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.ReLU()]  # fmt: skip
    kinds = ["dense", "dense", "conv1d", "conv2d", "embedding", "norm", "conv", "conv"]
    assert list(listed(nn.Sequential(*modules)).values()) == kinds


def test_numbers_are_those_of_named_modules_as_in_weightwatcher():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 2))
    assert [(layer.number, layer.longname, layer.parameter) for layer in layers_of(model)] == [
        (3, "1.0", "1.0.weight"), (5, "2", "2.weight"),
    ]  # fmt: skip


def test_modules_without_a_weight_give_each_of_their_own_matrices():
    names = set(listed(nn.ModuleDict({"rnn": nn.LSTM(3, 4), "attention": nn.MultiheadAttention(4, 2)})))
    assert names == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj"}


def test_a_weight_that_is_computed_is_one_layer_and_read_anew():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 3))
    (first, _) = layers_of(model)
    assert (first.longname, first.kind) == ("0", "dense")
    assert torch.equal(first.read(), model[0].weight)


def test_a_tied_weight_is_told_by_the_name_of_the_first():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embed"].weight
    assert [layer.reason for layer in layers_of(model)] == ["", "it is the weight of embed.weight, tied"]


def test_a_convolution_is_a_matrix_for_each_place_of_its_kernel_and_experts_one_for_each():
    W = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert torch.equal(matrices(W, "conv2d")[7], W[:, :, 1, 2])
    assert torch.equal(matrices(W.contiguous(memory_format=torch.channels_last), "conv2d")[7], W[:, :, 1, 2])
    assert torch.equal(matrices(W, "other")[4], W[1, 1])


def test_what_is_no_source_is_told_what_is():
    with pytest.raises(TypeError, match=r"type list; pass a torch module.*state_dict"):
        layers_of([])


# Files -----------------------------------------------------------------------------------------------------------------
def sharded(folder):
    one, two = {"layers.2.weight": torch.ones(3, 2), "layers.2.bias": torch.ones(3)}, {"layers.10.weight": torch.eye(2)}
    save_file(one, folder / "model-00001-of-00002.safetensors")
    save_file(two, folder / "model-00002-of-00002.safetensors")
    homes = dict.fromkeys(one, "model-00001-of-00002.safetensors") | dict.fromkeys(
        two, "model-00002-of-00002.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return one | two


def test_a_file_a_folder_and_an_index_give_the_same_tensors_in_natural_order(tmp_path):
    tensors = sharded(tmp_path)
    names = ["layers.2.bias", "layers.2.weight", "layers.10.weight"]
    for source in (tmp_path, str(tmp_path)):
        found = list(layers_of(source))
        assert [layer.parameter for layer in found] == names
        assert all(torch.equal(layer.read(), tensors[layer.parameter]) for layer in found)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert sorted(Files(tmp_path)) == sorted(names) and len(Files(tmp_path)) == 3
    assert list(Files(tmp_path / "model-00002-of-00002.safetensors")) == ["layers.10.weight"]


def test_names_that_call_nothing_a_weight_are_told(tmp_path):
    (layer,) = layers_of({"attn.mask": torch.ones(4, 4)})
    assert layer.reason == "its name does not say that it is a weight"


def test_damaged_and_missing_files_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no"):
        layers_of(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"holds no .safetensors file \(it holds nothing\)"):
        layers_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds pytorch_model.bin.*weights_only=True"):
        layers_of(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        layers_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no index"),
        ("{}", "is no index"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "no file beside it"),
        ('{"weight_map": {"a": 3}}', "no file beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "there is no"),
        ('{"weight_map": {"a": "held.safetensors"}}', "and it is not"),
    ],
)
def test_an_index_that_lies_is_refused(text, told, tmp_path):
    save_file({"b": torch.ones(2)}, tmp_path / "held.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        layers_of(tmp_path)
