"""Weights that are no plain tensors in memory: the same model has the same identity, another has another."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny import make_gpt2
from torch import nn

from lorif_hf.errors import UnsupportedModuleError
from lorif_hf.layers import kind_of
from lorif_hf.layers.modules import TrackedModule
from lorif_hf.layers.selection import tracked_modules
from lorif_hf.recording.identity import identify
from lorif_hf.recording.stored_weights import execution_device, stored_parts, tied_apart, weights_of


def identity_of(model, tracked=True):
    return hashes(model, tracked_modules(model) if tracked else [])


def hashes(model, modules):
    identity = identify(model, modules)
    return identity.weights_sha256, identity.other_weights


def of_tensor(tensor, tracked=False):
    """Identity of a layer whose weight is a tensor, also of one that nobody could train."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(tensor, requires_grad=False)
    modules = [TrackedModule.of("a", kind_of(layer), layer)] if tracked else []
    return hashes(nn.ModuleDict({"a": layer}), modules)


class Packed(torch.Tensor):
    """Stands for numbers that lie elsewhere, refuses nearly every operation, and can be dequantized."""

    @staticmethod
    def __new__(cls, codes, scale, note="rows"):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype, device=codes.device)

    def __init__(self, codes, scale, note="rows"):
        self.codes, self.scale, self.note = codes, scale, note

    def dequantize(self):
        return self.codes * self.scale[:, None]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale, args[0].note)
        raise NotImplementedError(f"{cls.__name__} has no {function}")


class Sealed(Packed):
    def dequantize(self):
        return self


class Int8(Packed):
    """As torchao's: it also says what it holds."""

    def __tensor_flatten__(self):
        return ["codes", "scale"], {"note": self.note, "settings": SimpleNamespace()}

    @classmethod
    def __tensor_unflatten__(cls, tensors, context, size, stride):
        return cls(tensors["codes"], tensors["scale"], context["note"])


def int8(seed=0, scale=1.0, note="rows"):
    codes = torch.randint(-128, 128, (4, 8), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    return Int8(codes, torch.full((4,), scale), note)


@pytest.mark.parametrize("tracked", [False, True])
def test_a_subclass_of_tensors_is_what_it_holds(tracked):
    known = of_tensor(int8(), tracked)
    assert of_tensor(int8(), tracked) == known
    others = [of_tensor(other, tracked) for other in (int8(1), int8(0, 2.0), int8(0, 1.0, "columns"))]
    assert len({known, *others}) == 4


def test_a_subclass_that_says_nothing_is_dequantized_or_refused():
    inner = int8().codes, int8().scale
    assert of_tensor(Packed(*inner)) == of_tensor(Packed(*inner)) != of_tensor(Packed(int8(1).codes, inner[1]))
    with pytest.raises(UnsupportedModuleError, match=r"'a.weight' .* cannot be identified: .*a Sealed says neither"):
        of_tensor(Sealed(*inner))


REAL = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
KINDS = {
    "complex64": lambda t: torch.complex(t, t.flip(0)),
    "complex128": lambda t: torch.complex(t, t.flip(0)).to(torch.complex128),
    "conjugate": lambda t: torch.complex(t, t.flip(0)).conj(),
    "imaginary part of a conjugate": lambda t: torch.complex(t, t.flip(0)).conj().imag,
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda t: t.to(torch.float8_e5m2),
    "bool": lambda t: t > 0,
    "uint16": lambda t: (t * 100).to(torch.int32).to(torch.uint16),
    "uint4": lambda t: t.view(torch.uint8).view(torch.uint4),
    "float4": lambda t: t.view(torch.uint8).view(torch.float4_e2m1fn_x2),
    "qint8": lambda t: torch.quantize_per_tensor(t, 0.1, 3, torch.qint8),
    "quint8 of channels": lambda t: torch.quantize_per_channel(
        t, torch.full((4,), 0.1), torch.zeros(4), 0, torch.quint8
    ),
    "sparse": lambda t: (t * (t > 0)).to_sparse(),
    "sparse_csr": lambda t: (t * (t > 0)).to_sparse_csr(),
    "sparse_csc": lambda t: (t * (t > 0)).to_sparse_csc(),
    "sparse_bsr": lambda t: (t * (t > 0)).to_sparse_bsr((2, 2)),
    "expanded": lambda t: t[:, :1].expand(4, 6),
    "strided": lambda t: t.T,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tracked", [False, True])
def test_every_dtype_and_layout(kind, tracked):
    known = of_tensor(KINDS[kind](REAL.clone()), tracked)
    assert of_tensor(KINDS[kind](REAL.clone()), tracked) == known
    changed = REAL.clone()
    changed[2, 0] = -changed[2, 0] - 0.5
    assert of_tensor(KINDS[kind](changed), tracked) != known


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scale_of_quantized_numbers_counts():
    codes = torch.randint(-128, 128, (4, 6), dtype=torch.int8)
    scaled = [torch._make_per_tensor_quantized_tensor(codes, scale, zero) for scale, zero in ((1, 0), (2, 0), (1, 1))]
    assert len({of_tensor(tensor) for tensor in scaled}) == 3


def test_a_sparse_weight_is_the_same_in_whatever_order_it_was_written():
    places, values = torch.tensor([[0, 1, 0], [2, 0, 2]]), torch.tensor([1.0, 2.0, 3.0])
    written = torch.sparse_coo_tensor(places, values, (2, 3))
    assert of_tensor(written) == of_tensor(
        torch.sparse_coo_tensor(places[:, [1, 0]], torch.tensor([2.0, 4.0]), (2, 3))
    )


def test_empty_weights():
    assert of_tensor(torch.zeros(0, 4), tracked=True) == of_tensor(torch.zeros(0, 4), tracked=True)


@pytest.mark.parametrize("where", ["cpu", "disk", "layers on the disk"])
def test_an_offloaded_model_is_the_model(where, tmp_path):
    known = identity_of(make_gpt2())
    model = make_gpt2()
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    elif where == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    else:
        places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu", "lm_head": "cpu"}
        places |= {"transformer.h.0": "disk", "transformer.h.1": "cpu", "transformer.ln_f": "disk"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert any(parameter.is_meta for parameter in model.parameters())
    assert identity_of(model) == known and execution_device(model) == torch.device("cpu")
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert identity_of(model) == known
    other = make_gpt2(seed=1)
    accelerate.cpu_offload(other, execution_device=torch.device("cpu"))
    assert identity_of(other) != known


def test_a_model_without_numbers_is_refused_by_name():
    with accelerate.init_empty_weights():
        model = make_gpt2()
    message = r"'transformer\.h\.0\.attn\.c_attn\.weight' .* on the meta device, without numbers. Load the model with"
    with pytest.raises(UnsupportedModuleError, match=message):
        identity_of(model)
    with pytest.raises(UnsupportedModuleError, match=r"'transformer\.wte\.weight'"):
        identity_of(model, tracked=False)


def test_a_weight_that_is_not_made_yet_is_refused():
    with pytest.raises(UnsupportedModuleError, match=r"'0\.weight'.*made at the first forward pass: run a batch"):
        identity_of(nn.Sequential(nn.LazyLinear(3)), tracked=False)


def test_pieces_of_deepspeed_are_refused():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.empty(0))
    layer.weight.ds_shape = torch.Size([2, 2])
    with pytest.raises(UnsupportedModuleError, match="DeepSpeed ZeRO-3 keeps it in pieces: index the model outside"):
        identity_of(nn.Sequential(layer), tracked=False)


def test_saved_buffers_count_and_counters_and_passing_ones_do_not():
    def make(mean=0.0, counter=0, passing=0.0):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        model[1].running_mean.fill_(mean)
        model[1].num_batches_tracked.fill_(counter)
        model[1].register_buffer("scratch", torch.full((2,), passing), persistent=False)
        return identity_of(model)

    assert make() == make(counter=7) == make(passing=1.0) != make(mean=1.0)


class Params4bit(nn.Parameter):
    pass


class Linear4bit(nn.Module):
    """As that of bitsandbytes on a CPU with AVX512-BF16: the first forward reorders codes and rounds scales."""

    def __init__(self, seed, scale, compute_dtype=None):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.compute_dtype = compute_dtype
        self.weight = Params4bit(torch.randint(0, 256, (8, 1), generator=draw).to(torch.uint8), requires_grad=False)
        scales = scale * torch.rand(4, generator=draw)
        self.weight.quant_state = SimpleNamespace(
            absmax=scales, nested=False, shape=torch.Size([4, 4]), blocksize=4, quant_type="nf4"
        )
        self.bias = nn.Parameter(torch.rand(4, generator=draw))

    def forward(self, x):
        state = self.weight.quant_state
        if not getattr(state, "packing_format_for_cpu", False):
            self.weight.data = self.weight.data.flip(0).view(4, 2)
            state.absmax, state.packing_format_for_cpu = state.absmax.bfloat16().view(4, 1), True
        self.compute_dtype = self.compute_dtype or x.dtype
        self.bias.data = self.bias.data.to(self.compute_dtype)
        return x


def unpack(codes, state):
    state.packing_format_for_cpu = False
    return codes.reshape(8, 1).flip(0), state


@pytest.mark.parametrize("compute_dtype", [None, torch.float16, torch.bfloat16])
def test_four_bits_that_the_first_forward_repacks(monkeypatch, compute_dtype):
    library = ModuleType("bitsandbytes")
    library.functional = SimpleNamespace(_convert_weight_packed_for_cpu_inverse=unpack)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setattr(Linear4bit, "__module__", "bitsandbytes.nn.modules")

    def make(seed=0, scale=1.0):
        return nn.ModuleDict({"a": Linear4bit(seed, scale, compute_dtype)})

    model = make()
    known = identity_of(model, tracked=False)
    model["a"](torch.ones(1, 4))
    packed = copy.deepcopy(vars(model["a"].weight.quant_state))
    assert identity_of(model, tracked=False) == known == identity_of(make(), tracked=False)
    assert str(vars(model["a"].weight.quant_state)) == str(packed)  # identifying leaves the layer as it is
    assert known != identity_of(make(seed=1), tracked=False) and known != identity_of(make(scale=2.0), tracked=False)


@pytest.mark.parametrize("options", [{}, {"compress_statistics": True}, {"quant_type": "fp4"}], ids=str)
def test_four_bits_of_the_library_itself(options):
    library = pytest.importorskip("bitsandbytes")

    def make(seed=0):
        torch.manual_seed(seed)
        state = {"weight": torch.randn(64, 64), "bias": torch.randn(64)}
        layer = library.nn.Linear4bit(64, 64, compute_dtype=torch.bfloat16, **options)
        layer.load_state_dict(state)
        return nn.ModuleDict({"a": layer.to("cpu").eval().requires_grad_(False)})

    model = make()
    known = identity_of(model, tracked=False)
    model["a"](torch.randn(2, 64))
    assert identity_of(model, tracked=False) == known == identity_of(make(), tracked=False)
    assert known != identity_of(make(1), tracked=False)


def test_eight_bits_of_the_library_itself():
    library = pytest.importorskip("bitsandbytes")

    def make(scale=1.0):
        torch.manual_seed(0)
        layer = library.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        layer.load_state_dict({"weight": scale * torch.randn(64, 64)})
        return nn.ModuleDict({"a": layer.to("cpu").eval().requires_grad_(False)})

    model = make()
    known = identity_of(model, tracked=False)
    model["a"](torch.randn(2, 64))
    assert identity_of(model, tracked=False) == known == identity_of(make(), tracked=False)
    assert known != identity_of(make(2.0), tracked=False)


@pytest.mark.parametrize(
    "name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Float8WeightOnlyConfig"]
)
def test_tensors_of_torchao(name):
    library = pytest.importorskip("torchao.quantization")

    def make(seed=0):
        model = make_gpt2(seed)
        model.set_input_embeddings(nn.Embedding(50, 12))
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
        library.quantize_(layers, getattr(library, name)())
        return layers

    model = make()
    known = identity_of(model)
    model(torch.randn(3, 32))
    assert identity_of(model) == known == identity_of(make()) != identity_of(make(1))


def test_plain_weights_are_taken_as_they_are():
    model = make_gpt2()
    weights = list(weights_of(model))
    assert [weight.path for weight in weights] == [name for name, _ in model.named_parameters()]
    for weight in weights:
        ((label, part),) = stored_parts(weight)
        assert label == "torch.float32" and part.data_ptr() == weight.tensor.data_ptr()


def test_a_tied_weight_is_only_apart_where_it_is_elsewhere():
    model = make_gpt2()
    assert tied_apart(model) == {}
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # trained as two, here both
    assert tied_apart(model) == {}
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().to("meta"))
    embedding, head = model.transformer.wte.weight, model.lm_head.weight
    assert tied_apart(model) == {id(head): "transformer.wte.weight", id(embedding): "lm_head.weight"}
    assert tied_apart(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_model_computes_where_its_own_hook_brings_the_inputs(parts):
    model = make_gpt2()
    assert execution_device(model) == torch.device("cpu")
    for _ in range(parts):  # the second time, to a hook of several
        hook = AlignDevicesHook(execution_device="lazy:0")
        hook.init_hook = lambda module: module  # leave the weights where they are, as `cpu_offload_with_hook` does
        add_hook_to_module(model, hook, append=True)
    assert execution_device(model) == torch.device("lazy:0")
