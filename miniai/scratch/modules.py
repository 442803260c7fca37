"""21. Modules: functions that own their weights, and know the modules within them.

Names and shapes are PyTorch's, so weights go from one to the other by name. They are drawn from the generator that is
passed; without one they are zeros, for a module whose weights will be loaded.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from miniai.scratch import functional
from miniai.scratch.autograd import Variable
from miniai.scratch.creation import zeros
from miniai.scratch.rng import Rng
from miniai.scratch.tensor import Tensor

Hook = Callable[["Module", tuple[Any, ...], Any], Any]


class Parameter(Variable):
    """A variable that training changes."""

    def __init__(self, data: Tensor) -> None:
        super().__init__(data, requires_grad=True)


class Module:
    """Calls `forward`. Attributes that are parameters, tensors (buffers), modules or lists of modules are found by
    looking; there is nothing to register."""

    forward: Callable[..., Any]

    def __init__(self) -> None:
        self.training = True
        self.hooks: dict[int, Hook] = {}

    def __call__(self, *args: Any) -> Any:
        output = self.forward(*args)
        for hook in list(self.hooks.values()):
            replaced = hook(self, args, output)
            output = output if replaced is None else replaced
        return output

    def register_forward_hook(self, hook: Hook) -> Callable[[], None]:
        """`hook(module, inputs, output)` runs after each call, and may return another output. Returns its remover."""
        key = max(self.hooks, default=-1) + 1
        self.hooks[key] = hook
        return lambda: self.hooks.pop(key, None) and None

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Itself, and all modules below, by their path."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Each once, by its first path, also where several modules share it."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and buffer by its path."""
        state = {}
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter | Tensor):
                    state[f"{path}.{name}" if path else name] = value.data if isinstance(value, Parameter) else value
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over all of `state`. Raises RuntimeError naming what is missing, extra or of another shape."""
        own = self.state_dict()
        problems = [f"Missing key: {name}" for name in own if name not in state]
        problems += [f"Unexpected key: {name}" for name in state if name not in own]
        problems += [
            f"size mismatch for {name}: copying {list(state[name].shape)} into {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if problems:
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}: " + "; ".join(problems))
        for path, module in self.named_modules():
            for name, value in list(vars(module).items()):
                loaded = state.get(f"{path}.{name}" if path else name)
                if isinstance(value, Parameter) and loaded is not None:
                    value.data = loaded
                elif isinstance(value, Tensor) and loaded is not None:
                    setattr(module, name, loaded)

    def requires_grad_(self, requires_grad: bool) -> None:
        """Where False, calls remember nothing, as suits inference."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad

    def train(self, training: bool = True) -> None:
        """Dropout drops and batch norm measures in training only."""
        for _, module in self.named_modules():
            module.training = training

    def eval(self) -> None:  # noqa: A003
        self.train(False)


def uniform_or_zeros(rng: Rng | None, n_in: int, *shape: int) -> Parameter:
    """Uniform within ±1/sqrt(n_in), PyTorch's choice for linear layers and convolutions."""
    bound = 1 / math.sqrt(n_in) if n_in else 0.0
    return Parameter(zeros(*shape) if rng is None else rng.uniform(*shape, low=-bound, high=bound))


class Linear(Module):
    """y = x Wᵀ + b over the last dimension. `weight` is (n_out, n_in)."""

    def __init__(self, in_features: int, out_features: int, rng: Rng | None = None, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = uniform_or_zeros(rng, in_features, out_features, in_features)
        self.bias = uniform_or_zeros(rng, in_features, out_features) if bias else None

    def forward(self, x: Variable) -> Variable:
        n_out, n_in = self.weight.shape
        if x.shape[-1:] != (n_in,):
            given = f"{math.prod(x.shape[:-1])}x{x.shape[-1] if x.ndim else 0}"
            raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({given} and {n_in}x{n_out})")
        y = x.reshape(math.prod(x.shape[:-1]), n_in) @ self.weight.transpose(0, 1)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], n_out)


class ReLU(Module):
    def forward(self, x: Variable) -> Variable:
        return functional.relu(x)


class SiLU(Module):
    def forward(self, x: Variable) -> Variable:
        return functional.silu(x)


class GELU(Module):
    def forward(self, x: Variable) -> Variable:
        return functional.gelu(x)


class Flatten(Module):
    """(b, …) becomes (b, n)."""

    def forward(self, x: Variable) -> Variable:
        return x.flatten(1)


class Sequential(Module):
    """Modules one after another; their names are 0, 1, 2, …"""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.steps = list(modules)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), module) for i, module in enumerate(self.steps))

    def __getitem__(self, i: int) -> Module:
        return self.steps[i]

    def __len__(self) -> int:
        return len(self.steps)

    def forward(self, x: Variable) -> Variable:
        for module in self.steps:
            x = module(x)
        return x
