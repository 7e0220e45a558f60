"""Training steps and a ranking on a simulated accelerator: tensors left on the host and waits for the device fail.

PyTorch's Python backend for devices gives fake tensors the device ``fakegpu``. Operations infer shapes and types, refuse
to mix devices, and raise where a shape depends on values. Reads of single values are recorded with the
function that reads. Device and autocast are registered for a whole process, so the tests run in a separate one.
"""

import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from recbole_pref.encoder import fusion
from recbole_pref.methods import METHODS
from recbole_pref.samplers import SAMPLERS

from .conftest import tiny_sequences, write_atomic

# Operations that autocast computes in half precision, and in float32, as on CUDA.
_IN_HALF = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "conv2d", "scaled_dot_product_attention")
_IN_FULL = ("softmax.int", "log_softmax.int", "layer_norm", "logsumexp", "cross_entropy_loss", "sum", "exp", "log")
_registered = []  # libraries hold their kernels as long as they live
_data = {}


def _start():
    """Register the device, its autocast and what GRUs need, in this process."""
    from torch.utils import backend_registration

    torch.set_num_threads(1)
    sys.argv = ["test"]
    backend_registration._setup_privateuseone_for_python_backend("fakegpu")
    torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch.set_autocast_dtype("fakegpu", torch.bfloat16)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, dtype in ((_IN_HALF, torch.bfloat16), (_IN_FULL, torch.float32)):
        for name in names:
            operation, _, overload = name.partition(".")
            casts.impl(name, _cast(getattr(getattr(torch.ops.aten, operation), overload or "default"), dtype))
    # A cell of a GRU is one kernel on such a device, and PyTorch does not know its shapes.
    shapes = torch.library.Library("aten", "IMPL", "Meta")
    shapes.impl("_thnn_fused_gru_cell", _gru_cell)
    shapes.impl("_thnn_fused_gru_cell_backward", _gru_cell_backward)
    _registered.extend((others, casts, shapes))


def _cast(operation, dtype):
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value):
        is_float = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16)
        return value.to(dtype) if is_float else value

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _gru_cell(input_gates, hidden_gates, state, *biases):
    return torch.empty_like(state), state.new_empty(len(state), 5 * state.shape[1])  # [B, H], what backward needs


def _gru_cell_backward(grad, workspace, has_bias):
    gates, bias = grad.new_empty(len(grad), 3 * grad.shape[1]), grad.new_empty(3 * grad.shape[1])
    return gates, gates.clone(), torch.empty_like(grad), bias, bias.clone()


class _HostReads(TorchDispatchMode):
    """Records the functions of RecBole and this package that read the device, and returns a value to them."""

    def __init__(self, fake):
        super().__init__()
        self.fake, self.readers = fake, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
        on_device = any(tensor.device.type != "cpu" for tensor in tensors)
        if operation is torch.ops.aten._local_scalar_dense.default:
            if on_device:
                self.readers.append(_running_function())
            return True if tensors[0].dtype == torch.bool else 1
        result = operation(*tree_map(self._faked, args), **(kwargs or {}))
        if on_device and isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.readers.append(_running_function())
        return result

    def _faked(self, value):
        is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if is_real else value


def _running_function():
    frame = sys._getframe(2)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("recbole"):
        frame = frame.f_back
    return "a library" if frame is None else f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


_MISTAKES = {
    "item": lambda loss: loss * loss.item(),
    "cpu": lambda loss: loss * loss.cpu().to(loss.device),
    "nonzero": lambda loss: loss * len(loss.reshape(1).nonzero()),
    "mixed": lambda loss: (loss.reshape(1) * torch.ones(1)).sum(),
}


def _in_words(*arguments):
    """Return what :func:`_judge` returns; the errors of fake tensors cannot be sent to another process."""
    try:
        return _judge(*arguments)
    except Exception as error:
        where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        inside = [line for line in where if "recbole" in line or __file__ in line]
        raise AssertionError(f"{type(error).__name__} at {inside[-1]}: {error}") from None


def _judge(model_name, settings, mistake=None):
    """Train two steps and rank a batch on the device.

    Returns:
        dict: functions that read the device in ``steps`` and while the reference's ``cache`` was filled, names of what
        is ``left`` on the CPU, and shape, device and type of the ``scores`` and of the ``loss``.
    """
    from recbole_pref.build import build_run, prepare_data
    from recbole_pref.config import Config

    config = Config(model_name, config_dict={**settings, "enable_amp": True, "metrics": ["Hit", "NDCG"]})
    kind = (settings["data_path"], model_name.partition("MM")[1])
    if kind not in _data:
        _data[kind] = prepare_data(config, log=False)
    run = build_run(config, log=False, dataset=_data[kind][0])
    trainer, model = run.trainer, run.model
    trainer._train_data = run.train_data
    trainer._make_loader(run.train_data)
    batches, ranked = list(trainer._loader)[:2], next(iter(run.test_data))
    device = torch.device("fakegpu:0")
    losses, calculate_loss = [], model.calculate_loss
    change = _MISTAKES.get(mistake, lambda loss: loss)
    model.calculate_loss = lambda batch: losses.append(change(calculate_loss(batch))) or losses[-1]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _HostReads(fake) as reads:
        model.to(device)
        for module in model.modules():
            if "device" in vars(module):
                module.device = device
        trainer.device, trainer._loader = device, batches
        trainer.optimizer = trainer._build_optimizer()
        reference = model.step.reference
        if reference is not None and model.backbone is not None and config["reference_cache"]:
            reference.fill_cache(batches, len(run.train_data._dataset))
        cache, reads.readers = reads.readers, []
        trainer.train_epoch()
        steps = list(reads.readers)
        held = {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.step.diagnostics.sums}
        held |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.eval()
        trainer.tot_item_num = model.n_items
        # Metrics are read by the host after a batch, which is not a training step.
        chunks = []
        trainer.eval_collector.eval_batch_collect = lambda scores, *_: chunks.append(scores)
        chunks.append(trainer._full_sort_batch_eval(ranked)[1])
    return {
        "cache": cache,
        "steps": steps,
        "left": [name for name, tensor in held.items() if tensor.device.type == "cpu"],
        "rows": [len(scores) for scores in chunks],
        "on": {str(tensor.device) for tensor in chunks + losses},
        "loss": [str(loss.dtype) for loss in losses],
    }


@pytest.fixture(scope="module")
def device():
    """A process in which the device exists."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start) as pool:
        yield lambda *arguments: pool.submit(_in_words, *arguments).result(timeout=60)


# The end of an epoch reads whether all of its losses were finite, and their sum.
AT_THE_END = ["recbole_pref.training.trainer._preference_epoch"] * 2


def _check(judged):
    assert judged["steps"] == AT_THE_END
    assert judged["cache"] == []
    assert judged["left"] == []
    assert judged["on"] == {"fakegpu:0"}
    assert judged["loss"] == ["torch.float32"] * 2
    assert sum(judged["rows"]) == 60


# All methods on a backbone with representations; each kind of loss on the others, BERT4Rec with whole scores.
@pytest.mark.parametrize(
    "model",
    [f"{method}SASRec" for method in METHODS]
    + [method + backbone for method in ("CE", "LPO", "DPO", "SimPO") for backbone in ("GRU4Rec", "Caser", "BERT4Rec")],
)
def test_a_step_of_a_method_never_waits_for_the_host(device, tiny_dataset, model):
    _check(device(model, tiny_dataset))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_of_a_sampler_never_waits_for_the_host(device, tiny_dataset, sampler):
    more = {"neg_sampler": sampler, "neg_candidates": "all", "exclude_history": True}
    if sampler == "reference_pool":
        more["reference"] = "auto"
    _check(device("LPOSASRec", {**tiny_dataset, **more}))


@pytest.mark.parametrize("model, more", [
    ("LPOSASRec", {"repeat_bias": True, "logits_memory_mb": 0.01}),
    ("SimPOGRU4Rec", {"repeat_bias": True, "neg_sampler": "gumbel", "sampler_space": "logit"}),
    ("DPOCaser", {"repeat_bias": True, "reference_cache": False, "reweight": "softmax"}),
    ("LPOSASRec", {"prior": "EASE", "prior_in_training": True, "prior_weight": "learned"}),
    ("DPOSASRec", {"prior": "TALE", "prior_in_training": True, "prior_weight": 0.5}),
    ("SDPOSASRec", {"neg_sampler": "pool", "pool_draw": "score", "train_positions": "last"}),
    ("CESASRec", {"train_positions": "last"}),
    ("LPOSASRec", {"clip_grad_norm": {"max_norm": 5}, "lr_scheduler": "cosine", "warmup_ratio": 0.1}),
])  # fmt: skip
def test_a_step_under_further_settings_never_waits_for_the_host(device, tiny_dataset, model, more):
    _check(device(model, {**tiny_dataset, **more}))


@pytest.mark.parametrize("more", [{"moe_top_k": 1}, {"moe_top_k": 2}, {"mm_fusion": "concat"}, {"replace_id": "tail"}])
def test_a_step_with_item_features_never_waits_for_the_host(device, tiny_dataset, tmp_path, more):
    write_atomic(tmp_path, "tiny", tiny_sequences())
    lines = ["item_id:token\ttags:token_seq", *(f"i{item}\tt{item % 4} t{item % 7}" for item in range(40))]
    (tmp_path / "tiny" / "tiny.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _check(device("LPOMMSASRec", {**tiny_dataset, "data_path": str(tmp_path), "mm_fusion": "moe", **more}))


@pytest.mark.parametrize("top_k, n_rows", [(1, 300), (2, 300), (2, 3), (4, 128)])
def test_tiles_give_the_gated_sum_of_the_chosen_experts_and_its_gradients(top_k, n_rows):
    torch.manual_seed(0)
    mixture = fusion.ExpertFusion(2, 8, {"moe_experts": 4, "moe_top_k": top_k, "moe_hidden": 5}).double()
    for weight in mixture.parameters():
        torch.nn.init.normal_(weight)
    rows = torch.randn(n_rows, 16, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(n_rows, 4, dtype=torch.float64) * torch.tensor([1.0, 5.0, 1.0, 0.0])  # uneven choices
    gates, experts, _ = fusion.route(logits, top_k)
    inputs = [rows, mixture.weight_in, mixture.bias_in, mixture.weight_out, mixture.bias_out]
    direct = fusion.dispatch(rows, gates, experts, 4, mixture.run_expert)
    in_tiles = fusion.dispatch_in_tiles(rows, gates, experts, 4, mixture.run_tiles)
    torch.testing.assert_close(in_tiles, direct)
    expected = torch.autograd.grad(direct.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(in_tiles.square().sum(), inputs), expected)


# The simulated device must detect what would wait on a GPU.
@pytest.mark.parametrize("mistake", ["item", "cpu", "nonzero", "mixed"])
def test_mistakes_are_noticed(device, tiny_dataset, mistake):
    with pytest.raises(AssertionError, match="first extra item|a library|DynamicOutputShape|two devices"):
        _check(device("LPOSASRec", tiny_dataset, mistake))
