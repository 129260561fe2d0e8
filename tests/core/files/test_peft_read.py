"""Hand-written PEFT checkpoints: their updates compared with the formulas, and the checkpoints that are refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tnadapt
from tnadapt import FormatError, delta, read_peft

PREFIX = "base_model.model."
PATHS = ("h.0.q", "h.1.q")
COMMON = {"bias": "none", "task_type": None, "target_modules": ["q"], "modules_to_save": None}


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(COMMON | config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def lora(folder, changes=None, *, drop=(), more=None):
    """Write a LoRA of two 6 x 4 modules and rank 2, with changes to its config and its tensors."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": False, "init_lora_weights": True}
    tensors = {f"{PREFIX}{path}.lora_{name}.weight": drawn(*shape) for path in PATHS for name, shape in FACTORS}
    tensors = {key: value for key, value in tensors.items() if key not in drop} | (more or {})
    return write(folder, config | (changes or {}), tensors)


FACTORS = (("A", (2, 4)), ("B", (6, 2)))
B, A = f"{PREFIX}h.0.q.lora_B.weight", f"{PREFIX}h.0.q.lora_A.weight"


def lokr(folder, *modules, **changes):
    """Write a LoKr; each module is a mapping from the names of its tensors to their shapes."""
    tensors = {
        f"{PREFIX}h.{n}.q.lokr_{name}": drawn(*shape) for n, one in enumerate(modules) for name, shape in one.items()
    }
    return write(folder, {"peft_type": "LOKR", "r": 2, "alpha": 6} | changes, tensors)


def vera(folder, *, drop=(), width=5, **changes):
    tensors = {"base_model.vera_A": drawn(2, width), "base_model.vera_B": drawn(6, 2)}
    for path in PATHS:
        tensors |= {f"{PREFIX}{path}.vera_lambda_b": drawn(6), f"{PREFIX}{path}.vera_lambda_d": drawn(2)}
    kept = {key: value for key, value in tensors.items() if key not in drop}
    return write(folder, {"peft_type": "VERA", "r": 2} | changes, kept)


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * abs(wanted).max())


def test_a_lora_is_read_with_its_stored_numbers(tmp_path):
    checkpoint = read_peft(lora(tmp_path))
    assert checkpoint.adapter.spec == tnadapt.families.lora(alpha=3)
    assert [dict(site.coordinates) for site in checkpoint.adapter.sites] == [
        {"layer": 0, "kind": "q"},
        {"layer": 1, "kind": "q"},
    ]
    np.testing.assert_array_equal(checkpoint.params["1.q.A"], drawn(2, 4))
    close(delta(checkpoint.adapter, checkpoint.params, "h.1.q"), 1.5 * drawn(6, 2) @ drawn(2, 4))


def test_modules_are_sorted_by_layer_number(tmp_path):
    further = {f"{PREFIX}h.{n}.q.lora_{name}.weight": drawn(*shape) for n in (2, 10) for name, shape in FACTORS}
    sites = read_peft(lora(tmp_path, more=further)).adapter.sites
    assert [site.coordinates["layer"] for site in sites] == [0, 1, 2, 10]


def test_different_ranks_and_scales_keep_every_update(tmp_path):
    smaller = {A: drawn(1, 4), B: drawn(6, 1)}
    changes = {"rank_pattern": {"0.q": 1}, "alpha_pattern": {"^h.0.q": 5.0}, "use_rslora": True}
    checkpoint = read_peft(lora(tmp_path, changes, more=smaller))
    assert dict(checkpoint.adapter.rank) == {"r": 2}
    np.testing.assert_array_equal(checkpoint.params["0.q.B"][:, :1], drawn(6, 1))  # the largest scale is the adapter's
    close(delta(checkpoint.adapter, checkpoint.params, "h.0.q"), 5 * drawn(6, 1) @ drawn(1, 4))
    close(delta(checkpoint.adapter, checkpoint.params, "h.1.q"), 3 / np.sqrt(2) * drawn(6, 2) @ drawn(2, 4))


def test_a_scale_of_zero_is_refused(tmp_path):
    with pytest.raises(FormatError, match="expected an alpha that is not 0"):
        read_peft(lora(tmp_path, {"lora_alpha": 0}))


@pytest.mark.parametrize("own", [1e-30, -1e-42, 1e-300])
def test_scales_whose_ratio_no_factor_can_take_are_refused(own, tmp_path):
    """B would become 0, or lose digits, although A is so large that the update is not small."""
    more = {A: 1e30 * drawn(2, 4), B: 1e5 * drawn(6, 2)}
    folder = lora(tmp_path, {"lora_alpha": 1e16, "alpha_pattern": {"h.0.q": own}}, more=more)
    with pytest.raises(FormatError, match=r"h.0.q: expected a B whose products with its scale float32 can hold, got"):
        read_peft(folder)
    read_peft(lora(tmp_path, {"lora_alpha": 1e16, "alpha_pattern": {"h.0.q": 0}}, more=more))


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_product_of_lokr_that_float32_cannot_hold_is_refused(size, tmp_path):
    folder = lokr(tmp_path, {"w1_a": (2, 2), "w1_b": (2, 2), "w2_a": (3, 2), "w2_b": (2, 2)})
    tensors = load_file(folder / "adapter_model.safetensors")
    key = f"{PREFIX}h.0.q.lokr_w1_"
    write(folder, config_in(folder), tensors | {f"{key}{part}": tensors[f"{key}{part}"] * size for part in "ab"})
    with pytest.raises(FormatError, match=r"h.0.q: expected a product of w1_a and w1_b that float32 can hold, got"):
        read_peft(folder)
    write(folder, config_in(folder), tensors | {f"{key}a": tensors[f"{key}a"] * 0})
    read = read_peft(folder)
    assert not delta(read.adapter, read.params, "h.0.q").any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype_keeps_its_values(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    folder = lora(tmp_path)
    values = {
        f"{PREFIX}{path}.lora_{name}.weight": torch.from_numpy(drawn(*shape)).to(getattr(torch, dtype))
        for path in PATHS
        for name, shape in FACTORS
    }
    save_torch(values, folder / "adapter_model.safetensors")
    params = read_peft(folder).params
    assert params["0.q.A"].dtype == (np.float64 if dtype == "float64" else np.float32)
    np.testing.assert_array_equal(params["0.q.A"], values[A].double().numpy())


def test_a_vera_is_read_with_the_shapes_of_its_host(tmp_path):
    """The projections in the file are longer than any weight, and only their leading part is used."""
    shapes = {"h.0.q": (6, 3), "h.1.q": (6, 4), "other": (1, 1)}
    checkpoint = read_peft(vera(tmp_path), shapes=shapes)
    for path, into in (("h.0.q", 3), ("h.1.q", 4)):
        wanted = drawn(6)[:, None] * drawn(6, 2) @ (drawn(2)[:, None] * drawn(2, 5)[:, :into])
        close(delta(checkpoint.adapter, checkpoint.params, path), wanted)


def test_a_peft_checkpoint_can_be_saved_as_a_tnadapt_file(tmp_path):
    checkpoint = read_peft(vera(tmp_path / "peft"), shapes=dict.fromkeys(PATHS, (6, 4)))
    tnadapt.save(checkpoint.adapter, checkpoint.params, tmp_path / "ours.safetensors")
    adapter, params = tnadapt.load(tmp_path / "ours.safetensors")
    for path in PATHS:
        np.testing.assert_array_equal(delta(adapter, params, path), delta(checkpoint.adapter, checkpoint.params, path))


PAIR = {"w1": (2, 2), "w2_a": (3, 2), "w2_b": (2, 4)}
WHOLE = {"w1": (2, 2), "w2": (3, 4)}


@pytest.mark.parametrize("modules", [(PAIR, PAIR), (WHOLE, WHOLE), (PAIR, WHOLE)])
def test_a_lokr_is_read_with_whole_or_factorized_matrices(modules, tmp_path):
    checkpoint = read_peft(lokr(tmp_path, *modules))
    for number, module in enumerate(modules):
        second = drawn(3, 4) if "w2" in module else drawn(3, 2) @ drawn(2, 4)
        found = delta(checkpoint.adapter, checkpoint.params, f"h.{number}.q")
        close(found, 3 * np.kron(drawn(2, 2), second))
        np.testing.assert_array_equal(checkpoint.params[f"{number}.q.C"], drawn(2, 2))  # no scale in it


def test_a_lokr_with_two_factorized_matrices_and_different_scales_is_read(tmp_path):
    both = {"w1_a": (2, 2), "w1_b": (2, 2), "w2_a": (3, 2), "w2_b": (2, 4)}
    checkpoint = read_peft(lokr(tmp_path, both, PAIR, alpha_pattern={"1.q": 1}))
    close(
        delta(checkpoint.adapter, checkpoint.params, "h.0.q"),
        3 * np.kron(drawn(2, 2) @ drawn(2, 2), drawn(3, 2) @ drawn(2, 4)),
    )
    close(delta(checkpoint.adapter, checkpoint.params, "h.1.q"), 0.5 * np.kron(drawn(2, 2), drawn(3, 2) @ drawn(2, 4)))


def test_whole_factors_with_different_scales_take_the_largest_scale(tmp_path):
    checkpoint = read_peft(lokr(tmp_path, WHOLE, WHOLE, alpha_pattern={"1.q": 1}))
    np.testing.assert_array_equal(checkpoint.params["0.q.C"], drawn(2, 2))
    close(delta(checkpoint.adapter, checkpoint.params, "h.1.q"), 0.5 * np.kron(drawn(2, 2), drawn(3, 4)))


def test_the_first_weight_of_another_shape_is_told(tmp_path):
    folder = lora(tmp_path, more={f"{PREFIX}h.1.q.lora_B.weight": drawn(7, 2)})
    told = r"h\.0\.q has a weight of shape \(6, 4\), got \(6, 5\)"
    with pytest.raises(FormatError, match=told):
        read_peft(folder, shapes={"h.0.q": (6, 5), "h.1.q": (7, 5)})


@pytest.mark.parametrize("axis", [0, 1])
def test_a_lokr_that_splits_all_weights_by_one_size_is_read(axis, tmp_path):
    """The 4 x 4 factor may be on either side. An even split of 32 would be 4 x 8."""
    modules = [{"w1": (4, 4), "w2": (8, 9)}, {"w1": (4, 4), "w2": (16, 25)}]
    turned = [{"w1": one["w2"], "w2": one["w1"]} for one in modules]
    checkpoint = read_peft(lokr(tmp_path, *(turned if axis else modules)))
    for number, module in enumerate(turned if axis else modules):
        wanted = 3 * np.kron(drawn(*module["w1"]), drawn(*module["w2"]))
        close(delta(checkpoint.adapter, checkpoint.params, f"h.{number}.q"), wanted)


@pytest.mark.parametrize("module", [{"w1": (2, 4), "w2": (3, 9)}, {"w1": (4, 2), "w2": (9, 3)}], ids=["in", "out"])
def test_a_lokr_may_split_one_axis_evenly_and_the_other_not(module, tmp_path):
    checkpoint = read_peft(lokr(tmp_path, module))
    wanted = 3 * np.kron(drawn(*module["w1"]), drawn(*module["w2"]))
    close(delta(checkpoint.adapter, checkpoint.params, "h.0.q"), wanted)


def test_a_lokr_without_one_rule_for_its_splits_is_refused(tmp_path):
    modules = [{"w1": (2, 2), "w2": (18, 2)}, {"w1": (3, 2), "w2": (27, 2)}]
    with pytest.raises(FormatError, match=r"with a part of one size, got a split .* by decompose_factor=5"):
        read_peft(lokr(tmp_path, *modules, decompose_factor=5))


OPTIONS = {
    "lora_bias": True,
    "use_qalora": True,
    "layer_replication": [[0, 1]],
    "target_parameters": ["experts.w"],
    "trainable_token_indices": [1],
    "loftq_config": {"loftq_bits": 4},
    "from_the_future": "yes",
    "bias": "all",
    "init_lora_weights": "pissa_niter_4",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_changes_the_meaning_is_refused_and_named(option, tmp_path):
    with pytest.raises(FormatError, match=option):
        read_peft(lora(tmp_path, {option: OPTIONS[option]}))


def test_a_magnitude_comes_with_its_option_and_for_every_module(tmp_path):
    with pytest.raises(FormatError, match=r"q: expected a magnitude of shape \(\d+,\), got none"):
        read_peft(lora(tmp_path, {"use_dora": True}))


@pytest.mark.parametrize("start", ["pissa", "olora", "corda", "loftq", "lora_ga", "mica", 1, "nonsense"])
def test_a_start_that_may_have_changed_the_model_is_refused(start, tmp_path):
    with pytest.raises(
        FormatError, match=r"own weights, got the start init_lora_weights=.*, which changes them or is not known"
    ):
        read_peft(lora(tmp_path, {"init_lora_weights": start}))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_a_start_of_the_factors_alone_is_read(start, tmp_path):
    assert len(read_peft(lora(tmp_path, {"init_lora_weights": start})).adapter.sites) == 2


@pytest.mark.parametrize("kind", ["IA3", "ADALORA", None, 3, ["LORA"]])
def test_another_method_is_refused(kind, tmp_path):
    with pytest.raises(FormatError, match="expected one of LORA, VERA, LOHA, LOKR as peft_type, got "):
        read_peft(lora(tmp_path, {"peft_type": kind}))


def test_an_adapter_that_was_trained_inside_peft_is_refused_with_the_way_to_load_it(tmp_path):
    with pytest.raises(FormatError, match=r"got 'TNADAPT'\.\nImport tnadapt_torch\.peft, then load it with PeftModel"):
        read_peft(lora(tmp_path, {"peft_type": "TNADAPT"}))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("h.0.q.lora_B.bias", "lora_bias"),
        ("wte.lora_embedding_A", "an embedding"),
        ("h.0.q.bias", "none of its factors"),
        ("h.0.q.hada_w1_a", "none of its factors"),
        ("lm_head.weight", "none of its factors"),
    ],
)
def test_a_tensor_that_is_not_a_factor_is_refused(key, what, tmp_path):
    with pytest.raises(
        FormatError, match=f"expected a checkpoint with factors of LORA alone, got .*{key}, which is {what}"
    ):
        read_peft(lora(tmp_path, more={PREFIX + key: drawn(2, 2)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_factor_that_is_not_finite_is_refused(value, dtype, tmp_path):
    broken = drawn(6, 2).astype(dtype)
    broken[4, 1] = value
    with pytest.raises(FormatError, match=r"expected finite numbers in .*lora_B.*, got NaN or infinity.\nThe run"):
        read_peft(lora(tmp_path, more={B: broken}))


def test_a_shared_factor_that_is_not_finite_is_refused(tmp_path):
    folder = vera(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.vera_A"][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"expected finite numbers in .*vera_A, got NaN or infinity"):
        read_peft(folder, shapes=dict.fromkeys(PATHS, (6, 5)))


def test_a_trained_module_may_have_an_infinite_buffer(tmp_path):
    more = {f"{PREFIX}lm_head.mask": np.array([-np.inf, 0], np.float32)}
    (extra,) = read_peft(lora(tmp_path, {"modules_to_save": ["lm_head"]}, more=more)).extra.values()
    assert np.isneginf(extra[0])


def test_fully_trained_modules_are_returned_as_extra(tmp_path):
    more = {PREFIX + "base.lm_head.weight": drawn(3, 4), PREFIX + "base.lm_head.dense.bias": drawn(3)}
    extra = read_peft(lora(tmp_path, {"modules_to_save": ["lm_head"]}, more=more)).extra
    assert extra.keys() == {"base.lm_head.weight", "base.lm_head.dense.bias"}


@pytest.mark.parametrize(
    ("more", "drop", "words"),
    [
        ({}, [A], "expected a factor A, got none"),
        ({A: drawn(4)}, [], r"a matrix A, as of a linear layer, got shape \(4,\)"),
        ({A: drawn(2, 4, 1, 1)}, [], r"a matrix A, as of a linear layer, got shape \(2, 4, 1, 1\)"),
        ({A: drawn(3, 4)}, [], r"expected B and A joined by its rank, 2, got shapes \(6, 2\) and \(3, 4\)"),
        ({A: drawn(3, 4), B: drawn(6, 3)}, [], r"joined by its rank, 2"),
        ({A: drawn(2, 0)}, [], "integer of at least 1, got 0"),
    ],
)
def test_factors_that_are_missing_or_misshapen_are_refused(more, drop, words, tmp_path):
    with pytest.raises(FormatError, match=f"(?s){words}"):
        read_peft(lora(tmp_path, more=more, drop=drop))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    folder = lora(tmp_path)
    with pytest.raises(FormatError, match=r"a model where h\.0\.q is a linear layer"):
        read_peft(folder, shapes={"h.1.q": (6, 4)})
    with pytest.raises(FormatError, match=r"h.1.q has a weight of shape \(6, 4\), got \(6, 5\)"):
        read_peft(folder, shapes={"h.0.q": (6, 4), "h.1.q": (6, 5)})
    assert len(read_peft(folder, shapes=dict.fromkeys(PATHS, (6, 4))).adapter.sites) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 0}, "expected an integer of at least 1 as its rank, got "),
        ({"r": True}, "expected an integer of at least 1 as its rank, got "),
        ({"r": None}, "expected an integer of at least 1 as its rank, got "),
        ({"lora_alpha": "2"}, "expected a finite number as its alpha, got "),
        ({"lora_alpha": float("nan")}, "expected a finite number as its alpha, got "),
        ({"lora_alpha": 1e200}, "scale: expected a finite number as alpha"),
        ({"rank_pattern": [1]}, "rank_pattern: expected a mapping from patterns to numbers, got"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: expected names and regular expressions, got"),
        ({"rank_pattern": {"(a+)+": 2}}, "expected expressions with at most 2 repeats and 4 groups, got"),
        ({"rank_pattern": {".*.*.*b": 2}}, "expected expressions with at most 2 repeats and 4 groups, got"),
        ({"alpha_pattern": {"a{9}": 2}}, "expected expressions with at most 2 repeats and 4 groups, got"),
    ],
)
def test_invalid_options_are_refused(change, words, tmp_path):
    with pytest.raises(FormatError, match=words):
        read_peft(lora(tmp_path, change))


def test_a_path_that_is_too_long_is_refused(tmp_path):
    path = "h." * 300
    with pytest.raises(FormatError, match="expected paths of at most 500 characters, got"):
        read_peft(lora(tmp_path, more={f"{PREFIX}{path}q.lora_A.weight": drawn(2, 4)}))


@pytest.mark.parametrize(
    ("drop", "shapes", "words"),
    [
        (
            ["base_model.vera_B"],
            (6, 4),
            r"expected the projection vera_B of VeRA in the file, got none.*save_projection=True",
        ),
        ([f"{PREFIX}h.1.q.vera_lambda_b"], (6, 4), r"h.1.q: expected a vera_lambda_b of shape \(6,\), got none"),
        ([], (7, 4), r"expected a vera_lambda_b of shape \(7,\), got \(6,\)"),
        ([], (6, 9), r"expected a vera_A of at least 2 x 9"),
        ([], (6, 4, 3, 3), "a model where h.0.q is a linear layer"),
        ([], None, "expected the shapes of the weights, .*, got none"),
    ],
)
def test_a_vera_that_does_not_fit_is_refused(drop, shapes, words, tmp_path):
    with pytest.raises(FormatError, match=f"(?s){words}"):
        read_peft(vera(tmp_path, drop=drop), shapes=shapes and dict.fromkeys(PATHS, shapes))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ({"w1": (2, 2)}, "expected w2, or w2_a and w2_b, got neither"),
        ({"w1": (2, 2), "w2_a": (3, 2)}, "expected w2, or w2_a and w2_b, got w2_a"),
        (PAIR | {"w2": (3, 4)}, "expected w2, or w2_a and w2_b, got w2, w2_a, w2_b"),
        ({"w1": (2, 2), "w2": (3, 4, 1, 1)}, "a matrix w2, as of a linear layer"),
        (PAIR | {"w2_a": (3, 1)}, "expected w2_a and w2_b joined by its rank, 2"),
    ],
)
def test_a_lokr_with_inconsistent_matrices_is_refused(module, words, tmp_path):
    with pytest.raises(FormatError, match=f"(?s){words}"):
        read_peft(lokr(tmp_path, module))


def test_a_loha_of_two_shapes_is_refused(tmp_path):
    shapes = {"w1_a": (6, 2), "w1_b": (2, 4), "w2_a": (6, 2), "w2_b": (2, 5)}
    tensors = {f"{PREFIX}q.hada_{name}": drawn(*shape) for name, shape in shapes.items()}
    with pytest.raises(FormatError, match=r"expected two products of the same shape, got \(6, 4\) and \(6, 5\)"):
        read_peft(write(tmp_path, {"peft_type": "LOHA", "r": 2, "alpha": 1}, tensors))


def test_damaged_and_missing_files_are_refused(tmp_path):
    folder = lora(tmp_path / "lora")
    tensors, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, text = tensors.read_bytes(), config.read_text()
    for content in (whole[:-1], whole[:20], b""):
        tensors.write_bytes(content)
        with pytest.raises(FormatError, match=r"adapter_model\.safetensors: expected a whole safetensors file"):
            read_peft(folder)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        read_peft(folder)
    (folder / "adapter_model.bin").write_bytes(b"no pickle is opened")
    with pytest.raises(FormatError, match=r"(?s)got only the pickle adapter_model.bin.*If you trust it"):
        read_peft(folder)
    tensors.write_bytes(whole)
    for broken in (text[:-1], "[]", "\ud800"):
        config.write_bytes(broken.encode("utf-8", "surrogatepass"))
        with pytest.raises(
            FormatError, match=r"adapter_config.json: expected one JSON object, got a file that cannot be read"
        ):
            read_peft(folder)
    config.write_bytes(b" " * (2**24 + 1))
    with pytest.raises(FormatError, match="expected at most 16,777,216 bytes, got more"):
        read_peft(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        read_peft(folder)
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder with adapter_config\.json, got a file\.\nRead a file"
    ):
        read_peft(tensors)


def test_integer_tensors_and_checkpoints_without_modules_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"expected tensors of F16, F32, F64, BF16, got .* of I64"):
        read_peft(lora(tmp_path, more={A: np.ones((2, 4), np.int64)}))
    with pytest.raises(
        FormatError, match="expected a checkpoint with factors of LORA for at least one module, got none"
    ):
        read_peft(write(tmp_path, {"peft_type": "LORA", "r": 2, "lora_alpha": 1}, {}))
