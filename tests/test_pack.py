import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mdprune_deploy.checkpoint import load_checkpoint
from mdprune_deploy.errors import CheckpointError, UsageError
from mdprune_deploy.pack import PackOptions, pack, read_state_dict

FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.conv2(self.bn(self.conv1(x)).relu()).mean((2, 3)))

def failing():
    raise RuntimeError("no weights here")

nothing = dict
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "research_code.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("research_code", None)


def network() -> nn.Module:
    torch.manual_seed(3)
    names: dict = {}
    exec(FACTORY, names)
    return names["Net"]()


def options(folder: Path, **changes) -> PackOptions:
    base = PackOptions(
        output=folder / "model.pt",
        factory="research_code:Net",
        weights=folder / "shared.pth",
        switches="{module}.switches",
        inputs=("1,3,8,8",),
        state=(
            "bns.{domain}.{name}->bn.{name}",
            "heads.{domain}.{name}->fc.{name}",
        ),
    )
    return replace(base, **changes)


def shared_file(folder: Path, names=("0", "1"), **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """One file: backbone, switches (domains, channels), batch norm and head per domain."""
    state = dict(network().state_dict())
    tensors = {name: t for name, t in state.items() if not name.startswith(("bn.", "fc."))}
    for index, name in enumerate(names):
        tensors |= {f"bns.{name}.{k[3:]}": t + index for k, t in state.items() if k[:3] == "bn."}
        tensors[f"heads.{name}.weight"] = torch.randn(4 + index, 8)
        tensors[f"heads.{name}.bias"] = torch.randn(4 + index)
    tensors["conv1.switches"] = torch.tensor([[1.0, -1.0, 1.0], [0.1, 0.2, 0.3]])[: len(names)]
    tensors["conv2.switches"] = torch.randn(len(names), 6)
    tensors |= extra
    torch.save(tensors, folder / "shared.pth")
    return tensors


def test_one_file_with_rows_per_domain(folder):
    tensors = shared_file(folder)
    (folder / "names.txt").write_text("a\nb\nc\nd\n")
    report = pack(
        options(folder, domains=("digits", "signs"), labels=(f"digits={folder}/names.txt",),
                threshold=0.15)
    )  # fmt: skip
    assert report.domains == ("digits", "signs")
    assert report.masks == {"digits": 2, "signs": 2}
    assert report.state == {"digits": 7, "signs": 7}
    assert report.shared == 4
    found = load_checkpoint(folder / "model.pt")
    assert list(found.domains) == ["digits", "signs"]
    signs = found.domains["signs"]
    assert torch.equal(signs.masks["conv1"].values, tensors["conv1.switches"][1])
    assert signs.masks["conv1"].on.tolist() == [False, True, True]
    assert (signs.masks["conv1"].axis, signs.masks["conv1"].site) == ("in", "weight")
    assert torch.equal(signs.state["bn.running_var"], tensors["bns.1.running_var"])
    assert torch.equal(signs.state["fc.weight"], tensors["heads.1.weight"])
    assert found.domains["digits"].labels == ["a", "b", "c", "d"]
    stored = found.model.graph.initializers["conv2.weight"].const_value.numpy()
    assert torch.equal(torch.from_numpy(stored), tensors["conv2.weight"])


def test_names_come_from_the_patterns_or_from_the_rows(folder):
    shared_file(folder, ("digits", "signs"))
    assert pack(options(folder)).domains == ("digits", "signs")
    shared_file(folder)
    assert pack(options(folder)).domains == ("0", "1")


def test_one_file_per_domain(folder):
    shared = network().state_dict()
    safetensors.torch.save_file(shared, folder / "shared.pth")
    for index, name in enumerate(("digits", "signs")):
        own = {f"net.{key}": tensor for key, tensor in shared.items()}
        own["net.bn.bias"] = torch.full((6,), float(index))
        own["net.mask.conv2"] = torch.arange(8).remainder(2) == index
        torch.save({"epoch": 3, "model": own}, folder / f"{name}.pth")
    torch.save({"model": dict(shared)}, folder / "shared.pth")
    report = pack(
        options(
            folder,
            layout="per-domain",
            switches=r"mask\.(?P<weight>\w+)",
            axis="out",
            site="output",
            state=(),
            key="model",
            prefix="net.",
            domain_weights=("digits=digits.pth", "signs=signs.pth"),
        )
    )
    assert report.state == {"digits": 0, "signs": 1}  # a bias of zeros is the shared one
    found = load_checkpoint(folder / "model.pt")
    mask = found.domains["signs"].masks["conv2"]
    assert mask.values.tolist() == [bool(channel % 2) for channel in range(8)]
    assert (mask.axis, mask.site) == ("out", "output")
    assert list(found.domains["signs"].state) == ["bn.bias"]


def test_integer_switches_are_bits_and_ignored_names_are_reported(folder):
    tensors = shared_file(folder)
    tensors["conv1.switches"] = torch.tensor([[1, 0, 1], [1, 1, 0]])
    tensors["optimizer.step"] = torch.tensor(7)
    torch.save(tensors, folder / "shared.pth")
    report = pack(options(folder, ignore=("optimizer.*",)))
    assert report.ignored == ("optimizer.step",)
    mask = load_checkpoint(folder / "model.pt").domains["1"].masks["conv1"]
    assert mask.values.dtype == torch.bool
    assert mask.values.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "research_code"}, "'research_code' is not of the form package.module:factory"),
        ({"factory": "no_such_code:Net"}, "fails: ModuleNotFoundError: No module named 'no_such"),
        ({"factory": "research_code:Nett"}, "fails: AttributeError: .* no attribute 'Nett'"),
        ({"factory": "research_code:failing"}, "fails: RuntimeError: no weights here"),
        ({"factory": "research_code:nothing"}, "returns a dict, not a Module"),
        ({"inputs": ()}, "inputs is empty"),
        ({"inputs": ("1,three",)}, "input shape '1,three' is not like 1,3,32,32"),
        ({"switches": "switches"}, r"switches 'switches' has no \{module\} or \{weight\}"),
        ({"switches": "{modul}.s"}, r"pattern '{modul}.s' has unknown place \{modul\}"),
        ({"switches": "(?P<weight>"}, r"switches '\(\?P<weight>' is no pattern"),
        ({"state": ("bns.{domain}",)}, "state rule 'bns.{domain}' is not of the form PATTERN->"),
        ({"state": ("bns.{name}->bn",)}, r"state 'bns.{name}' has no \{domain\}"),
        ({"state": ("{domain}->{module}.x",)}, "uses 'module', which it never matches"),
        (
            {"state": ("bns.{domain}.{name}->bn.{name}", "heads.{domain}.{name}->fcs.{name}")},
            "'fcs.weight', which the network lacks",
        ),
        ({"domains": ("a", "a")}, r"domains \['a', 'a'\] repeat a name"),
        ({"layout": "per-domain"}, "layout 'per-domain' needs domain_weights"),
        ({"domain_weights": ("a",)}, "domain_weights 'a' is not of the form NAME=PATH"),
        ({"domain_weights": ("a=x", "a=y")}, "domain_weights names a domain twice"),
        ({"domains": ("b",), "domain_weights": ("a=x",)}, r"\['b'\] and domain_weights \['a'\]"),
        ({"labels": ("two=research_code.py",)}, "labels for unknown domain 'two'"),
    ],
)
def test_wrong_options_are_named(folder, changes, message):
    shared_file(folder)
    with pytest.raises(UsageError, match=message):
        pack(options(folder, **changes))
    assert not (folder / "model.pt").exists()


def test_a_pattern_that_matches_nothing_is_named(folder):
    shared_file(folder)
    rules = (*options(folder).state, "norms.{domain}.{name}->bn.{name}")
    with pytest.raises(UsageError, match=r"state 'norms.{domain}.{name}' matches no tensor"):
        pack(options(folder, state=rules))
    with pytest.raises(UsageError, match=r"switches '{module}.gates' matches no tensor"):
        pack(options(folder, switches="{module}.gates", ignore=("*.switches",)))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"conv3.weigth": torch.ones(1)},
            "tensor 'conv3.weigth' is left over: .* did you mean 'conv",
        ),
        ({"conv1.weight": torch.ones(6, 4, 3, 3)}, r"has shape \[6, 4, 3, 3\], the network's \[6"),
        ({"conv1.switches": torch.ones(3, 3)}, r"shape \[3, 3\], not \(2 domains, channels\)"),
        ({"conv1.switches": torch.ones(2)}, r"shape \[2\], not \(2 domains, channels\)"),
        ({"conv1.switches": torch.full((2, 3), 2)}, "'conv1' are integers other than 0 and 1"),
        (
            {"conv1.switches": torch.ones(2, 4)},
            "mask on 'conv1' has 4 entries; Conv .* has 3 input",
        ),
        (
            {"conv9.switches": torch.ones(2, 4)},
            "mask on unknown weight 'conv9'; did you mean 'conv",
        ),
        ({"heads.7.bias": torch.ones(4)}, "state of unknown domain '7'; the domains are 'a', 'b'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, extra, message):
    shared_file(folder, **extra)
    with pytest.raises(CheckpointError, match=message):
        pack(options(folder, domains=("a", "b")))
    assert not (folder / "model.pt").exists()


def test_parameters_that_nothing_brings_are_named(folder):
    tensors = shared_file(folder)
    del tensors["conv2.bias"], tensors["heads.1.bias"]
    torch.save(tensors, folder / "shared.pth")
    with pytest.raises(CheckpointError, match=r"the weights lack 'conv2.bias', 'fc.bias'$"):
        pack(options(folder))


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    path, target = tmp_path / "weights.pth", tmp_path / "created-by-the-payload"
    torch.save({"w": Payload(target)}, path)
    with pytest.raises(CheckpointError, match=r"holds more than tensors, which is never loaded"):
        read_state_dict(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload works: the test could have failed
    assert target.exists()


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_state_dict(path)
    for content, message in [
        ([1], "holds a list, not a state dict"),
        ({"model": {"w": torch.ones(1)}}, "entry 'model' is a dict, not a tensor; .* as the key"),
        ({"a.w": torch.ones(1), "w": torch.ones(1)}, "two tensors have one name without 'a.'"),
    ]:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(path, prefix="a.")
    with pytest.raises(CheckpointError, match="there is no entry 'model'"):
        read_state_dict(path, key="model")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is corrupt, or holds more than tensors"):
        read_state_dict(path)
