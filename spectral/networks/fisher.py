"""`Fisher` and `EmpiricalFisher`: matrices of the model's predictive distribution, and of the gradients of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spectral import persist, probes
from spectral.networks import losses
from spectral.networks import output_curvature as outputs
from spectral.networks.curvature import Curvature, Forward, GaussNewton, Product
from spectral.schema import integer


class Fisher(GaussNewton):
    """The Fisher information of the model's predictive distribution, (P, P): J^T F J / N, positive semi-definite.

    F is the expected outer product of the score with respect to the logits under the model's own predictions: diag(p) - p
    p^T for cross entropy, p (1 - p) for binary cross entropy, 2 for the squared error (torch's MSELoss is the negative
    log-likelihood of variance 1/2). N is the number of counted targets.

    Cost: one product is one sweep over the data: J v, a product with F (of the outputs alone), J^T u. Building it takes a
    forward pass over the data, for sizes and counts.

    Parameters
    ----------
    model : torch.nn.Module
        Computed in eval mode, left as it was. Each sweep sees its weights as they are when it begins.
    loss : torch.nn.Module, optional
        What names the distribution: CrossEntropyLoss (alone with class weights), BCEWithLogitsLoss or MSELoss, under any
        reduction, or None for the model's own cross entropy (Hugging Face, labels in the batch).
    data : iterable of batches
        Read anew in each sweep, so that an iterator is refused. A batch is a tensor, a tuple such as (x, y), or a mapping
        (Hugging Face). Each sweep must give the same batches; the random state of a shuffling loader is replayed.
    draws : int, optional
        None takes the expectation exactly; an integer draws so many labels for each target.
    seed : int
        Of the draws: they depend on (seed, sample) alone, whatever the batching.
    wrt : str
        With respect to "params", to "inputs" (embeddings for token models), or to "module:NAME": the output of that module, one
        tensor (B, ...) of a module that is called once.
    layout : str
        Not for parameters: "block-diagonal", every sample's variable by itself, or "summed", one change for all samples.
    params : list, optional
        The parameters to differentiate: name globs, parameters or modules in any mixture. By default those that require a
        gradient. Tied parameters count once, by any of their names.
    forward : callable, optional
        (model, batch) -> output. By default the model is called with the tensor, with as many entries of the tuple as its
        `forward` requires, or with the fields of the mapping without its labels.
    shared : list
        Keys or positions of a batch's entries that belong to no sample (weights, priors).
    statistics : str
        Batch norm with its running statistics, "population", or with those of each batch, "batch", as training sees them
        (refused for a model without batch norm). For wrt="params" alone.
    engine : str
        How products are computed. "fresh": forward-mode AD for each product anew, J^T u by a backward pass.
        "double-backward": backward passes alone, through a graph that is recorded once. "replay": a recorded program
        without what does not depend on the vector. "compiled": that program through `torch.compile`. "auto": see Notes.
    product_dtype : torch.dtype, optional
        Of the products; by default the model's. Vectors are in the model's, float32 at least. What a coarser one that is given
        costs in accuracy is measured on the first batch (nine products) and stored as `product_noise` in `describe()`.
    memory : int or str, optional
        What engines may keep between sweeps: bytes, "512MiB", "2GiB", 0 for nothing. By default a quarter of the free
        memory.
    chunk : int, optional
        Samples of a batch that are multiplied at a time, so that their activations fit. By default all of them, or as many as
        the free memory has room for (then in `describe()`). Refused where the samples of a batch meet.
    preflight : bool
        False leaves out the tests of the first batch: randomness, samples that meet, the adjoint identity.

    Attributes
    ----------
    count : float
        N, over all ranks.

    Raises
    ------
    TypeError
        For data that cannot be read twice, a loss that is a class or no callable, and a model or dtype without real
        derivatives.
    ValueError
        For an empty data set or no counted target, NaN, outputs whose first axis is not the sample, and an unknown keyword
        value. From the tests of the first batch: a model that is random in eval mode, or in which samples meet, and outputs
        that carry no derivative. From a product: batches that are not those of the first sweep, and no engine that holds.
        Also for a loss that names no predictive distribution, and for draws that are no integer >= 1.

    Notes
    -----
    The mean is torch's own over the counted targets of the whole data set at once: sums over batches, one division at the
    end. How the data are cut into batches never matters, nor does a module's reduction; class weights, ignored targets and
    label smoothing count as in torch.

    With wrt="inputs" or "module:NAME" the variable is all samples' inputs or activations, d entries each: (n d, n d), ordered by
    sample, block diagonal where samples do not meet in the loss, the block of sample i being its own matrix over N. With
    layout="summed" it is one change d of all samples: the sum of these blocks, (d, d), as Jacobian's columns are. A head's
    logits are then made whole.

    engine="auto" takes the first product as the answer and holds the first ones to <J v, u> = <v, J^T u>, to rounding; a way
    that fails gives place to the other, with the reason in `describe()`. A program is recorded only where the products to come
    (estimators announce theirs) pay for it and `memory` holds it; it is held to the product that it was recorded from and to
    two more before it multiplies alone. Where none can be recorded and more than ten products are to come, the other way takes
    a turn, and the faster one goes on. "compiled" is tried only where a run is predicted to take more than ten minutes. See
    `spectral.engine.autotune`.

    Memory: the activations of a batch, as in training, and what `memory` allows between sweeps. Cross entropy's H is known,
    and needs beside the logits and J v its result alone; other losses keep the graph of their gradient. Where a wide linear
    layer gives the logits (a language model's head, tied or not: on every batch its one call's result, unchanged), they are
    never made: a product holds three chunks, each a sixteenth of them or a quarter of the layer's weight, and probabilities
    where `memory` keeps them, 1.2 logits tensors in all; `describe()` names the layer as "head_in_chunks". The preflight
    holds the logits' derivative on the first batch to that of the layer; the first sweep and the tests run the model as it
    is, logits and all. Other models hold the logits, their tangent in three parts and H J v. In an initialised torch.distributed
    group, operators built alike on each rank from its own samples mean the whole.

    References
    ----------
    - Amari (1998), Natural gradient works efficiently in learning, Neural Computation 10.
    - Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation for natural gradient descent,
      NeurIPS.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> Fisher(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)
    tensor([5.])
    """

    def __init__(
        self, model: nn.Module, loss: Any, data: Any, *, draws: int | None = None, seed: int = 0, wrt: str = "params",
        layout: str = "block-diagonal", params: Any = None, forward: Forward = None, shared: Sequence[Any] = (),
        statistics: str = "population", engine: str = "auto", product_dtype: torch.dtype | None = None, memory: Any = None,
        preflight: bool = True, chunk: int | None = None,
    ) -> None:  # fmt: skip
        if draws is not None:
            integer(draws, "draws", "number of draws (None: the exact Fisher)")
        outputs.check_predictive(losses.as_module(loss))
        self.draws, self.seed = draws, probes.check_seed(seed)
        super().__init__(
            model, loss, data, wrt=wrt, layout=layout, params=params, forward=forward, shared=shared,
            statistics=statistics, engine=engine, product_dtype=product_dtype, memory=memory, preflight=preflight, chunk=chunk,
        )  # fmt: skip

    @property
    def chunked(self) -> bool:
        return super().chunked and self.draws is None

    def _target_mass(self, batch: Any, like: torch.Tensor) -> torch.Tensor:
        return self.network.loss.class_counts(batch, like)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "draws": self.draws, **({} if self.draws is None else {"seed": self.seed})}

    def identity(self) -> str:
        return persist.fingerprint([super().identity(), self.draws, self.seed])

    def _output_curvature(self, output: Any, batch: Any, first: int) -> Product:
        (z,) = (head.detach() for head in self.network.heads(output))
        if self.draws is None:
            return outputs.exact_fisher(self.network.loss, z, batch, self.share)
        return outputs.sampled_fisher(self.network.loss, z, batch, self.draws, self.seed, first, self.share)

    def _curvature_error(self, batch: Any) -> float:
        return 0.0  # in closed form


class EmpiricalFisher(GaussNewton):
    """The empirical Fisher matrix sum_i g_i g_i^T / N, (P, P), positive semi-definite.

    g_i is the gradient of sample i's summed loss, N the number of counted targets. It is the Gram matrix of the Jacobian of
    the n per-sample losses. It is no Fisher matrix: the labels are the data's.

    Cost: one product is one sweep over the data, one J v and one J^T u of that Jacobian. Building it takes a forward pass
    over the data, for sizes and counts.

    Parameters
    ----------
    model : torch.nn.Module
        Computed in eval mode, left as it was. Each sweep sees its weights as they are when it begins.
    loss : torch.nn.Module or callable, optional
        A torch loss module under any reduction; a callable (output, batch) that returns (sum, count), the mean over the
        samples, or one number for each; None for the model's own loss (Hugging Face, labels in the batch). A callable gets
        the output as the model gives it, and the whole batch.
    data : iterable of batches
        Read anew in each sweep, so that an iterator is refused. A batch is a tensor, a tuple such as (x, y), or a mapping
        (Hugging Face). Each sweep must give the same batches; the random state of a shuffling loader is replayed.
    wrt : str
        With respect to "params", to "inputs" (embeddings for token models), or to "module:NAME": the output of that module, one
        tensor (B, ...) of a module that is called once.
    layout : str
        Not for parameters: "block-diagonal", every sample's variable by itself, or "summed", one change for all samples.
    params : list, optional
        The parameters to differentiate: name globs, parameters or modules in any mixture. By default those that require a
        gradient. Tied parameters count once, by any of their names.
    forward : callable, optional
        (model, batch) -> output. By default the model is called with the tensor, with as many entries of the tuple as its
        `forward` requires, or with the fields of the mapping without its labels.
    shared : list
        Keys or positions of a batch's entries that belong to no sample (weights, priors).
    statistics : str
        Batch norm with its running statistics, "population", or with those of each batch, "batch", as training sees them
        (refused for a model without batch norm). For wrt="params" alone. Refused also for the gradients of single samples, which
        it couples.
    engine : str
        How products are computed. "fresh": forward-mode AD for each product anew, J^T u by a backward pass.
        "double-backward": backward passes alone, through a graph that is recorded once. "replay": a recorded program
        without what does not depend on the vector. "compiled": that program through `torch.compile`. "auto": see Notes.
    product_dtype : torch.dtype, optional
        Of the products; by default the model's. Vectors are in the model's, float32 at least. What a coarser one that is given
        costs in accuracy is measured on the first batch (nine products) and stored as `product_noise` in `describe()`.
    memory : int or str, optional
        What engines may keep between sweeps: bytes, "512MiB", "2GiB", 0 for nothing. By default a quarter of the free
        memory.
    chunk : int, optional
        Samples of a batch that are multiplied at a time, so that their activations fit. By default all of them, or as many as
        the free memory has room for (then in `describe()`). Refused where the samples of a batch meet.
    preflight : bool
        False leaves out the tests of the first batch: randomness, samples that meet, the adjoint identity.

    Attributes
    ----------
    count : float
        N, over all ranks.

    Raises
    ------
    TypeError
        For data that cannot be read twice, a loss that is a class or no callable, and a model or dtype without real
        derivatives.
    ValueError
        For an empty data set or no counted target, NaN, outputs whose first axis is not the sample, and an unknown keyword
        value. From the tests of the first batch: a model that is random in eval mode, or in which samples meet, and outputs
        that carry no derivative. From a product: batches that are not those of the first sweep, and no engine that holds.
        Also for a loss that couples the samples of a batch, which has no such gradients.

    Notes
    -----
    The mean is torch's own over the counted targets of the whole data set at once: sums over batches, one division at the
    end. How the data are cut into batches never matters, nor does a module's reduction; class weights, ignored targets and
    label smoothing count as in torch.

    With wrt="inputs" or "module:NAME" the variable is all samples' inputs or activations, d entries each: (n d, n d), ordered by
    sample, block diagonal where samples do not meet in the loss, the block of sample i being its own matrix over N. With
    layout="summed" it is one change d of all samples: the sum of these blocks, (d, d), as Jacobian's columns are.
    Summed over the inputs it is the average gradient outer product, whose eigenvectors span the active subspace (Constantine
    2015).

    What counts as a target decides the scale, not the mean alone: of k outputs a sample MSELoss counts k targets, and a callable
    that returns their mean is a mean over samples, each of them one target. The gradients are then k times smaller and N too, the
    matrix is k times smaller; Hessian and GaussNewton are the same. Return (sum, count) to say what is meant.

    engine="auto" takes the first product as the answer and holds the first ones to <J v, u> = <v, J^T u>, to rounding; a way
    that fails gives place to the other, with the reason in `describe()`. A program is recorded only where the products to come
    (estimators announce theirs) pay for it and `memory` holds it; it is held to the product that it was recorded from and to
    two more before it multiplies alone. Where none can be recorded and more than ten products are to come, the other way takes
    a turn, and the faster one goes on. "compiled" is tried only where a run is predicted to take more than ten minutes. See
    `spectral.engine.autotune`.

    Memory: the activations of a batch, as in training, and what `memory` allows between sweeps. In an initialised
    torch.distributed group, operators built alike on each rank from its own samples mean the whole.

    References
    ----------
    Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation for natural gradient descent,
    NeurIPS.

    Examples
    --------
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> EmpiricalFisher(model, torch.nn.MSELoss(), [(x, y)]) @ torch.ones(1)  # gradients 2 and 8: (4 + 64) / 2
    tensor([34.])
    """

    of = "loss sums"

    semidefinite = True
    chunked = False  # type: ignore[assignment]  # its outputs are the losses

    def _inspect(self, recorded: Any = None, below: Sequence[torch.Tensor] = ()) -> None:
        Curvature._inspect(self)  # single samples' losses may read what they like

    def _output_curvature(self, output: Any, batch: Any, first: int) -> Product:
        share = self.share
        return lambda u: share * u

    def _terms(self, output: Any, batch: Any, first: int) -> outputs.Terms:
        return outputs.diagonal_terms(self._output_curvature(output, batch, first), self.network.select(output, batch))

    def _curvature_error(self, batch: Any) -> float:
        return 0.0
