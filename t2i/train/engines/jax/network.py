"""Network: a UNet of PyTorch as a function of its weights, which JAX can differentiate and compile, by way of torchax."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchax import default_env

from t2i.model.precision import DTYPES, Precision
from t2i.train.engines.jax.devices import Array, array_of, tensor_of


class WithWeights(nn.Module):
    """A UNet that computes with other weights than its own; both are given, and neither is a part of this module."""

    def __init__(self, unet: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda *inputs, **named: functional_call(unet, weights, inputs, named)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Returns the output of the UNet."""
        return self._call(*inputs, **named)


class Network:
    """A UNet that computes in a precision.

    In bf16, linear layers and convolutions cast their weights and inputs, as with autocast on a GPU; norms compute in fp32.

    Args:
        unet: the UNet; loses its dropouts with a probability of 0, which would still draw.
        precision: fp32 or bf16.
        checkpointing: whether the backward pass computes the activations of each block again.

    Raises:
        ValueError: if the UNet has another dropout, whose draws would not be those of the other engine.
    """

    def __init__(self, unet: Any, precision: Precision, *, checkpointing: bool) -> None:
        self.unet, self._dtype = unet, DTYPES[precision]
        self._cast: set[str] = set()
        self._predicted = jax.jit(self._predict)
        default_env().override_op_definition(torch.nn.functional.scaled_dot_product_attention, _attention)
        _remove_dropouts(unet)
        if checkpointing:
            unet.enable_gradient_checkpointing(_computed_again)
        if precision == "fp32":
            return
        for name, module in unet.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self._cast |= {f"{name}.weight", f"{name}.bias"}
                module.register_forward_pre_hook(self._cast_inputs)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.register_forward_pre_hook(_in_fp32)

    def __call__(self, weights: Mapping[str, Array]) -> WithWeights:
        """Returns the UNet with weights, for use inside a compiled function and the context `default_env`."""
        tensors = default_env().j2t_iso(dict(weights))
        return WithWeights(self.unet, {n: t.to(self._dtype) if n in self._cast else t for n, t in tensors.items()})

    def lent(self, weights: Mapping[str, Array], rows: int) -> Any:
        """Returns a UNet that takes and gives tensors on the CPU, and computes with weights that are on one device.

        Args:
            weights: by name.
            rows: it computes this number of images at a time, so that one compiled function serves every batch.
        """

        def forward(sample: Tensor, timestep: Any, *others: Any, return_dict: bool = True, **named: Any) -> tuple[Tensor]:
            assert not return_dict
            inputs = ((sample, torch.as_tensor(timestep).expand(len(sample)), *others), named)
            found = []
            for at in range(0, len(sample), rows):
                part = jax.tree.map(lambda tensor, at=at: array_of(_rows(tensor, at, rows)), inputs)
                found.append(tensor_of(self._predicted(weights, part)))
            return (torch.cat(found)[: len(sample)],)

        lent = copy.copy(self.unet)
        lent.forward = forward
        return lent

    def _predict(self, weights: Mapping[str, Array], inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Array:
        with default_env(), torch.no_grad():
            given, named = default_env().j2t_iso(inputs)
            return default_env().t2j_iso(self(weights)(*given, **named, return_dict=False)[0].float())

    def _cast_inputs(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        return (inputs[0].to(self._dtype), *inputs[1:])


def _in_fp32(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    del module
    return (inputs[0].float(),)


def _rows(tensor: Tensor, at: int, rows: int) -> Tensor:
    """Returns rows of a tensor from `at` on; repeats the last one if there are too few."""
    return tensor[torch.arange(at, at + rows).clamp(max=len(tensor) - 1)]


def _remove_dropouts(unet: nn.Module) -> None:
    for name, module in list(unet.named_modules()):
        if not isinstance(module, nn.Dropout):
            continue
        if module.p:
            raise ValueError(
                f"the UNet has a dropout of {module.p} ({name}), which `runtime.engine` jax does not have: set it to torch"
            )
        parent, _, own = name.rpartition(".")
        setattr(unet.get_submodule(parent), own, nn.Identity())


def _computed_again(block: Callable[..., Any], *inputs: Any) -> Any:
    """Returns what a block computes; the backward pass computes its activations again."""
    leaves, spec = tree_flatten(inputs)
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def computed(arrays: list[Array]) -> Any:
        given = dict(zip(tensors, default_env().j2t_iso(arrays), strict=True))
        whole = [given.get(place, leaf) for place, leaf in enumerate(leaves)]
        return default_env().t2j_iso(block(*tree_unflatten(whole, spec)))

    return default_env().j2t_iso(jax.checkpoint(computed)(default_env().t2j_iso([leaves[place] for place in tensors])))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, **options: Any) -> Tensor:
    """Returns the attention [b, heads, latents, width]; its softmax is in fp32, as in the kernels of PyTorch."""
    assert attn_mask is None
    assert not options.get("dropout_p")
    assert not options.get("is_causal")
    arrays = (default_env().t2j_iso(tensor.transpose(1, 2)) for tensor in (query, key, value))
    attended: Tensor = default_env().j2t_iso(jax.nn.dot_product_attention(*arrays, scale=options.get("scale")))
    return attended.transpose(1, 2)
