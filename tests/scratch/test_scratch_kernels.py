"""The kernels: whichever runs gives what its plain twin gives."""

import ast
from array import array
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scratch_oracle import draw, few, seeds

from miniai.scratch import ieee, kernels, layer_kernels

MATMULS = {"python": kernels.matmul_python, "chosen": kernels.matmul}  # one and the same where Numba is not installed


@pytest.mark.parametrize("name", MATMULS)
@few
@given(*[st.integers(0, 5)] * 3, seeds)
def test_a_product_of_flat_buffers_equals_pytorchs(name: str, n: int, k: int, m: int, seed: int) -> None:
    a, b = draw((n, k), seed), draw((k, m), seed + 1)
    product = MATMULS[name](array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), n, k, m)
    assert product.typecode == "d"
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())


@pytest.mark.parametrize("name", MATMULS)
def test_a_large_product_shared_among_threads_is_the_same(name: str) -> None:
    a, b = draw((101, 100)), draw((100, 103), 1)
    product = MATMULS[name](array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), 101, 100, 103)
    assert kernels.LARGE < 101 * 100 * 103
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())


@pytest.mark.parametrize("name", MATMULS)
def test_whole_numbers_stay_whole(name: str) -> None:
    product = MATMULS[name](array("q", [1, 2, 3, 4]), array("q", [5, 6, 7, 8]), 2, 2, 2)
    assert product == array("q", [19, 22, 43, 50])
    assert MATMULS[name](array("q", [2]), array("d", [0.5]), 1, 1, 1) == array("d", [1.0])


@pytest.mark.parametrize("name", MATMULS)
def test_a_kernel_leaves_its_arguments_alone(name: str) -> None:
    a, b = array("d", [1, 2]), array("d", [3, 4])
    MATMULS[name](a, b, 1, 2, 1)
    assert (a, b) == (array("d", [1, 2]), array("d", [3, 4]))


def test_the_loops_that_are_compiled_are_right_as_they_stand() -> None:
    a, b = draw((3, 4)), draw((4, 2), 1)
    product = array("d", bytes(8 * 3 * 2))
    for start, stop in ((0, 1), (1, 3)):
        kernels.fill_rows(
            array("d", a.flatten().tolist()), array("d", b.flatten().tolist()), product, start, stop, 4, 2
        )
    torch.testing.assert_close(torch.tensor(list(product), dtype=torch.float64), (a @ b).flatten())


def buffer(x: torch.Tensor) -> array:
    return array("d", x.flatten().tolist())


def assert_close(found: array, wanted: torch.Tensor, tolerance: float = 1e-10) -> None:
    """Within `tolerance` of the greatest number."""
    theirs = torch.tensor(list(found), dtype=torch.float64).reshape(wanted.shape)
    assert float((theirs - wanted).abs().max()) <= tolerance * max(float(wanted.abs().max()), 1e-300)


# (pack, linear, conv), and how near their numbers come: whole ones are as good as float32
LAYERS = {
    "python": (layer_kernels.pack_python, layer_kernels.linear_python, layer_kernels.conv_python),
    "chosen": (layer_kernels.pack, layer_kernels.linear, layer_kernels.conv),
}
FLOAT32 = 1e-6


@pytest.mark.parametrize("name", LAYERS)
@few
@given(*[st.integers(1, 5)] * 3, st.sampled_from([1e-200, 1e-3, 1.0, 1e200]), seeds)
def test_rows_by_a_layers_weights_equal_pytorchs(
    name: str, n: int, n_in: int, n_out: int, scale: float, seed: int
) -> None:
    pack, linear, _ = LAYERS[name]
    x, weight, bias = draw((n, n_in), seed), draw((n_out, n_in), seed + 1), draw((n_out,), seed + 2)
    found = linear(buffer(x * scale), pack(buffer(weight), buffer(bias * scale)))
    assert_close(found, F.linear(x * scale, weight, bias * scale), FLOAT32)


@pytest.mark.parametrize("name", LAYERS)
def test_a_long_sum_of_the_largest_numbers_does_not_overflow_its_field(name: str) -> None:
    pack, linear, _ = LAYERS[name]
    signs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    weight = signs.repeat_interleave(1000, dim=1)
    found = linear(buffer(weight), pack(buffer(weight), array("d", [0.0] * 4)))
    assert_close(found, weight @ weight.T, FLOAT32)


@pytest.mark.parametrize("name", LAYERS)
def test_zeros_times_anything_are_zeros(name: str) -> None:
    pack, linear, _ = LAYERS[name]
    zero, one = array("d", [0.0, 0.0]), array("d", [1.0, 1.0])
    assert linear(zero, pack(one, array("d", [3.0]))) == array("d", [3.0])
    assert linear(one, pack(zero, array("d", [3.0]))) == array("d", [3.0])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_a_convolution_of_maps_equals_pytorchs(name: str, kernel: int, stride: int) -> None:
    pack, _, conv = LAYERS[name]
    x, weight, bias = draw((1, 3, 5, 4)), draw((2, 3, kernel, kernel), 1), draw((2,), 2)
    layer = pack(buffer(weight.permute(0, 2, 3, 1)), buffer(bias))
    found = conv(buffer(x[0].permute(1, 2, 0)), 5, 4, kernel, stride, layer)
    wanted = F.conv2d(x, weight, bias, stride, kernel // 2)[0].permute(1, 2, 0)
    assert_close(found, wanted, FLOAT32)


def test_a_number_that_is_not_finite_has_no_whole_one() -> None:
    layer = layer_kernels.pack_python(array("d", [1.0, 1.0]), array("d", [0.0]))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="infinite or not a number"):
            layer_kernels.linear_python(array("d", [1.0, bad]), layer)


NORMALISERS = {"python": layer_kernels.fill_normalised, "chosen": layer_kernels.fill_normalised_chosen}
SOFTMAXES = {"python": layer_kernels.fill_softmax, "chosen": layer_kernels.fill_softmax_chosen}


@pytest.mark.parametrize("name", NORMALISERS)
@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), seeds)
def test_group_norm_of_rows_equals_pytorchs(name: str, n: int, n_groups: int, size: int, seed: int) -> None:
    c = n_groups * size
    x, weight, bias = draw((2, n, c), seed), draw((c,), seed + 1), draw((c,), seed + 2)
    found = buffer(x)
    NORMALISERS[name](buffer(x), found, n, c, n_groups, 1e-3, buffer(weight), buffer(bias))
    wanted = F.group_norm(x.transpose(1, 2), n_groups, weight, bias, 1e-3).transpose(1, 2)
    assert_close(found, wanted)
    assert_close(layer_kernels.normalise(buffer(x), n, c, n_groups, 1e-3, buffer(weight), buffer(bias)), wanted)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_softmax_of_rows_equals_pytorchs(name: str, offset: float) -> None:
    x = draw((3, 4)) + offset
    x[1, 2] = -torch.inf
    found = buffer(x)
    SOFTMAXES[name](buffer(x), found, 4)
    assert_close(found, x.softmax(1))
    assert_close(layer_kernels.softmax(buffer(x), 4), x.softmax(1))


@pytest.mark.parametrize("each", [layer_kernels.each_python, layer_kernels.each])
def test_activations_equal_pytorchs(each) -> None:
    x = torch.tensor([-800.0, -1.0, 0.0, 0.5, 800.0], dtype=torch.float64)
    assert_close(each(ieee.silu, buffer(x)), F.silu(x))
    assert_close(each(ieee.gelu, buffer(x)), F.gelu(x))
    assert_close(each(ieee.quick_gelu, buffer(x)), x * torch.sigmoid(1.702 * x))


def identifiers(path: Path) -> set[str]:
    """Every name in the code of a file: of variables, attributes, and what is imported."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
    return found


def test_nothing_but_the_kernels_knows_which_twin_runs() -> None:
    named = {path.stem: identifiers(path) for path in Path(kernels.__file__).parent.glob("*.py")}
    know = {file for file, names in named.items() if any(name.split(".")[0] == "numba" for name in names)}
    assert know == {"kernels", "layer_kernels", "matmul"}  # matmul.py shows a kernel for a GPU
    twins = {name for name in named["kernels"] | named["layer_kernels"] if name.endswith(("_python", "_numba"))}
    assert len(twins) == 11
    assert not any(names & twins for file, names in named.items() if file not in ("kernels", "layer_kernels"))
