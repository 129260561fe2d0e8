"""Short scenes with several processes, each a function of rank and number of processes that asserts what must hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.torch import hosts
from tests.torch.parallel.life import full, split
from tests.torch.parallel.ways import flat, own
from tnadapt import FormatError, SiteError, families
from tnadapt_torch import AdapterState, attach, load

STEPS = 2


def train(model: nn.Module, state: AdapterState, parts: Callable[[Tensor], Tensor] = own) -> dict[str, Tensor]:
    """Train for two steps; return the factors."""
    optimizer = torch.optim.SGD(state.parameters(), lr=0.02)
    for seed in range(STEPS):
        optimizer.zero_grad()
        model(parts(hosts.words(4, seed=seed))).square().mean().backward()
        optimizer.step()
    state.parameter_groups(lr=1.0)  # lets a sharded host hold its shards
    return {key: full(value).detach().clone() for key, value in state.params().items()}


def in_one(family: str = "lotr") -> dict[str, Tensor]:
    model = hosts.toy()
    return train(model, hosts.adapt(model, family), lambda words: words)


def equal_to_one(found: dict[str, Tensor], family: str = "lotr") -> None:
    for key, wanted in in_one(family).items():
        hosts.close(found[key], wanted)


def step(model: nn.Module) -> None:
    model(own(hosts.words(4))).square().mean().backward()


@contextmanager
def refused(match: str, *models: nn.Module) -> Iterator[None]:
    """Assert that what is inside raises SiteError and leaves these models as they were."""
    before = [hosts.photo(model) for model in models]
    with pytest.raises(SiteError, match=match):
        yield
    for model, photo in zip(models, before, strict=True):
        hosts.assert_same_photo(photo, hosts.photo(model))


# ---- DistributedDataParallel


def ddp_after_attach() -> None:
    for family, more in (
        ("lotr", {}),
        ("vera", {"find_unused_parameters": True}),
        ("lotr", {"static_graph": True}),
        ("lorta", {"gradient_as_bucket_view": True}),
        ("vera", {"static_graph": True, "gradient_as_bucket_view": True}),
    ):
        model = hosts.toy()
        state = hosts.adapt(model, family)
        equal_to_one(train(DistributedDataParallel(model, **more), state), family)


def ddp_before_attach() -> None:
    model = hosts.toy()
    wrapped = DistributedDataParallel(model)
    with refused("not wrapped yet, got DistributedDataParallel", model):
        hosts.adapt(wrapped)
    hosts.adapt(model)  # nobody can see at attach that something wraps this model
    with refused("expected parameters whose gradients DistributedDataParallel averages .*, got 9 that"):
        step(wrapped)
    with torch.no_grad():
        wrapped(hosts.words())


def ddp_around_a_part_that_is_adapted_later() -> None:
    model = hosts.toy()
    wrapped = DistributedDataParallel(model)
    hosts.adapt(model.layers[0])
    with refused("DistributedDataParallel averages"):
        step(wrapped)


def ddp_with_saved_modules_and_a_reference_pass() -> None:
    model, plain = hosts.toy(), hosts.toy()
    gradients = []
    for each, wrap, words in (
        (model, DistributedDataParallel, own(hosts.words(4))),
        (plain, lambda model: model, hosts.words(4)),
    ):
        state = hosts.adapt(each, "lora", modules_to_save=["score"])
        wrapped = wrap(each)
        loss = wrapped(words).square().mean()
        with torch.no_grad(), state.disabled():
            each(words)
        loss.backward()
        gradients.append(hosts.grads(each))
    assert gradients[0].keys() == gradients[1].keys()
    for key, wanted in gradients[1].items():
        hosts.close(gradients[0][key], wanted)


# ---- FullyShardedDataParallel


def fsdp_before_attach() -> None:
    for way in (True, False):
        model = hosts.toy()
        wrapped = flat(model, use_orig_params=way)
        with refused("not wrapped yet, got FullyShardedDataParallel"):
            hosts.adapt(wrapped)
        with refused("one that FullyShardedDataParallel holds in flat parts"):
            hosts.adapt(model)
        inner = hosts.toy()
        inner.layers[0] = flat(inner.layers[0], use_orig_params=way)
        with refused("one that FullyShardedDataParallel holds in flat parts"):
            hosts.adapt(inner)


def fsdp_after_attach(family: str = "lotr") -> None:
    model = hosts.toy()
    state = hosts.adapt(model, family)
    wrapped = flat(model, use_orig_params=True)
    train(wrapped, state)
    if dist.get_world_size() > 1:
        with refused("expected values of shape .*, got a part of shape .*\n.*summon_full_params"):
            state.save("nothing.safetensors")
        with refused("summon_full_params"):
            state.merge()
    with FullyShardedDataParallel.summon_full_params(wrapped):
        equal_to_one({key: value.detach().clone() for key, value in state.params().items()}, family)
        file = f"of{dist.get_rank()}.safetensors"
        state.save(file)
    again = hosts.toy()
    load(again, file)
    hosts.close(wrapped(hosts.words()), again(hosts.words()))
    with FullyShardedDataParallel.summon_full_params(wrapped):
        state.merge()
    hosts.close(wrapped(hosts.words()), again(hosts.words()))


def fsdp_with_vectors_for_factors() -> None:
    """A vector in a flat part has the shape of one outside, if it lies on one process."""
    fsdp_after_attach("vera")


def wrapped_after_load() -> None:
    """A loaded factor has memory of its own: what an array shares cannot be freed by those who take it over."""
    first = hosts.toy()
    hosts.adapt(first, "vera", modules_to_save=["score"]).save(file := f"of{dist.get_rank()}.safetensors")
    for wrap in (partial(flat, use_orig_params=True), fully_shard, DistributedDataParallel):
        model = hosts.toy()
        state = load(model, file)
        for value in state.state_dict().values():
            assert value.untyped_storage().resizable()
        wrapped = wrap(model)
        step(wrapped)
        hosts.close(wrapped(hosts.words()), first(hosts.words()))


def fsdp_around_a_part_after_attach() -> None:
    model = hosts.toy()
    hosts.adapt(model)
    model.layers[0] = flat(model.layers[0], use_orig_params=True)
    with refused("FullyShardedDataParallel averages .*, got 9 that it does not know"):
        step(model)


def fsdp_with_ignored_factors() -> None:
    model = hosts.toy()
    state = hosts.adapt(model)
    wrapped = flat(model, use_orig_params=True, ignored_states=list(state.parameters()))
    with refused("FullyShardedDataParallel averages .*, got 9 that it does not know"):
        step(wrapped)


# ---- fully_shard


def sharded_with_other_seeds() -> None:
    if dist.get_world_size() == 1:
        return
    model = fully_shard(hosts.toy())
    with refused("expected the same values on every process, got 2 different sets"):
        hosts.adapt(model, "vera", seed=dist.get_rank(), awake=False)
    model = hosts.toy()
    hosts.adapt(model, "vera", seed=dist.get_rank(), awake=False)
    with refused("expected the same values on every process"):
        step(fully_shard(model))


def part_of_a_sharded_model() -> None:
    """The host is a part of the module that was sharded, and holds gathered copies after a pass of the whole."""
    for first in (True, False):
        model, plain = hosts.toy(), hosts.toy()
        wanted = hosts.adapt(plain.layers[0], "lora")
        if first:
            fully_shard(model)
            with torch.no_grad():
                model(hosts.words())
        state = hosts.adapt(model.layers[0], "lora")
        if not first:
            fully_shard(model)
        found = train(model, state)
        for key, value in train(plain, wanted, lambda words: words).items():
            hosts.close(found[key], value)
        before = model(hosts.words()).detach().clone()
        state.merge()
        model.reshard()
        hosts.close(model(hosts.words()), before)
        state.unmerge()
        state.detach()
        hosts.close(model(hosts.words()), hosts.toy()(hosts.words()))


def merged_before_it_is_sharded() -> None:
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    before, weights = model(hosts.words()), {name: value.clone() for name, value in hosts.toy().named_parameters()}
    state.merge()
    fully_shard(model)
    hosts.close(model(hosts.words()), before)
    state.unmerge()
    hosts.close(model(hosts.words()), before)
    model.reshard()
    for name, value in model.named_parameters():
        if name in weights:
            assert torch.equal(full(value), weights[name]), name


def state_dict_of_a_merged_sharded_host() -> None:
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    fully_shard(model)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    state.merge()
    merged = model.state_dict()
    model.load_state_dict(merged)
    with refused("state dict with merged updates"):
        model.load_state_dict(plain)
    state.unmerge()
    model.load_state_dict(plain)
    with refused("state dict without merged updates"):
        model.load_state_dict({key: value.clone() for key, value in merged.items()})


def merge_that_is_not_finite_on_one_process() -> None:
    model = hosts.toy()
    state = attach(model, families.lora(), target_modules=["q_proj"], rank=2, seed=0)
    hosts.wake(state)
    with torch.no_grad():
        next(iter(state.parameters()))[0, 0] = float("inf")  # in one row of A: the update of every row of W is infinite
        model.layers[1].self_attn.q_proj.weight[-1, -1] = float("nan")  # on the last process alone
    fully_shard(model)
    photo = {key: full(value).clone() for key, value in model.state_dict().items()}
    with refused("expected a finite sum"):
        state.merge()
    for key, value in model.state_dict().items():
        assert torch.equal(full(value).nan_to_num(), photo[key].nan_to_num()), key


def weights_that_are_factors_are_saved() -> None:
    """One process writes, and each has a part of the weight that the file's fingerprint is of."""
    for family in (families.hira(), families.svdiff()):
        model = hosts.toy()
        state = attach(model, family, target_modules=["q_proj"], rank=2 if family.free_bonds else None)
        hosts.wake(state)
        fully_shard(model)
        model(hosts.words())
        model.reshard()
        wanted = {path: full(state.delta(path)).detach() for path in state.weights}
        state.save(f"{family.name}.safetensors")
        state.save_as_lora(f"{family.name}_lora", rank=4)
        dist.barrier()
        again = load(hosts.toy(), f"{family.name}.safetensors")
        for path, update in wanted.items():
            hosts.close(again.delta(path).detach(), update)


def rates_from_weights_that_are_sharded() -> None:
    """Each process has a part of the weights that the starting values were read from, and reads all of them again."""
    for family in (families.abba(), families.hira(), families.pissa(), families.lora()):
        rates = []
        for is_sharded in (False, True):
            model = hosts.toy()
            state = attach(model, family, target_modules=["q_proj", "down"], rank=2, overparametrized=True)
            hosts.wake(state)
            if is_sharded:
                fully_shard(model)
                model(hosts.words())
            groups = state.parameter_groups(lr=1.0, balance=True, weight_decay=0.1)
            assert {id(one) for group in groups for one in group["params"]} == {*map(id, state.parameters())}
            rates.append([(group["name"], round(group["lr"], 5)) for group in groups])
        assert rates[0] == rates[1]


def write_that_fails() -> None:
    model = hosts.toy()
    state = hosts.adapt(model, "lora")
    fully_shard(model)
    with pytest.raises(FormatError, match="missing"):
        state.save(Path("missing") / "folder" / "a.safetensors")


def folded_and_sharded() -> None:
    model = hosts.toy()
    state = hosts.adapt(model, "lora", fold=True)
    fully_shard(model)
    model(hosts.words())
    with refused("got one that fully_shard holds where it was folded"):
        state.detach()
    state.merge()
    model = fully_shard(hosts.toy())
    with refused("before fully_shard took it over", model):
        hosts.adapt(model, "lora", fold=True)


def sharded_on_the_meta_device() -> None:
    """The way of large models: made without values, adapted, sharded, emptied, then loaded."""
    for first in (True, False):
        with torch.device("meta"):
            model = hosts.Toy()
        state = None if first else hosts.adapt(model, "vera")
        fully_shard(model.layers[0])
        fully_shard(model)
        model.to_empty(device="cpu")
        for name, value in hosts.toy().state_dict().items():
            part = model.state_dict()[name]
            part.copy_(distribute_tensor(value, part.device_mesh, part.placements))
        state = state or hosts.adapt(model, "vera")
        equal_to_one(train(model, state), "vera")


def originals_with_gradients() -> None:
    model = hosts.toy()
    state = hosts.adapt(model, "lora", modules_to_save=["score"])
    fully_shard(model)
    with refused("expected gradients to be off"), state.disabled():
        pass
    assert state.enabled
    with torch.no_grad(), state.disabled():
        pass


def layer_called_by_itself() -> None:
    """The root gathers its factors only in its own forward; a site gathers what it reads, and averages the gradient."""
    model, plain = hosts.toy(), hosts.toy()
    state, wanted = hosts.adapt(model, "lora"), hosts.adapt(plain, "lora")
    fully_shard(model.layers[0])
    fully_shard(model)
    x = hosts.normal(4, 3, 16)
    hosts.close(model.layers[0](x), plain.layers[0](x))
    model.layers[0](own(x)).square().mean().backward()
    plain.layers[0](x).square().mean().backward()
    for key, value in wanted.params().items():
        if value.grad is not None:
            hosts.close(full(state.params()[key].grad), value.grad)


def compiled_layers() -> None:
    for first in (True, False):
        model = hosts.toy()
        if first:
            fully_shard(model)
        state = hosts.adapt(model)
        for layer in model.layers:
            layer.compile(backend="aot_eager")
            if not first:
                fully_shard(layer)
        if not first:
            fully_shard(model)
        equal_to_one(train(model, state))


def half_precision_stays_out_of_files() -> None:
    """A pass leaves the root with copies in bfloat16; norms, deltas, files and groups are those of the shards."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model, plain = hosts.toy(), hosts.toy()
    state, wanted = hosts.adapt(model, "lora"), hosts.adapt(plain, "lora")
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    model(hosts.words())
    assert next(iter(state.params().values())).dtype == torch.bfloat16
    path = "layers.0.mlp.down"
    assert torch.equal(state.delta(path), wanted.delta(path))
    model(hosts.words())
    assert state.norms() == pytest.approx(wanted.norms(), rel=1e-12)
    model(hosts.words())
    assert {value.dtype for group in state.parameter_groups(lr=1.0) for value in group["params"]} == {torch.float32}


def optimizer_made_after_a_pass() -> None:
    """A pass leaves the root with gathered copies, which nothing trains: an optimizer gets the shards."""
    model = hosts.toy()
    state = hosts.adapt(model)
    fully_shard(model)
    loss = model(own(hosts.words(4))).square().mean()
    shards = list(state.parameters())  # between a pass and its backward pass
    loss.backward()
    assert all(parameter.grad is not None for parameter in shards)
    model(hosts.words())
    assert [id(parameter) for parameter in state.parameters()] == [id(parameter) for parameter in shards]
    model(hosts.words())
    equal_to_one(train(model, state))


# ---- tensor parallelism


def tensor_parallel_with_other_seeds() -> None:
    if dist.get_world_size() == 1:
        return
    for fold in (False, True):
        model = split(hosts.toy(), sequence=False)
        with refused("expected the same values on every process"):
            hosts.adapt(model, "lora", seed=dist.get_rank(), awake=False, fold=fold)


def one_process_writes() -> None:
    """The first one, though each names a file of its own. A folder that two processes write is in the way of one."""
    for spread in (fully_shard, partial(split, sequence=False)):
        for fold in (False, True):
            model = hosts.toy()
            state = hosts.adapt(model, "lora", fold=fold) if spread is fully_shard else None
            spread(model)
            state = state or hosts.adapt(model, "lora", fold=fold)
            found = [None] * dist.get_world_size()
            name = f"{spread is fully_shard}{fold}{dist.get_rank()}"
            state.save(f"{name}.safetensors")
            state.save_as_lora(name)
            dist.all_gather_object(found, (Path(f"{name}.safetensors").exists(), Path(name).exists()))
            assert found == [(True, True)] + [(False, False)] * (dist.get_world_size() - 1), (name, found)


def flags_after_sequence_parallel() -> None:
    """SequenceParallel makes the parameters of norms anew, and trainable. Attach after it, or freeze them again."""
    model = split(hosts.toy(), sequence=True)
    state = hosts.adapt(model, "lora")
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in state.parameters()}


SCENES: dict[str, Callable[[], None]] = {
    scene.__name__: scene
    for scene in (
        ddp_after_attach,
        ddp_before_attach,
        ddp_around_a_part_that_is_adapted_later,
        ddp_with_saved_modules_and_a_reference_pass,
        fsdp_before_attach,
        fsdp_after_attach,
        fsdp_with_vectors_for_factors,
        wrapped_after_load,
        fsdp_around_a_part_after_attach,
        fsdp_with_ignored_factors,
        sharded_with_other_seeds,
        part_of_a_sharded_model,
        merged_before_it_is_sharded,
        state_dict_of_a_merged_sharded_host,
        merge_that_is_not_finite_on_one_process,
        weights_that_are_factors_are_saved,
        rates_from_weights_that_are_sharded,
        write_that_fails,
        sharded_on_the_meta_device,
        folded_and_sharded,
        originals_with_gradients,
        layer_called_by_itself,
        compiled_layers,
        half_precision_stays_out_of_files,
        optimizer_made_after_a_pass,
        tensor_parallel_with_other_seeds,
        one_process_writes,
        flags_after_sequence_parallel,
    )
}
